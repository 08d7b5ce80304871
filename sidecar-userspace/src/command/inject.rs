//! `inject`: sidecars put into the pods of files, and `inject serve`, the webhook that does so in a cluster.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    net::TcpListener,
    task::{LocalSet, spawn_local},
};
use tracing::{info, warn};

use super::{Usage, supervise::tell_systemd};
use crate::{
    cli::inject::{Inject as Arguments, InjectVerb, Output, ServeWebhook},
    inject::{
        Defaults,
        certificate::Terms,
        keeper::{Keeper, Own, Shown},
        manifest::{self, Injected},
        serve::Webhook,
        yaml,
    },
    kubernetes::Api,
    lifecycle::{
        readiness::Readiness,
        signal::{Signal, Signals},
    },
};

/// Bytes of a file at most.
const FILE_MAX: u64 = 64 * 1024 * 1024;

/// After SIGTERM, until API servers have learnt that this replica is gone.
const FAREWELL: Duration = Duration::from_secs(5);

pub fn run(args: Arguments) -> Result<ExitCode> {
    match args.verb {
        Some(InjectVerb::Serve(args)) => serve(args),
        None => offline(args),
    }
}

/// All or nothing: what cannot be injected is an error before anything is written.
fn offline(args: Arguments) -> Result<ExitCode> {
    let defaults = Defaults::from(args.what);
    let namespace = args.namespace.as_deref();
    let mut documents = Vec::new();
    let mut failures = Vec::new();
    let mut count = 0;
    for path in &args.filename {
        let name = match path.as_os_str() == "-" {
            true => "standard input".to_owned(),
            false => path.display().to_string(),
        };
        let text = read(path).with_context(|| format!("cannot read {name}"))?;
        let parsed = match yaml::read(&text) {
            Ok(parsed) => parsed,
            Err(error) => {
                failures.push(format!("{name}:{error}"));
                continue;
            }
        };
        match manifest::inject(parsed, namespace, &defaults) {
            Ok(Injected {
                documents: injected,
                count: pods,
                warnings,
            }) => {
                for warning in warnings {
                    eprintln!("sidecar: warning: {name}:{warning}");
                }
                documents.extend(injected);
                count += pods;
            }
            Err(complaints) => {
                failures.extend(complaints.iter().map(|it| format!("{name}:{it}")));
            }
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\nsidecar: "));
    }
    if count == 0 {
        eprintln!("sidecar: warning: no pod got a sidecar");
    }
    let text = match args.output {
        Output::Json => format!("{:#}\n", manifest::as_list(documents)),
        Output::Yaml => {
            let documents: Vec<String> = documents.iter().map(yaml::write).collect();
            documents.join("---\n")
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(std::fs::File::open(path)?),
    };
    source.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        let why = format!("it has more than {FILE_MAX} bytes");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

fn serve(args: ServeWebhook) -> Result<ExitCode> {
    let (runtime, signals) = super::runtime()?;
    let result = runtime.block_on(LocalSet::new().run_until(served(args, signals)));
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

async fn served(args: ServeWebhook, mut signals: Signals) -> Result<()> {
    let keeper = keeper(&args)?;
    let listener = listen(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let readiness = Readiness::default();
    let shown = Arc::new(Shown::default());
    spawn_local(keeper.keep(shown.clone(), readiness.token("certificate")));
    let webhook = Webhook::new(args.what.into(), readiness.clone(), shown).context("metrics")?;
    let serving = spawn_local(webhook.serve(listener));
    info!(%address, "the webhook listens");
    tell_systemd(sd_notify::NotifyState::Ready);
    let ended = async {
        loop {
            match signals.next().await {
                Signal::Terminate => return,
                Signal::Reload | Signal::ReopenLogs => {
                    info!(
                        "the webhook has no configuration file; certificates are looked at anyway"
                    );
                }
            }
        }
    };
    tokio::select! {
        failed = serving => match failed.context("serving ended")? {
            Err(error) => return Err(error).context("TLS"),
        },
        () = ended => {}
    }
    tell_systemd(sd_notify::NotifyState::Stopping);
    // Not ready from here on, and answering still.
    let _draining = readiness.token("draining");
    info!(
        seconds = FAREWELL.as_secs(),
        "ending; API servers may ask until they have learnt of it"
    );
    tokio::select! {
        () = tokio::time::sleep(FAREWELL) => {}
        _ = signals.next() => warn!("ending at once"),
    }
    Ok(())
}

fn keeper(args: &ServeWebhook) -> Result<Keeper> {
    let keeper = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Keeper::Files {
            certificate: certificate.clone(),
            key: key.clone(),
        },
        _ => {
            let usage = |error: crate::kubernetes::ApiError| {
                Usage(format!(
                    "{error}; or name a certificate with --tls-cert and --tls-key"
                ))
            };
            let api = Api::of_pod(&args.service_account).map_err(usage)?;
            let namespace = api.namespace().map_err(usage)?;
            let service = format!("{}.{namespace}.svc", args.service);
            Keeper::Own(Own {
                terms: Terms {
                    names: vec![service],
                    lifetime: args.certificate_lifetime.0,
                },
                api,
                namespace,
                secret: args.secret.clone(),
                configuration: args.configuration.clone(),
                relied_on: RefCell::default(),
            })
        }
    };
    keeper.check().map_err(|error| Usage(error.to_string()))?;
    Ok(keeper)
}

/// `[::]` is both families where there are two.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && rustix::io::Errno::from_io_error(&error)
                    == Some(rustix::io::Errno::AFNOSUPPORT) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

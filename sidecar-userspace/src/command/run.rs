//! `run`: standalone. Loads, attaches, proxies, starts the application behind it, and ends with its exit code.

use std::{
    cell::RefCell,
    ffi::OsString,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use tokio::{process::Command, task::LocalSet};
use tracing::{error, info, warn};

use super::{
    require_root,
    standalone::Cgroups,
    supervise::{Application, LEFT_BEHIND, exit_code, supervise},
};
use crate::{
    cli::Run,
    config::SnapshotHandle,
    connection::listen::Listeners,
    kernel::{
        attach::{Enrolment, own_namespace},
        events, exclusion, listening,
        record::KernelCounters,
        workload::Subject,
    },
    lifecycle::{descriptors, readiness::Readiness, signal::Signals},
    model::{Snapshot, Steering},
    proxy::Proxy,
    sys::{cgroup::Cgroup, netns::Namespace},
    telemetry::metrics::Metrics,
};

pub fn run(args: Run) -> Result<ExitCode> {
    let snapshot = super::load(args.config.config.as_deref())?;
    require_root("run")?;
    let (runtime, signals) = super::runtime()?;
    let name = snapshot.workload.name.clone();
    let cgroups = Cgroups::create(&name, args.cgroup.as_deref())?;
    let (namespace, steering) = (own_namespace()?, Steering::from(&snapshot));
    let subject = Subject {
        application: &cgroups.application,
        proxy: &cgroups.proxy,
        namespace: &namespace,
        steering: &steering,
    };
    let mut enrolment = match Enrolment::begin(&args.pins.bpffs, &subject) {
        Ok(enrolment) => enrolment,
        Err(error) => {
            // They may be those of a sidecar that has our name and runs.
            cgroups.remove_if_empty();
            return Err(error.into());
        }
    };
    let result = runtime.block_on(LocalSet::new().run_until(proxied(
        args,
        signals,
        &snapshot,
        &subject,
        &cgroups,
        &mut enrolment,
    )));
    // A name look-up that hangs must not hold up the end.
    runtime.shutdown_background();
    end_application(&cgroups);
    let left = enrolment.leave().context("detaching");
    cgroups.remove();
    match (result, left) {
        (Ok(_), Err(error)) => Err(error),
        (result, _) => result,
    }
}

/// While the proxy runs.
async fn proxied(
    args: Run,
    signals: Signals,
    snapshot: &Snapshot,
    subject: &Subject<'_>,
    cgroups: &Cgroups,
    enrolment: &mut Enrolment,
) -> Result<ExitCode> {
    cgroups.proxy.enter()?;
    enrolment.self_test(subject.steering)?;
    let config = SnapshotHandle::new(snapshot.clone(), args.config.config);
    let metrics = Arc::new(Metrics::new().context("metrics")?);
    let counters = KernelCounters::new(enrolment.open_tables()?, enrolment.slot())?;
    metrics.registry().register(Box::new(counters))?;
    let readiness = Readiness::default();
    let identity = super::identity(&config, &metrics, &readiness)?;

    // Connections wait in the listeners' queues from the moment that they are steered.
    let listeners = Listeners::bind(&snapshot.listeners, &snapshot.timeouts, snapshot.workers)?;
    let inbound = listeners
        .inbound_fds()
        .next()
        .context("no inbound listener")?;
    enrolment.steer(subject, listeners.ports.steered, inbound)?;
    let mut proxy = Proxy::new(config.clone(), listeners, metrics);
    proxy.readiness = readiness;
    proxy.log_filter = super::log_filter();
    proxy.mesh = Some(identity.handle().clone());
    let proxy = proxy.start()?;
    let redirect = enrolment.reach().of(subject.steering.redirect.allowed());
    info!(workload = subject.steering.name, ports = ?proxy.ports(), %redirect, "steering");

    let application = match args.command.is_empty() {
        true => None,
        false => Some(start(&args.command, &cgroups.application)?),
    };
    tokio::task::spawn_local(exclusion::follow(
        enrolment.open_tables()?,
        enrolment.identity(),
        cgroups.application.clone(),
        config.clone(),
    ));
    tokio::task::spawn_local(listening::follow(
        enrolment.open_tables()?,
        enrolment.slot(),
        cgroups.application.clone(),
    ));
    if let Some(ring) = enrolment.take_events() {
        let (own, config) = (enrolment.slot(), config.clone());
        let whose = move |slot| (slot == own).then(|| Rc::new(Steering::from(&*config.load())));
        let namespace = |_: &_| Namespace::own();
        tokio::task::spawn_local(events::follow(ring, whose, namespace));
    }
    if let Some(log) = enrolment.take_log() {
        tokio::task::spawn_local(events::follow_log(log));
    }
    let enrolment = RefCell::new(enrolment);
    let in_force = config.clone();
    let looking = async {
        loop {
            tokio::time::sleep(listening::LOOK_EVERY).await;
            let steering = Steering::from(&*in_force.load());
            enrolment.borrow_mut().look(&steering);
        }
    };
    let supervised = supervise(signals, proxy, config, application, None, |snapshot| {
        if let Err(error) = enrolment.borrow_mut().reload(&Steering::from(snapshot)) {
            error!(%error, "the kernel half does not follow the new configuration");
        }
    });
    let status = tokio::select! {
        status = supervised => status?,
        () = looking => None,
    };
    Ok(status.map_or(ExitCode::SUCCESS, |status| {
        ExitCode::from(exit_code(status))
    }))
}

/// Starts the application inside its cgroup: the child enters it before it becomes the application.
fn start(command: &[OsString], cgroup: &Cgroup) -> Result<Application> {
    let own = std::env::current_exe().context("the path of this program")?;
    let mut enter = Command::new(own);
    enter
        .arg("enter")
        .arg("--cgroup")
        .arg(cgroup.path())
        .arg("--")
        .args(command);
    let child = enter.spawn().context("starting the application")?;
    let pid = child
        .id()
        .and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    if let Some(Err(error)) = pid.map(descriptors::restore_limit) {
        warn!(%error, "the application keeps the sidecar's limit of descriptors");
    }
    let cgroup = cgroup.clone();
    Ok(Application {
        child,
        signal_all: Box::new(move |signal| cgroup.signal(signal)),
    })
}

/// What the application left behind ends with it.
fn end_application(cgroups: &Cgroups) {
    if !cgroups.owns_application() {
        return;
    }
    let application = &cgroups.application;
    let deadline = Instant::now() + LEFT_BEHIND;
    application.signal(Signal::TERM);
    while application.populated() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    application.signal(Signal::KILL);
}

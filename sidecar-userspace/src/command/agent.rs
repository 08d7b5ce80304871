//! `agent`: attaches for the sidecars of this node. All that it attaches stays when it ends, however it ends; the next
//! agent goes on with it. `agent uninstall` removes it.

use std::{
    cell::RefCell,
    fs,
    path::Path,
    process::ExitCode,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use sidecar_common::record::Event;
use tokio::{
    net::TcpListener,
    task::{LocalSet, spawn_local},
};
use tracing::{info, warn};

use super::{
    Usage, look_from_the_node, require_root,
    standalone::{Cgroups, trial},
    supervise::tell_systemd,
};
use crate::{
    cli::{Agent as Arguments, AgentVerb, Serve, Uninstall},
    csi,
    enrol::{
        agent::{Agent, listen},
        caller::Host,
        foreign,
        pod::Workloads,
        state::{Kubelets, State},
    },
    kernel::{
        attach::AttachError,
        events,
        exclusion::LOOK_EVERY,
        node::{self, Node, adopted::Adopted, uninstall},
        pins,
        proof::{Proof, Reach},
    },
    kubernetes::{Api, api::SERVICE_ACCOUNT, taint},
    lifecycle::{
        descriptors,
        signal::{Signal, Signals},
    },
    model::{FailRule, Snapshot, Steering},
    telemetry::agent as telemetry,
};

/// How long a former agent may take to end.
const PREDECESSOR: Duration = Duration::from_secs(20);
/// Whether pods have processes beside their sidecar is looked at in every so many rounds.
const COMPANY_ROUNDS: u32 = 4;

pub fn run(args: Arguments) -> Result<ExitCode> {
    require_root("agent")?;
    look_from_the_node();
    match args.verb {
        Some(AgentVerb::Uninstall(args)) => uninstall(&args),
        None => serve(args.serve),
    }
}

fn serve(args: Serve) -> Result<ExitCode> {
    let (runtime, signals) = super::runtime()?;
    descriptors::raise_limit();
    let foreign = match &args.byo_proxy {
        Some(path) => foreign::load(path).map_err(|error| Usage(error.to_string()))?,
        None => Vec::new(),
    };
    let host = Host::look(Workloads::new(args.workload_cgroup.clone()))?;
    let (mut node, adopted) = open(&args.pins.bpffs)?;
    if let Err(error) = prepare(&mut node, &args.pins.bpffs) {
        // A failed start leaves nothing but what serves pods.
        let _ = node.close();
        return Err(error);
    }
    info!(
        adopted = adopted.len(),
        redirect = %node.reach(),
        "the kernel half is loaded"
    );
    let kubelets = Kubelets::new(host.mount_point(), &args.kubelet_cgroup);
    let mut state = State::new(node, host, adopted, foreign, kubelets);
    state.look_for_kubelets();
    let state = Rc::new(RefCell::new(state));
    let served = runtime.block_on(LocalSet::new().run_until(served(&args, signals, &state)));
    // Its tasks hold the state, too.
    drop(runtime);
    // For those who look whether an agent is there.
    let _ = fs::remove_file(&args.socket);
    if let Some(state) = Rc::into_inner(state) {
        let (pods, _) = state.borrow().population();
        info!(
            pods,
            "ending: what is attached stays, for the next agent or `sidecar agent uninstall`"
        );
        state.into_inner().close()?;
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Tries redirect, and puts our programs in the place of a former agent's.
fn prepare(node: &mut Node, bpffs: &Path) -> Result<()> {
    let reach = match node.reach().is_off() {
        true => node.reach().clone(),
        false => self_test(bpffs)
            .unwrap_or_else(|error| Reach::off(Proof::Programs, format!("{error:#}"))),
    };
    node.warm_up()?;
    if node.is_outdated() {
        let upgraded = node.upgrade(&reach);
        upgraded.context("the pods of the former agent keep its programs: start that one again, or `sidecar agent uninstall`")?;
    }
    node.proven(reach)?;
    node.sign()?;
    Ok(())
}

/// Until a signal says so.
async fn served(args: &Serve, mut signals: Signals, state: &Rc<RefCell<State>>) -> Result<()> {
    let api = args
        .untaint
        .as_ref()
        .map(|_| Api::of_pod(Path::new(SERVICE_ACCOUNT)));
    let api = api
        .transpose()
        .map_err(|error| Usage(format!("--untaint: {error}")))?;
    let admin = TcpListener::bind(args.admin)
        .await
        .with_context(|| format!("cannot listen on {} for admin connections", args.admin))?;
    let listener = listen(&args.socket)?;
    let agent = Agent::new(state.clone());
    spawn_local(telemetry::serve(
        admin,
        Rc::new(telemetry::Told {
            state: state.clone(),
            agent: agent.clone(),
            started: Instant::now(),
            set_log_filter: super::log_filter(),
        }),
    ));
    let events = state.borrow_mut().node().take_events();
    if let Some(events) = events {
        let state = state.clone();
        let namespace = {
            let state = state.clone();
            move |event: &Event| state.borrow().namespace(event.workload)
        };
        let whose = move |slot| state.borrow().whose(slot);
        spawn_local(events::follow(events, whose, namespace));
    }
    spawn_local(look_after(state.clone()));
    spawn_local(agent.serve(listener));
    let _csi = match &args.csi {
        Some(kubelet) => {
            let directory = args.socket.parent().unwrap_or(Path::new("/"));
            let served = csi::serve(kubelet, directory);
            Some(served.context("cannot serve the kubelet as a CSI driver")?)
        }
        None => None,
    };
    info!(socket = %args.socket.display(), admin = %args.admin, "sidecars can enrol");
    tell_systemd(NotifyState::Ready);
    if let (Some(api), Some(node)) = (api, args.untaint.clone()) {
        spawn_local(async move { taint::remove(&api, &node).await });
    }
    loop {
        match signals.next().await {
            Signal::Terminate => break,
            Signal::Reload | Signal::ReopenLogs => info!("the agent has no configuration file"),
        }
    }
    tell_systemd(NotifyState::Stopping);
    Ok(())
}

async fn look_after(state: Rc<RefCell<State>>) {
    for round in (0..COMPANY_ROUNDS).cycle() {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut state = state.borrow_mut();
        state.look_after(round == 0);
        if round == 0 {
            state.look_for_foreign();
            state.look_for_kubelets();
        }
    }
}

/// Waits for a former agent to end: a new one may be started while the old one is still at it.
fn open(base: &Path) -> Result<(Node, Vec<Adopted>), AttachError> {
    let deadline = Instant::now() + PREDECESSOR;
    let mut said = false;
    loop {
        match Node::open(base) {
            Err(error) if node::is_taken(&error) && Instant::now() < deadline => {
                if !said {
                    said = true;
                    warn!(%error, "waiting for it to end");
                }
                thread::sleep(Duration::from_millis(50));
            }
            opened => return opened,
        }
    }
}

/// Tries on real sockets of a workload of our own how far redirect may go. In a directory of its own, so that no pod has
/// anything to do with programs that may fail.
fn self_test(base: &Path) -> Result<Reach> {
    let base = &base.join(pins::TRIAL);
    pins::discard(base)?;
    let steering = Steering {
        fail_rule: FailRule::Open,
        name: format!("agent-{}", std::process::id()),
        ..Steering::from(&Snapshot::builtin())
    };
    let cgroups = Cgroups::create(&steering.name, None)?;
    let tried = trial(base, &steering, &cgroups);
    cgroups.remove();
    Ok(tried?.reach)
}

fn uninstall(args: &Uninstall) -> Result<ExitCode> {
    let removed = uninstall::everything(&args.pins.bpffs)?;
    for what in &removed.what {
        println!("removed {what}");
    }
    for kept in &removed.kept {
        println!("kept {kept}");
    }
    for left in &removed.left {
        println!("left {left}");
    }
    if removed.what.is_empty() && removed.left.is_empty() {
        println!("nothing is left behind");
    }
    Ok(match removed.left.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

//! The pods of the node as the agent knows them: who is attached, which sidecar serves, what happens without one.

mod after;
mod foreign;
mod kubelet;
mod shown;

pub use kubelet::Kubelets;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use rustix::net::{
    ipproto,
    sockopt::{socket_acceptconn, socket_protocol},
};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::{
    caller::{Caller, CallerError, Host},
    foreign::{Foreign, ForeignError},
    message::{Enrol, Enrolled, Listeners, Reply},
};
use crate::{
    kernel::{
        attach::AttachError,
        node::{Adopted, Node},
        workload::{Attached, Listening, Subject},
    },
    model::{FailRule, Snapshot, Steering},
    sys::{cgroup::Cgroup, netns::Namespace},
};

/// Replies that a sidecar has not taken yet.
const UNREAD: usize = 16;

/// What is handed to the connection of a sidecar, to be sent.
pub type ToSidecar = mpsc::Sender<(Reply, Vec<OwnedFd>)>;

#[derive(Debug, Error)]
pub enum EnrolError {
    #[error(transparent)]
    Caller(#[from] CallerError),
    #[error("{0}")]
    Rules(String),
    #[error(
        "an enrolment hands over the sidecar's listeners; there were {0} descriptors, not as many as it says"
    )]
    Descriptors(usize),
    #[error("what was handed over is no listening TCP socket")]
    NoListener,
    #[error("the listener is in another network namespace than the sidecar")]
    ForeignListener,
    #[error(
        "the pod has a sidecar that runs, in the cgroup {0}; only one from the same cgroup may take over from it"
    )]
    Served(String),
    #[error("the cgroup {0} belongs to a workload that is enrolled already")]
    Nested(String),
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    #[error("the agent cannot attach: {0}")]
    Attach(#[from] AttachError),
}

/// A pod that is attached.
struct Pod {
    cgroup: Cgroup,
    attached: Attached,
    steering: Rc<Steering>,
    sidecar: Option<Sidecar>,
    /// When it was found to be without a sidecar.
    alone_since: Option<Instant>,
    /// Whether processes beside the sidecar were there at the last look.
    company: Option<bool>,
    /// CPU time that others than the sidecar had taken when it enrolled: who comes and goes between two looks is noticed by it.
    taken_by_others: Option<Duration>,
}

/// A sidecar that is connected.
struct Sidecar {
    /// Of its connection.
    id: u64,
    pid: u32,
    uid: u32,
    cgroup: Cgroup,
    cgroup_id: u64,
    release: String,
    to: ToSidecar,
    /// Of a proxy that has no connection.
    process: Option<OwnedFd>,
}

/// What is attached for a sidecar.
struct Newcomer<'a> {
    cgroup: &'a Cgroup,
    /// The cgroup's.
    id: u64,
    namespace: &'a Namespace,
    steering: Rc<Steering>,
    outbound_port: u16,
    listeners: Listening<'a>,
    /// These very listeners were enrolled before.
    again: bool,
}

/// Everything that the agent knows. One owner, one thread.
pub struct State {
    pub host: Host,
    node: Node,
    /// By the id of their cgroup.
    pods: BTreeMap<u64, Pod>,
    /// Proxies that do not enrol themselves, and what was last said of each.
    foreign: Vec<(Foreign, Option<String>)>,
    kubelets: Kubelets,
    /// Sidecars that wait for the listeners of the one that serves their pod.
    waiting: BTreeMap<u64, (u64, ToSidecar)>,
    pub totals: Totals,
}

/// Since the agent started.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Totals {
    pub enrolments: u64,
    pub hand_overs: u64,
    pub refusals: u64,
    pub departures: u64,
}

impl State {
    pub fn new(
        node: Node,
        host: Host,
        adopted: Vec<Adopted>,
        foreign: Vec<Foreign>,
        kubelets: Kubelets,
    ) -> Self {
        let ids: BTreeSet<u64> = adopted.iter().map(|adopted| adopted.pod).collect();
        let mut cgroups = Cgroup::with_ids(&ids);
        let mut state = Self {
            host,
            node,
            pods: BTreeMap::new(),
            foreign: foreign.into_iter().map(|f| (f, None)).collect(),
            kubelets,
            waiting: BTreeMap::new(),
            totals: Totals::default(),
        };
        for adopted in adopted {
            let Some(cgroup) = cgroups.remove(&adopted.pod) else {
                state.leave(&adopted.name, adopted.attached, "its cgroup is gone");
                continue;
            };
            // Until its sidecar says more.
            let steering = Steering {
                name: adopted.name,
                fail_rule: match adopted.fails_closed {
                    true => FailRule::Closed,
                    false => FailRule::Open,
                },
                ..Steering::from(&Snapshot::builtin())
            };
            info!(workload = steering.name, cgroup = %cgroup.path().display(), "adopted");
            let pod = Pod {
                cgroup,
                attached: adopted.attached,
                steering: Rc::new(steering),
                sidecar: None,
                alone_since: Some(Instant::now()),
                company: None,
                taken_by_others: None,
            };
            if let Some(twice) = state.pods.insert(adopted.pod, pod) {
                // An agent was killed between attaching anew and removing the old.
                state.leave(
                    &twice.steering.name.clone(),
                    twice.attached,
                    "attached twice",
                );
            }
        }
        state
    }

    pub fn node(&mut self) -> &mut Node {
        &mut self.node
    }

    /// Whose a slot is, for events of the kernel half.
    pub fn whose(&self, slot: u32) -> Option<Rc<Steering>> {
        let mut pods = self.pods.values();
        let ours = |pod: &&Pod| pod.attached.slot() == slot && self.node.is_ours(&pod.attached);
        let pod = pods.find(ours)?;
        Some(pod.steering.clone())
    }

    /// Attaches for the caller, or hands its pod over to it. `id`: of the connection.
    pub fn enrol(
        &mut self,
        id: u64,
        caller: &Caller,
        enrol: Enrol,
        descriptors: Vec<OwnedFd>,
        to: ToSidecar,
    ) -> Result<Enrolled, EnrolError> {
        enrol.steering.check().map_err(EnrolError::Rules)?;
        let count = descriptors.len();
        let inbound = descriptors.get(enrol.listeners.outbound);
        let (Some(inbound), true) = (inbound, enrol.listeners.count() == Some(count)) else {
            return Err(EnrolError::Descriptors(count));
        };
        let namespace = Namespace::of_socket(inbound).map_err(|_| EnrolError::NoListener)?;
        for listener in &descriptors {
            check_listener(listener, caller)?;
        }
        let unmarked: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let listeners = Listening {
            inbound: inbound.as_fd(),
            unmarked: &unmarked,
        };
        self.check_place(id, caller)?;
        self.install(
            Newcomer {
                cgroup: &caller.pod,
                id: caller.pod_id,
                namespace: &namespace,
                steering: Rc::new(*enrol.steering),
                outbound_port: enrol.outbound_port,
                listeners,
                again: enrol.again,
            },
            Sidecar {
                id,
                pid: caller.pid,
                uid: caller.uid,
                cgroup: caller.proxy.clone(),
                cgroup_id: caller.proxy_id,
                release: enrol.release,
                to,
                process: None,
            },
        )?;
        Ok(Enrolled {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            no_redirect: self.node.no_redirect().map(str::to_owned),
        })
    }

    /// Attaches the pod, or hands it over to the sidecar.
    fn install(&mut self, new: Newcomer<'_>, sidecar: Sidecar) -> Result<(), EnrolError> {
        let started = Instant::now();
        let Newcomer {
            cgroup,
            id,
            namespace,
            steering,
            outbound_port: port,
            listeners,
            again,
        } = new;
        let subject = Subject {
            application: cgroup,
            proxy: &sidecar.cgroup,
            namespace,
            steering: &steering,
        };
        let node = &mut self.node;
        let (attached, former) = match self.pods.remove(&id) {
            // Its connections began with maps that we do not understand, and its sidecar has not changed.
            Some(pod) if again && !node.is_ours(&pod.attached) => (pod.attached, None),
            Some(mut pod) if node.can_hand_over(&pod.attached, namespace.cookie) => {
                let handed = node.hand_over(&mut pod.attached, &subject, port, listeners);
                if let Err(error) = handed {
                    self.pods.insert(id, pod);
                    return Err(error.into());
                }
                self.totals.hand_overs += 1;
                (pod.attached, pod.sidecar)
            }
            former => match node.attach(id, &subject, port, listeners) {
                Ok(attached) => {
                    let sidecar = former.and_then(|pod| {
                        self.leave(&pod.steering.name, pod.attached, "attached anew");
                        pod.sidecar
                    });
                    (attached, sidecar)
                }
                Err(error) => {
                    former.map(|pod| self.pods.insert(id, pod));
                    return Err(error.into());
                }
            },
        };
        if let Some(old) = former.filter(|old| old.id != sidecar.id) {
            say(&old.to, Reply::Superseded);
        }
        self.totals.enrolments += 1;
        info!(
            workload = steering.name, pid = sidecar.pid, uid = sidecar.uid, cgroup = %cgroup.path().display(),
            slot = attached.slot(), release = sidecar.release, took = ?started.elapsed(), "enrolled"
        );
        let pod = Pod {
            cgroup: cgroup.clone(),
            attached,
            steering,
            alone_since: None,
            company: None,
            taken_by_others: after::taken_by_others(cgroup, &sidecar.cgroup),
            sidecar: Some(sidecar),
        };
        self.pods.insert(id, pod);
        self.forget_gone_proxies(id);
        Ok(())
    }

    /// Whether the caller may speak for its pod now.
    fn check_place(&self, id: u64, caller: &Caller) -> Result<(), EnrolError> {
        match self.pods.get(&caller.pod_id) {
            Some(pod) => {
                let other = pod.sidecar.as_ref().filter(|other| other.id != id);
                match other {
                    Some(other)
                        if other.cgroup_id != caller.proxy_id && other.cgroup.populated() =>
                    {
                        Err(EnrolError::Served(
                            other.cgroup.path().display().to_string(),
                        ))
                    }
                    _ => Ok(()),
                }
            }
            None => {
                caller.check_pod(&self.host)?;
                self.check_overlap(&caller.pod)
            }
        }
    }

    /// A cgroup within or around a pod is no pod.
    fn check_overlap(&self, cgroup: &Cgroup) -> Result<(), EnrolError> {
        let overlaps = |pod: &&Pod| pod.cgroup.contains(cgroup) || cgroup.contains(&pod.cgroup);
        match self.pods.values().find(overlaps) {
            Some(pod) => Err(EnrolError::Nested(pod.cgroup.path().display().to_string())),
            None => Ok(()),
        }
    }

    /// The caller's sidecar has new rules.
    pub fn reload(&mut self, id: u64, pod: u64, steering: Steering) -> Result<(), EnrolError> {
        steering.check().map_err(EnrolError::Rules)?;
        let Some(pod) = self.pods.get_mut(&pod) else {
            return Ok(());
        };
        // A sidecar that was superseded has no say any more.
        if pod.sidecar.as_ref().is_some_and(|sidecar| sidecar.id == id) {
            self.node.reload(&mut pod.attached, &steering)?;
            pod.steering = Rc::new(steering);
            info!(workload = pod.steering.name, "follows a new configuration");
        }
        Ok(())
    }

    /// The caller wants the listeners of the sidecar that serves its pod. `false`: there is none that it may ask.
    pub fn take_over(&mut self, id: u64, caller: &Caller, to: ToSidecar) -> bool {
        let sidecar = self
            .pods
            .get(&caller.pod_id)
            .and_then(|pod| pod.sidecar.as_ref());
        let Some(old) = sidecar.filter(|old| old.cgroup_id == caller.proxy_id && old.id != id)
        else {
            return false;
        };
        info!(
            old = old.pid,
            new = caller.pid,
            "a new sidecar asks for the listeners"
        );
        let asked = say(&old.to, Reply::HandOver);
        if asked {
            self.waiting.insert(old.id, (id, to));
        }
        asked
    }

    /// A sidecar hands its listeners over. `false`: nobody has asked it to.
    pub fn pass_on(&mut self, id: u64, listeners: Listeners, descriptors: Vec<OwnedFd>) -> bool {
        let Some((_, to)) = self.waiting.remove(&id) else {
            return false;
        };
        if listeners.count() == Some(descriptors.len()) {
            // If it is gone, the old one goes on.
            let _ = to.try_send((Reply::Listeners(listeners), descriptors));
        } else {
            warn!("a sidecar handed over other sockets than it said");
            say(
                &to,
                Reply::Refused {
                    reason: "the old sidecar's listeners are not usable".into(),
                },
            );
        }
        true
    }

    /// A connection has ended.
    pub fn hung_up(&mut self, id: u64, pod_id: u64) {
        self.waiting.retain(|old, (new, to)| {
            if *old == id {
                say(
                    to,
                    Reply::Refused {
                        reason: "the old sidecar has gone".into(),
                    },
                );
            }
            *old != id && *new != id
        });
        let Some(pod) = self.pods.get_mut(&pod_id) else {
            return;
        };
        if pod.sidecar.as_ref().is_none_or(|sidecar| sidecar.id != id) {
            return;
        }
        pod.sidecar = None;
        pod.alone_since = Some(Instant::now());
        let rule = pod.steering.fail_rule;
        let name = pod.steering.name.clone();
        match rule {
            FailRule::Closed => {
                warn!(
                    workload = name,
                    "its sidecar has gone: connections are refused (failRule: closed)"
                );
            }
            FailRule::Open => {
                warn!(
                    workload = name,
                    "its sidecar has gone: connections bypass it (failRule: open)"
                );
                self.remove(pod_id, "no sidecar");
            }
        }
    }

    /// The agent ends: everything stays as it is, for the next one.
    pub fn close(self) -> Result<(), AttachError> {
        drop(self.pods);
        self.node.close()
    }

    fn remove(&mut self, id: u64, why: &str) {
        if let Some(pod) = self.pods.remove(&id) {
            self.leave(&pod.steering.name, pod.attached, why);
        }
    }

    fn leave(&mut self, name: &str, attached: Attached, why: &str) {
        let slot = attached.slot();
        self.totals.departures += 1;
        match self.node.leave(attached) {
            Ok(()) => info!(workload = name, slot, why, "detached"),
            Err(error) => error!(workload = name, slot, %error, "it could not be detached"),
        }
    }
}

/// `false` if the sidecar does not read what it is told, or is gone.
fn say(to: &ToSidecar, reply: Reply) -> bool {
    to.try_send((reply, Vec::new())).is_ok()
}

/// A pair for one connection: what is put into the first comes out of the second.
pub fn channel() -> (ToSidecar, mpsc::Receiver<(Reply, Vec<OwnedFd>)>) {
    mpsc::channel(UNREAD)
}

/// It must be a listener, and of the caller's namespace.
fn check_listener(listener: &OwnedFd, caller: &Caller) -> Result<(), EnrolError> {
    let tcp = socket_protocol(listener).is_ok_and(|p| p == Some(ipproto::TCP));
    if !tcp || socket_acceptconn(listener) != Ok(true) {
        return Err(EnrolError::NoListener);
    }
    let namespace = Namespace::of_socket(listener).and_then(|namespace| namespace.id());
    match namespace {
        Ok(id) if id == caller.namespace => Ok(()),
        _ => Err(EnrolError::ForeignListener),
    }
}

//! The pods of the node as the agent knows them: who is attached, which sidecar serves, what happens without one.

mod after;
mod enrolment;
mod foreign;
mod hand_over;
mod kubelet;
mod serving;
mod shown;

pub use kubelet::Kubelets;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use self::{enrolment::EnrolError, serving::Detached};
use super::{caller::Host, foreign::Foreign, message::Reply};
use crate::{
    kernel::{
        attach::AttachError,
        node::{Node, adopted::Adopted},
        workload::Attached,
    },
    model::{FailRule, Snapshot, Steering},
    sys::{cgroup::Cgroup, netns::Namespace},
};

/// Replies that a sidecar has not taken yet.
const UNREAD: usize = 16;

/// What is handed to the connection of a sidecar, to be sent.
pub type ToSidecar = mpsc::Sender<(Reply, Vec<OwnedFd>)>;

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
    /// Who served pods that are not attached now.
    detached: Detached,
    /// When leftovers in the maps were looked for last.
    garbage_since: Instant,
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
            detached: Detached::default(),
            garbage_since: Instant::now(),
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
            if !state.host.is_workload(&cgroup) && !state.is_foreign(&cgroup) {
                warn!(
                    workload = steering.name, cgroup = %cgroup.path().display(),
                    "what was attached stays, but its sidecar is not to enrol it again: nothing says that this cgroup is one workload. \
                     Name it with --workload-cgroup, or have `sidecar agent uninstall` detach it"
                );
            }
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

    /// The network namespace of the pod in a slot, once its sidecar has come to this agent.
    pub fn namespace(&self, slot: u32) -> io::Result<Namespace> {
        let mut pods = self.pods.values();
        let pod = pods.find(|pod| pod.attached.slot() == slot && self.node.is_ours(&pod.attached));
        pod.ok_or(io::ErrorKind::NotFound)?.attached.namespace()
    }

    /// The caller's sidecar has new rules.
    pub fn reload(&mut self, id: u64, pod: u64, steering: Steering) -> Result<(), EnrolError> {
        steering.check().map_err(EnrolError::Rules)?;
        let Some(pod) = self.pods.get_mut(&pod) else {
            return Ok(());
        };
        // A sidecar that was superseded has no say any more.
        if pod.sidecar.as_ref().is_some_and(|sidecar| sidecar.id == id) {
            self.node
                .reload(&mut pod.attached, &pod.cgroup, &steering)?;
            pod.steering = Rc::new(steering);
            info!(workload = pod.steering.name, "follows a new configuration");
        }
        Ok(())
    }

    /// A connection has ended.
    pub fn hung_up(&mut self, id: u64, pod_id: u64) {
        self.wait_no_more(id);
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
        self.remember_proxy(id);
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

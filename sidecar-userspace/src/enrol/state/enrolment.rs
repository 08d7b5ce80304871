//! A sidecar comes: whether it may speak for its pod, and what is attached for it, or handed over to it.

use std::{
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Instant,
};

use rustix::net::{
    ipproto,
    sockopt::{socket_acceptconn, socket_protocol},
};
use thiserror::Error;
use tracing::info;

use super::{Pod, Sidecar, State, ToSidecar, after, say};
use crate::{
    enrol::{
        caller::{Caller, CallerError},
        foreign::ForeignError,
        message::{Enrol, Enrolled, Reply},
    },
    kernel::{
        attach::AttachError,
        workload::{Listening, Subject},
    },
    model::Steering,
    sys::{cgroup::Cgroup, netns::Namespace},
};

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

/// What is attached for a sidecar.
pub(super) struct Newcomer<'a> {
    pub(super) cgroup: &'a Cgroup,
    /// The cgroup's.
    pub(super) id: u64,
    pub(super) namespace: &'a Namespace,
    pub(super) steering: Rc<Steering>,
    pub(super) outbound_port: u16,
    pub(super) listeners: Listening<'a>,
    /// These very listeners were enrolled before.
    pub(super) again: bool,
}

impl State {
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
        let allowed = enrol.steering.redirect.allowed();
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
            redirect: self.node.reach().of(allowed).to_string(),
        })
    }

    /// Attaches the pod, or hands it over to the sidecar.
    pub(super) fn install(
        &mut self,
        new: Newcomer<'_>,
        sidecar: Sidecar,
    ) -> Result<(), EnrolError> {
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
        self.detached.forget(id);
        self.forget_gone_proxies(id);
        Ok(())
    }

    /// Whether the caller may speak for its pod now.
    fn check_place(&self, id: u64, caller: &Caller) -> Result<(), EnrolError> {
        if let Some(other) = self.served_by(Some(id), caller) {
            return Err(EnrolError::Served(other.path().display().to_string()));
        }
        match self.pods.contains_key(&caller.pod_id) {
            true => Ok(()),
            false => {
                caller.check_pod(&self.host)?;
                self.check_overlap(&caller.pod)
            }
        }
    }

    /// A cgroup within or around a pod is no pod.
    pub(super) fn check_overlap(&self, cgroup: &Cgroup) -> Result<(), EnrolError> {
        let overlaps = |pod: &&Pod| pod.cgroup.contains(cgroup) || cgroup.contains(&pod.cgroup);
        match self.pods.values().find(overlaps) {
            Some(pod) => Err(EnrolError::Nested(pod.cgroup.path().display().to_string())),
            None => Ok(()),
        }
    }
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

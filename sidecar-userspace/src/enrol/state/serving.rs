//! Who is a pod's proxy: the cgroup whose sidecar enrolled first, for as long as anything runs in it. What another cgroup of the
//! pod asks is refused meanwhile, whether the sidecar is connected, has lost its connection, or has another agent to find.

use std::collections::BTreeMap;

use super::{Pod, State};
use crate::{enrol::caller::Caller, kernel::links::serves_proxy, sys::cgroup::Cgroup};

/// A proxy's cgroup and its id, by which it is told from a later one with the same path.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) cgroup: Cgroup,
    id: u64,
}

impl Proxy {
    fn lives(&self) -> bool {
        self.cgroup.id().is_ok_and(|id| id == self.id) && self.cgroup.populated()
    }
}

/// Proxies of pods that are not attached any more (`failRule: open`), by the id of the pod's cgroup.
#[derive(Debug, Default)]
pub(super) struct Detached(BTreeMap<u64, Proxy>);

impl Detached {
    /// Those whose cgroup is empty, or gone, have no claim.
    pub(super) fn forget_gone(&mut self) {
        self.0.retain(|_, proxy| proxy.lives());
    }

    pub(super) fn forget(&mut self, pod: u64) {
        self.0.remove(&pod);
    }
}

impl State {
    /// The cgroup that keeps the caller from serving its pod. `id`: of the caller's connection, if it has one.
    pub(super) fn served_by(&self, id: Option<u64>, caller: &Caller) -> Option<Cgroup> {
        let Some(pod) = self.pods.get(&caller.pod_id) else {
            let proxy = self.detached.0.get(&caller.pod_id)?;
            let other = proxy.id != caller.proxy_id && proxy.lives();
            return other.then(|| proxy.cgroup.clone());
        };
        if let Some(sidecar) = &pod.sidecar {
            let other = Some(sidecar.id) != id
                && sidecar.cgroup_id != caller.proxy_id
                && sidecar.cgroup.populated();
            return other.then(|| sidecar.cgroup.clone());
        }
        // It has lost its connection, or this agent has not met it: the links that are pinned for it say who it is.
        if serves_proxy(pod.attached.directory(), caller.proxy_id) {
            return None;
        }
        proxy_of(pod).map(|proxy| proxy.cgroup)
    }

    /// Whether the caller is, or could become, the proxy of its pod.
    pub fn may_serve(&self, caller: &Caller) -> bool {
        self.served_by(None, caller).is_none()
    }

    /// The pod is about to be detached while its proxy may still run.
    pub(super) fn remember_proxy(&mut self, id: u64) {
        if let Some(proxy) = self.pods.get(&id).and_then(proxy_of) {
            self.detached.0.insert(id, proxy);
        }
    }
}

/// The cgroup of the pod for which a proxy's links are pinned, if anything runs in it.
fn proxy_of(pod: &Pod) -> Option<Proxy> {
    let children = pod.cgroup.children().into_iter();
    let mut proxies = children.filter_map(|cgroup| {
        let id = cgroup.id().ok()?;
        serves_proxy(pod.attached.directory(), id).then_some(Proxy { cgroup, id })
    });
    proxies.find(Proxy::lives)
}

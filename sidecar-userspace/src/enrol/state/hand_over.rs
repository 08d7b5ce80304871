//! A new sidecar of a pod asks for the listeners of the one that serves it, by way of the agent.

use std::os::fd::OwnedFd;

use tracing::{info, warn};

use super::{State, ToSidecar, say};
use crate::enrol::{
    caller::Caller,
    message::{Listeners, Reply},
};

impl State {
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

    /// The connection `id` has ended, and with it what waited for it or by it.
    pub(super) fn wait_no_more(&mut self, id: u64) {
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
    }
}

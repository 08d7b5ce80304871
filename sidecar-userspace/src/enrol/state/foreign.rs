//! Pods whose proxies do not enrol themselves: looked for, and looked after.

use std::{net::SocketAddr, os::fd::AsFd, rc::Rc};

use rustix::net::getsockname;
use tracing::warn;

use super::{
    Sidecar, State, channel,
    enrolment::{EnrolError, Newcomer},
};
use crate::{
    enrol::{
        caller::{CallerError, is_alive},
        foreign::ForeignError,
    },
    kernel::{links::serves_proxy, workload::Listening},
    sys::cgroup::Cgroup,
};

impl State {
    /// Whether the operator's file names it.
    pub(super) fn is_foreign(&self, cgroup: &Cgroup) -> bool {
        let mut named = self.foreign.iter();
        named.any(|(foreign, _)| foreign.cgroup().is_ok_and(|named| named == *cgroup))
    }

    /// Looks for proxies that do not enrol themselves, and whether those that were found still run.
    pub fn look_for_foreign(&mut self) {
        for number in 0..self.foreign.len() {
            if let Err(error) = self.look_for(number)
                && let Some((foreign, said)) = self.foreign.get_mut(number)
                && said.replace(error.to_string()) != Some(error.to_string())
            {
                warn!(workload = foreign.steering.name, %error, "no proxy to steer to");
            }
        }
    }

    fn look_for(&mut self, number: usize) -> Result<(), EnrolError> {
        let Some((foreign, _)) = self.foreign.get(number) else {
            return Ok(());
        };
        let foreign = foreign.clone();
        // Never that of a connection, which count from below.
        let id = u64::MAX - number as u64;
        let cgroup = foreign.cgroup().map_err(ForeignError::from)?;
        let pod_id = cgroup.id().map_err(ForeignError::from)?;
        let sidecar = self.pods.get(&pod_id).and_then(|pod| pod.sidecar.as_ref());
        match sidecar {
            // One that enrolled itself is preferred.
            Some(sidecar) if sidecar.id != id => return Ok(()),
            Some(sidecar)
                if sidecar
                    .process
                    .as_ref()
                    .is_some_and(|p| is_alive(p.as_fd())) =>
            {
                return Ok(());
            }
            Some(_) => self.hung_up(id, pod_id),
            None => {}
        }
        let found = foreign.look()?;
        if self
            .host
            .is_host(found.namespace.id().map_err(ForeignError::Namespace)?)
        {
            return Err(CallerError::HostNetwork.into());
        }
        if !self.pods.contains_key(&pod_id) {
            self.check_overlap(&found.cgroup)?;
        }
        let listeners: Vec<_> = found.sockets.iter().map(AsFd::as_fd).collect();
        let Some(inbound) = listeners.first() else {
            return Ok(());
        };
        let proxy_id = found.proxy.id().map_err(ForeignError::from)?;
        // The agent has just started, and the pod is attached for a proxy in this cgroup.
        let again = self.pods.get(&pod_id).is_some_and(|pod| {
            pod.company.is_none()
                && pod.sidecar.is_none()
                && serves_proxy(pod.attached.directory(), proxy_id)
        });
        let sidecar = Sidecar {
            id,
            pid: found.pid,
            uid: 0,
            cgroup_id: proxy_id,
            cgroup: found.proxy,
            release: "foreign".to_owned(),
            to: channel().0,
            process: Some(found.process),
        };
        let mut steering = foreign.steering;
        let served = listeners.iter().filter_map(|listener| {
            let address = SocketAddr::try_from(getsockname(listener).ok()?).ok()?;
            Some(address.port())
        });
        // What the proxy itself serves, such as its health, is not the application's.
        steering.inbound_exclude_ports.extend(
            served.filter(|port| ![foreign.inbound_port, foreign.outbound_port].contains(port)),
        );
        self.install(
            Newcomer {
                cgroup: &found.cgroup,
                id: pod_id,
                namespace: &found.namespace,
                steering: Rc::new(steering),
                outbound_port: foreign.outbound_port,
                listeners: Listening {
                    inbound: *inbound,
                    unmarked: &listeners,
                },
                again,
            },
            sidecar,
        )?;
        if let Some((_, said)) = self.foreign.get_mut(number) {
            *said = None;
        }
        Ok(())
    }
}

//! Step accept: where sockets of a workload listen, as userspace sees it.
//!
//! The kernel half notes each `listen()` of the application itself. It misses sockets that were made elsewhere and handed in,
//! and those of Multipath TCP, and it cannot tell when the last of several sockets at one place is closed. So userspace
//! looks, again and again. In a network namespace of the workload's own what was not seen then is closed for a while, and
//! connections there are refused; when nobody looks any more it is unknown, and captured.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use sidecar_common::{
    address::Ip,
    settings::{ListeningKey, MAX_LISTENING},
};
use tracing::{debug, warn};

use super::{
    held::{self, Budget},
    load::LoadError,
    tables::Tables,
};
use crate::sys::{
    cgroup::Cgroup,
    diag::{Diag, Listener},
    netns::Namespace,
};

/// How often.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And where that is too much for one look, because of the number of listeners.
const TOO_MANY_EVERY: Duration = Duration::from_secs(10);
/// How long what was seen is believed.
const BELIEVED: Duration = Duration::from_secs(5);
/// In so many looks leftovers in the maps are looked for.
const COLLECT_EVERY_LOOKS: u32 = 10;
/// How long a listener is believed not to be of the workload: it may be handed in.
const STRANGER: Duration = Duration::from_secs(5);

/// Looks at a network namespace of the workload's own.
#[derive(Debug)]
pub struct Look {
    /// `None` after a failure: half of an answer may be left in it. Then nothing is known until the workload is handed over.
    diag: Option<Diag>,
    slot: u32,
    application: Cgroup,
    /// The proxy's inbound listener: nobody is to find it.
    proxy_port: u16,
    next: Instant,
}

impl Look {
    pub fn new(
        namespace: &Namespace,
        slot: u32,
        application: &Cgroup,
        proxy_port: u16,
    ) -> io::Result<Self> {
        Ok(Self {
            diag: Some(Diag::new(namespace)?),
            slot,
            application: application.clone(),
            proxy_port,
            next: Instant::now(),
        })
    }

    /// The namespace, as long as it can be looked at.
    pub fn namespace(&self) -> io::Result<Namespace> {
        let diag = self.diag.as_ref();
        diag.ok_or(io::ErrorKind::NotConnected)?.namespace()
    }

    /// Looks if it is time. `excluded`: cgroups whose listeners are left alone.
    pub fn take(&mut self, tables: &mut Tables, excluded: &[Cgroup]) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + LOOK_EVERY;
        if let Err(error) = self.look(tables, excluded) {
            debug!(slot = self.slot, %error, "who listens is not known: every port is captured");
            tables.close_until(self.slot, 0);
            let too_many =
                matches!(&error, LookError::Diag(e) if e.kind() == io::ErrorKind::QuotaExceeded);
            if !too_many {
                self.diag = None;
            }
            self.next = Instant::now() + TOO_MANY_EVERY;
        }
    }

    fn look(&self, tables: &mut Tables, excluded: &[Cgroup]) -> Result<(), LookError> {
        let Some(diag) = &self.diag else {
            return Ok(());
        };
        let before_ns = monotonic_ns();
        let listeners = diag.listeners(MAX_LISTENING as usize)?;
        let left_alone = self.left_alone(&listeners, excluded);
        let mut places = BTreeMap::new();
        for listener in &listeners {
            if listener.address.port() == self.proxy_port {
                continue;
            }
            let alone = left_alone.contains(&listener.inode);
            for place in self::places(listener) {
                // Where anybody else listens as well, it counts.
                *places.entry(place).or_insert(alone) &= alone;
            }
        }
        tables.renew_listening(self.slot, &places, &BTreeSet::new(), before_ns)?;
        let believed_ns = u64::try_from(BELIEVED.as_nanos()).unwrap_or(0);
        tables.close_until(self.slot, before_ns + believed_ns);
        Ok(())
    }

    /// Inodes of the listeners that processes of the excluded cgroups hold, and no other of the pod. None where that takes too much to
    /// find out.
    fn left_alone(&self, listeners: &[Listener], excluded: &[Cgroup]) -> BTreeSet<u32> {
        if excluded.is_empty() {
            return BTreeSet::new();
        }
        let find = || {
            let mut budget = Budget::default();
            let anywhere = |_: &Path| true;
            let cgroups = excluded
                .iter()
                .flat_map(|top| held::tree(top, &BTreeSet::new()));
            let cgroups: Vec<_> = cgroups.map(|(_, cgroup)| cgroup).collect();
            let mut alone = held::sockets(&cgroups, anywhere, &mut budget)?;
            alone.retain(|inode| listeners.iter().any(|listener| listener.inode == *inode));
            if alone.is_empty() {
                return Some(alone);
            }
            let without = excluded.iter().filter_map(|cgroup| cgroup.id().ok());
            let others = held::tree(&self.application, &without.collect());
            let others = others.iter().map(|(_, cgroup)| cgroup);
            let others = held::sockets(others, anywhere, &mut budget)?;
            alone.retain(|inode| !others.contains(inode));
            Some(alone)
        };
        find().unwrap_or_default()
    }
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the listeners cannot be listed: {0}")]
    Diag(#[from] io::Error),
    #[error(transparent)]
    Tables(#[from] LoadError),
}

/// Keeps what is known of the listeners of `application` right, for as long as it is polled. For a namespace that others
/// use, too: only sockets that one of its processes holds count.
///
/// A listener is its own if one of its processes holds it, or if it was made in one of its cgroups. What is excluded, and the proxy, are
/// none of these.
pub async fn follow(mut tables: Tables, slot: u32, application: Cgroup) {
    let namespace = match Namespace::own() {
        Ok(namespace) => namespace,
        Err(error) => return warn!(%error, "listeners that are handed in will not be noticed"),
    };
    let diag = match Diag::new(&namespace) {
        Ok(diag) => diag,
        Err(error) => return warn!(%error, "listeners that are handed in will not be noticed"),
    };
    let mut owners = Owners::default();
    for round in 1.. {
        tokio::time::sleep(LOOK_EVERY).await;
        if round % COLLECT_EVERY_LOOKS == 0 {
            tables.collect_garbage(&[slot]);
        }
        let before_ns = monotonic_ns();
        let listeners = match diag.listeners(usize::MAX) {
            Ok(listeners) => listeners,
            Err(error) => {
                warn!(%error, "the listeners cannot be listed");
                continue;
            }
        };
        let left_alone = tables.cgroups_left_alone(slot);
        let own = held::tree(&application, &left_alone);
        owners.update(&listeners, &own, &namespace);
        let own = |listener: &&Listener| owners.is_own(listener);
        let own = listeners.iter().filter(own).flat_map(places);
        let own = own.map(|place| (place, false)).collect();
        let doubtful = |listener: &&Listener| owners.is_doubtful(listener);
        let doubtful = listeners.iter().filter(doubtful).flat_map(places).collect();
        if let Err(error) = tables.renew_listening(slot, &own, &doubtful, before_ns) {
            warn!(%error, "a place at which the application listens cannot be remembered");
        }
    }
}

/// Which listeners processes of the workload hold, by inode.
#[derive(Default)]
struct Owners {
    known: HashMap<u32, Owner>,
}

#[derive(Clone, Copy)]
struct Owner {
    own: bool,
    since: Instant,
    /// Looks in a row that have found it nobody's of the workload. A process that forks, ends or passes a descriptor on may be
    /// missed once.
    looks_without: u32,
}

impl Owners {
    fn is_own(&self, listener: &Listener) -> bool {
        self.known
            .get(&listener.inode)
            .is_some_and(|owner| owner.own)
    }

    /// Not the workload's as far as is known, which is not enough to forget it.
    fn is_doubtful(&self, listener: &Listener) -> bool {
        let owner = self.known.get(&listener.inode);
        owner.is_none_or(|owner| !owner.own && owner.looks_without < 2)
    }

    /// Looks at the processes' descriptors, if there is a listener that nothing is known of. `own`: the cgroups of the workload.
    fn update(&mut self, listeners: &[Listener], own: &[(u64, Cgroup)], namespace: &Namespace) {
        let now = Instant::now();
        let made_here = |listener: &Listener| own.iter().any(|(id, _)| *id == listener.cgroup);
        let present: BTreeSet<u32> = listeners.iter().map(|listener| listener.inode).collect();
        self.known.retain(|inode, _| present.contains(inode));
        for listener in listeners.iter().filter(|listener| made_here(listener)) {
            let owner = Owner {
                own: true,
                since: now,
                looks_without: 0,
            };
            self.known.insert(listener.inode, owner);
        }
        let current = |owner: &Owner| {
            now.duration_since(owner.since) < STRANGER && (owner.own || owner.looks_without > 1)
        };
        if present
            .iter()
            .all(|inode| self.known.get(inode).is_some_and(current))
        {
            return;
        }
        let home = namespace.id().ok();
        let here = |process: &Path| Namespace::id_of(process).ok() == home;
        let cgroups = own.iter().map(|(_, cgroup)| cgroup);
        let Some(held) = held::sockets(cgroups, here, &mut Budget::default()) else {
            // Too much to look at: what is known stays, and what is not is neither added nor removed.
            return;
        };
        let made_here = listeners.iter().filter(|listener| made_here(listener));
        let made_here: BTreeSet<u32> = made_here.map(|listener| listener.inode).collect();
        for inode in present {
            let own = held.contains(&inode) || made_here.contains(&inode);
            let before = self
                .known
                .get(&inode)
                .map_or(0, |owner| owner.looks_without);
            let owner = Owner {
                own,
                since: now,
                looks_without: if own { 0 } else { before.saturating_add(1) },
            };
            self.known.insert(inode, owner);
        }
    }
}

/// As the kernel half looks for them.
pub fn places(listener: &Listener) -> Vec<ListeningKey> {
    let port = u32::from(listener.address.port());
    let ip = listener.address.ip();
    let mut places = vec![ListeningKey {
        ip: Ip::from(ip),
        port,
    }];
    if ip.is_unspecified() && ip.is_ipv6() && !listener.v6_only {
        places.push(ListeningKey {
            ip: Ip::from(IpAddr::from([0; 4])),
            port,
        });
    }
    places
}

/// As `bpf_ktime_get_ns` gives it.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str, v6_only: bool) -> Listener {
        Listener {
            address: address.parse().unwrap(),
            v6_only,
            inode: 1,
            cgroup: 0,
        }
    }

    #[test]
    fn every_address_of_ipv6_is_every_address() {
        let count = |address, v6_only| places(&listener(address, v6_only)).len();
        assert_eq!(count("[::]:80", false), 2);
        assert_eq!(count("[::]:80", true), 1);
        assert_eq!(count("[::1]:80", false), 1);
        assert_eq!(count("0.0.0.0:80", false), 1);
    }
}

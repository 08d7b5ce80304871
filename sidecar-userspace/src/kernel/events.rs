//! What the kernel half tells at once: refusals and full maps are logged, a reader that splices is dealt with.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use rustix::net::sockopt::socket_cookie;
use sidecar_common::record::{
    EVENT_CONNECT_REFUSED, EVENT_EGRESS_DENIED, EVENT_INBOUND_REFUSED, EVENT_SPLICE,
    EVENT_UNPAIRED, Event,
};
use tokio::{io::unix::AsyncFd, time::sleep};
use tracing::{debug, warn};

use super::{adopt::borrow_descriptor, tables::Tables};
use crate::{model::Steering, sys::diag};

/// A repeated warning is said once in this time.
const QUIET: Duration = Duration::from_secs(10);
/// A reader that leaves bytes for so long after it was seen to splice does not see them.
const STUCK: Duration = Duration::from_millis(100);

/// Follows the events of workloads for as long as it is polled. `tables`: handles of its own. `whose`: the rules of the
/// workload in a slot, if it is one of ours.
pub async fn follow(
    events: RingBuf<MapData>,
    tables: Tables,
    whose: impl Fn(u32) -> Option<Rc<Steering>>,
) {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, which has its rooms; a ring buffer keeps its descriptor"
    )]
    let registered = AsyncFd::new(events);
    let mut events = match registered {
        Ok(events) => events,
        Err(error) => return warn!(%error, "the kernel half's events cannot be followed"),
    };
    let mut said: HashMap<u32, Said> = HashMap::new();
    loop {
        let mut batch = Vec::new();
        match events.readable_mut().await {
            Ok(mut ready) => {
                while let Some(item) = ready.get_inner_mut().next() {
                    batch.extend(Event::from_bytes(&item));
                }
                ready.clear_ready();
            }
            Err(error) => return warn!(%error, "the kernel half's events cannot be followed"),
        }
        if said.len() > MAX_TALKING {
            said.retain(|slot, _| whose(*slot).is_some());
        }
        for event in batch {
            let Some(steering) = whose(event.workload) else {
                continue;
            };
            let said = said.entry(event.workload).or_default();
            if event.kind == EVENT_EGRESS_DENIED {
                denied(&event, &steering, said);
            } else {
                handle(&event, &steering.name, &tables, said).await;
            }
        }
    }
}

/// Passes the programs' own log lines on, for `--log debug`.
pub async fn follow_log(logger: KernelLog) {
    #[expect(deprecated, reason = "as above")]
    let registered = AsyncFd::new(logger);
    let Ok(mut logger) = registered else { return };
    while let Ok(mut ready) = logger.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

/// aya-log's ring buffer, read into our own log.
pub type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// When each kind was said last of one workload.
#[derive(Default)]
struct Said {
    kinds: [Option<Instant>; 6],
    /// Denied destinations, with the rule.
    denied: HashMap<(SocketAddr, i32), Instant>,
}

/// Denied destinations of a workload that are remembered.
const MAX_DENIED: usize = 256;
/// Workloads whose last words are remembered, before those that are gone are forgotten.
const MAX_TALKING: usize = 256;

impl Said {
    fn is_news(&mut self, kind: u32) -> bool {
        let Some(last) = self.kinds.get_mut(kind as usize) else {
            return true;
        };
        let news = last.is_none_or(|at| at.elapsed() > QUIET);
        if news {
            *last = Some(Instant::now());
        }
        news
    }
}

/// A denial of each destination is said at once, its repetitions now and then; all are counted.
fn denied(event: &Event, steering: &Steering, said: &mut Said) {
    let destination = SocketAddr::from(event.address);
    if said.denied.len() >= MAX_DENIED {
        said.denied.retain(|_, at| at.elapsed() <= QUIET);
    }
    let key = (destination, event.fd);
    let repeated = said
        .denied
        .get(&key)
        .is_some_and(|at| at.elapsed() <= QUIET);
    if repeated || said.denied.len() >= MAX_DENIED {
        return;
    }
    said.denied.insert(key, Instant::now());
    let (workload, pid) = (&steering.name, event.pid);
    if event.fd == 0 {
        warn!(%workload, %destination, pid, "outbound connection denied: link-local destinations cannot be steered, and not every destination may be reached (outbound.unknown, authorization.outbound)");
        return;
    }
    let position = usize::try_from(event.fd).ok();
    let position = position.and_then(|rule| rule.checked_sub(1));
    let rule = position.and_then(|position| steering.outbound_deny.get(position));
    let rule = rule.map_or("of a former configuration", |rule| &*rule.name);
    warn!(%workload, %destination, rule, pid, "outbound connection denied (outbound.deny)");
}

async fn handle(event: &Event, workload: &str, tables: &Tables, said: &mut Said) {
    let address = SocketAddr::from(event.address);
    let news = event.pid != std::process::id() && said.is_news(event.kind);
    match event.kind {
        EVENT_INBOUND_REFUSED if news => {
            warn!(workload, %address, "inbound connections are refused: the proxy does not listen (failRule: closed)");
        }
        EVENT_CONNECT_REFUSED if news => {
            warn!(workload, %address, "outbound connections are refused: the workload has too many under way, the kernel has no memory for what has to be remembered of one, or the socket is bound to a device from which only CAP_NET_RAW could take it");
        }
        EVENT_UNPAIRED if news => {
            warn!(workload, %address, "a connection stays on TCP: the map of flows is full, or its key is taken");
        }
        // Our own self-test.
        EVENT_SPLICE if event.pid == std::process::id() => {}
        EVENT_SPLICE => {
            if news {
                warn!(
                    workload,
                    pid = event.pid,
                    "the application reads sockets with splice: nothing is redirected to it from now on"
                );
            }
            reset_if_caught(event, tables).await;
        }
        _ => debug!(?event, "event of the kernel half"),
    }
}

/// Redirected bytes that wait on a socket whose reader splices are never seen: a reset tells both ends, hanging
/// tells nobody.
async fn reset_if_caught(event: &Event, tables: &Tables) {
    let Some(socket) = borrow_descriptor(event.pid, event.fd) else {
        return;
    };
    let Ok(cookie) = socket_cookie(&socket) else {
        return;
    };
    let (Some(redirected), Some(state)) =
        (tables.redirected_to(cookie), tables.socket_state(&socket))
    else {
        return;
    };
    let waiting = |socket: BorrowedFd<'_>| rustix::io::ioctl_fionread(socket).unwrap_or(0);
    let before = waiting(socket.as_fd());
    if redirected == 0 || before == 0 {
        return;
    }
    sleep(STUCK).await;
    if waiting(socket.as_fd()) < before {
        return;
    }
    let (local, remote) = (state.flow.local.into(), state.flow.remote.into());
    match diag::destroy_of(event.pid, local, remote) {
        Ok(()) => warn!(%local, %remote, "reset: redirected bytes wait for a reader that splices"),
        Err(error) => {
            warn!(%local, %remote, %error, "a reader that splices hangs, and cannot be reset")
        }
    }
}

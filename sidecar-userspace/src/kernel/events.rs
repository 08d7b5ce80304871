//! What the kernel half tells at once: refusals and full maps are logged, a reader that splices is dealt with.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use sidecar_common::record::{
    EVENT_CONNECT_REFUSED, EVENT_EGRESS_DENIED, EVENT_INBOUND_REFUSED, EVENT_PROXY_AWAY,
    EVENT_SPLICE, EVENT_UNPAIRED, Event, PROTOCOL_FRAME,
};
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use crate::{
    model::{IpProtocol, Steering},
    sys::{diag, netns::Namespace},
};

/// A repeated warning is said once in this time.
const QUIET: Duration = Duration::from_secs(10);

/// Follows the events of workloads for as long as it is polled. `whose`: the rules of the workload in a slot, if it is one of
/// ours.
pub async fn follow(
    events: RingBuf<MapData>,
    whose: impl Fn(u32) -> Option<Rc<Steering>>,
    namespace: impl Fn(&Event) -> io::Result<Namespace>,
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
                handle(&event, &steering.name, &namespace, said);
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
    kinds: [Option<Instant>; 8],
    /// Denied destinations, with the rule and the protocol.
    denied: HashMap<(SocketAddr, i32, u32), Instant>,
    /// By socket cookie.
    reset: HashMap<u64, Instant>,
}

/// Sockets whose readers were dealt with that are remembered.
const MAX_RESET: usize = 1024;
/// Beside the kinds of events: a connection was reset, or could not be.
const RESET: u32 = 7;

/// Denied destinations of a workload that are remembered.
const MAX_DENIED: usize = 256;
/// Workloads whose last words are remembered, before those that are gone are forgotten.
const MAX_TALKING: usize = 256;

impl Said {
    /// Whether its reader has to be dealt with: it may be told many times before that has an effect.
    fn is_first_of(&mut self, cookie: u64) -> bool {
        note(&mut self.reset, cookie, MAX_RESET)
    }

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

/// Notes that there was something about `key` now. `false`: there was a moment ago, or there is no room among `most`.
fn note<K: Eq + Hash>(noted: &mut HashMap<K, Instant>, key: K, most: usize) -> bool {
    if noted.len() >= most {
        noted.retain(|_, at| at.elapsed() <= QUIET);
    }
    let repeated = noted.get(&key).is_some_and(|at| at.elapsed() <= QUIET);
    if repeated || noted.len() >= most {
        return false;
    }
    noted.insert(key, Instant::now());
    true
}

/// A denial of each destination is said at once, its repetitions now and then; all are counted.
fn denied(event: &Event, steering: &Steering, said: &mut Said) {
    let destination = SocketAddr::from(event.address);
    let key = (destination, event.rule, event.protocol);
    if !note(&mut said.denied, key, MAX_DENIED) {
        return;
    }
    let position = usize::try_from(event.rule).ok();
    let position = position.and_then(|rule| rule.checked_sub(1));
    let rule = position.and_then(|position| steering.outbound_deny.get(position));
    let rule = rule.map_or("none of the configuration", |rule| &*rule.name);
    let (workload, protocol) = (&steering.name, event.protocol);
    // Packets are not known by who sends them.
    let pid = (event.pid != 0).then_some(event.pid);
    match u8::try_from(protocol).map(IpProtocol) {
        Ok(IpProtocol::TCP) if event.rule == 0 => {
            warn!(%workload, %destination, pid, "outbound connection denied: link-local destinations cannot be steered, and not every destination may be reached (outbound.unknown, authorization.outbound)");
        }
        Ok(IpProtocol::TCP) => {
            warn!(%workload, %destination, rule, pid, "outbound connection denied (outbound.deny)");
        }
        Ok(protocol) if !protocol.has_ports() => {
            let destination = destination.ip();
            warn!(%workload, %destination, %protocol, rule, pid, "outbound packet denied (outbound.deny)");
        }
        Ok(protocol) => {
            warn!(%workload, %destination, %protocol, rule, pid, "outbound packet denied (outbound.deny)");
        }
        Err(_) if protocol == PROTOCOL_FRAME => {
            warn!(%workload, "a packet socket sends nothing while there are rules (outbound.deny)");
        }
        Err(_) => {
            let destination = destination.ip();
            warn!(%workload, %destination, "outbound packet denied: it does not say what it carries, or where it ends (outbound.deny)");
        }
    }
}

fn handle(
    event: &Event,
    workload: &str,
    namespace: &impl Fn(&Event) -> io::Result<Namespace>,
    said: &mut Said,
) {
    let address = SocketAddr::from(event.address);
    let news = said.is_news(event.kind);
    match event.kind {
        EVENT_INBOUND_REFUSED if news => {
            warn!(workload, %address, "inbound connections are refused: the proxy does not listen (failRule: closed)");
        }
        EVENT_CONNECT_REFUSED if news => {
            warn!(workload, %address, "outbound connections are refused: the workload has too many under way, the kernel has no memory for what has to be remembered of one, or the socket is bound to a device from which only CAP_NET_RAW could take it");
        }
        EVENT_PROXY_AWAY if news => {
            warn!(workload, %address, "outbound connections are refused: the proxy does not listen");
        }
        EVENT_UNPAIRED if news => {
            warn!(workload, %address, "a connection stays on TCP: the map of flows is full, or its key is taken");
        }
        EVENT_SPLICE => {
            if news {
                warn!(
                    workload,
                    pid = event.pid,
                    "the application reads sockets with splice: nothing is redirected to it from now on"
                );
            }
            if event.cookie != 0 && said.is_first_of(event.cookie) {
                reset(event, workload, namespace(event), said);
            }
        }
        _ => debug!(?event, "event of the kernel half"),
    }
}

/// Redirected bytes that wait on a socket whose reader splices are never seen: a reset tells both ends, hanging
/// tells nobody.
fn reset(event: &Event, workload: &str, namespace: io::Result<Namespace>, said: &mut Said) {
    let (local, remote) = (event.local.into(), event.address.into());
    let reset =
        namespace.and_then(|namespace| diag::destroy(&namespace, event.cookie, local, remote));
    let news = said.is_news(RESET);
    match reset {
        Ok(()) if news => {
            warn!(workload, %local, %remote, "reset: redirected bytes wait for a reader that splices");
        }
        // Its reader has given up.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if news => {
            warn!(workload, %local, %remote, %error, "a reader that splices hangs, and cannot be reset");
        }
        _ => debug!(workload, %local, %remote, "another reset of a reader that splices"),
    }
}

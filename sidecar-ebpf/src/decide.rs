//! Pure decisions: no helper is called, no map is read here. Unit-tested on the host.

use sidecar_common::{
    address::Ip,
    record::{Counter, Profile},
    settings::{
        CAPTURE_LISTED, CAPTURE_NAMESPACE, CAPTURE_WORKLOAD, PORT_CAPTURE, PORT_EXCLUDE,
        WORKLOAD_ENROLLED, WORKLOAD_FAIL_CLOSED, WORKLOAD_PASSES_UNKNOWN, WORKLOAD_PROXY_SPLICES,
        WORKLOAD_SPLICES, Workload,
    },
};

/// What becomes of an outbound connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// Rewrite to the proxy.
    Steer,
    /// Refuse with EPERM.
    Deny,
    /// Leave alone, and count why.
    Leave(Counter),
    /// Leave alone: not ours.
    Ignore,
}

/// `denied`: whether a rule denies the destination. What stays on the machine's loopback leaves nothing: it is not asked
/// for. `cidr`, `port`: whether a rule excludes the destination's address or port.
#[inline(always)]
pub fn connect(
    workload: &Workload,
    destination: Ip,
    denied: bool,
    cidr: bool,
    port: u32,
) -> Connect {
    if workload.flags & WORKLOAD_ENROLLED == 0 || workload.outbound_port == 0 {
        Connect::Ignore
    } else if destination.is_loopback() || destination.is_unspecified() {
        Connect::Leave(Counter::Loopback)
    } else if denied {
        Connect::Deny
    } else if cidr || port & PORT_EXCLUDE != 0 {
        Connect::Leave(Counter::Excluded)
    } else if destination.is_scoped() {
        // The hook is not told on which link it is: the proxy could not connect there.
        if workload.flags & WORKLOAD_PASSES_UNKNOWN != 0 {
            Connect::Leave(Counter::LinkLocal)
        } else {
            Connect::Deny
        }
    } else {
        Connect::Steer
    }
}

/// What becomes of a new inbound connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound {
    /// Leave alone: none of the proxy's.
    Leave,
    /// To the proxy.
    Capture,
    /// Refuse: nobody listens there.
    Closed,
}

/// Whether anybody listens where a connection arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Only processes that are left alone listen there.
    Excluded,
    Open,
    Closed,
    Unknown,
}

/// What becomes of a new connection to the workload that is none of its proxy's own. One from the pod to its own address
/// passes. `rule`: of the port.
#[inline(always)]
pub fn inbound(workload: &Workload, local: Ip, remote: Ip, port: Port, rule: u32) -> Inbound {
    let own = remote.is_loopback()
        || (local.0[0] == remote.0[0]
            && local.0[1] == remote.0[1]
            && local.0[2] == remote.0[2]
            && local.0[3] == remote.0[3]);
    if workload.flags & WORKLOAD_ENROLLED == 0
        || own
        || rule & PORT_EXCLUDE != 0
        || port as u32 == Port::Excluded as u32
    {
        return Inbound::Leave;
    }
    let captured = match workload.capture {
        // What is not known is not let through.
        CAPTURE_NAMESPACE => true,
        CAPTURE_WORKLOAD => port as u32 == Port::Open as u32 || rule & PORT_CAPTURE != 0,
        CAPTURE_LISTED => rule & PORT_CAPTURE != 0,
        _ => false,
    };
    if !captured {
        Inbound::Leave
    } else if workload.capture == CAPTURE_NAMESPACE && port as u32 == Port::Closed as u32 {
        // Not passed on: a listener that has come since would be reached past the proxy.
        Inbound::Closed
    } else {
        Inbound::Capture
    }
}

/// What becomes of a captured inbound connection when the proxy has no listener.
#[inline(always)]
pub fn fail_closed(workload: &Workload) -> bool {
    workload.flags & WORKLOAD_FAIL_CLOSED != 0
}

/// What is known when a message is about to be sent on a socket in `FLOWS`.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// Redirect is on for the node.
    pub enabled: bool,
    /// Flags of the receiving workload.
    pub receiver_flags: u32,
    /// The receiver is a proxy: it reads until nothing is left, whichever queue it comes from.
    pub to_proxy: bool,
    /// The receiver is an application, and the sender keeps to the room that it is told.
    pub asked: bool,
    /// The receiver is an application, and something took TCP before.
    pub took_tcp: bool,
    /// The receiver is an application, whose socket would leave the map before bytes come to it by TCP.
    pub watched: bool,
    /// The flag that says that redirect goes as far as this hop.
    pub level: u32,
    /// The receiver waits inside its reads. `false` while nobody has the socket yet.
    pub blocking: bool,
    /// Either end has a protocol on top of TCP, such as kernel TLS.
    pub ulp: bool,
    /// `bpf_sock.state` of the sender.
    pub tcp_state: u32,
    /// How far everything that is not redirected was sent, modulo 2^32: by the sender's `write_seq`.
    pub sent: u32,
    /// How far of that has arrived at the reader, from the same beginning: by the receiver's `copied_seq`, read just now.
    pub arrived: u32,
    /// Bytes redirected that the receiver has not been seen to have read.
    pub unread_bytes: u64,
    pub message_bytes: u32,
    /// The message is part of a stream, see [`is_large`].
    pub bulk: bool,
    pub credit_bytes: u32,
}

const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;

/// One large message after another gains nothing from redirect (0.5 to 1.1 of TCP's throughput at 16 to 64 KiB); where each
/// answers something, it does (1.2 to 1.6 times the requests at 16 and 64 KiB).
const LARGE_BYTES: u32 = 16 * 1024;

/// Whether the message is bulk unless something came the other way since the large one before.
#[inline(always)]
pub const fn is_large(message_bytes: u32) -> bool {
    message_bytes > LARGE_BYTES
}

/// `Ok`: redirect. `Err`: leave the message to TCP, and count why.
///
/// Receiver: a read returns from one of two queues, redirected or TCP's. A proxy reads both until nothing is left. An
/// application may take a short read for an empty socket and wait for the next edge of epoll, or ask `FIONREAD`, which
/// knows one queue only: it gets all its bytes through one. That needs a sender that asks for room and waits for it
/// instead of falling back to TCP; where it does not, or once anything took TCP, all of the flow does. One that blocks
/// in its reads may wait inside TCP's own receive (`MSG_WAITALL`), which does not see what is redirected.
///
/// Order: equality of the sequence numbers proves that the receiver has read every byte that ever went through
/// TCP in this direction, so a redirected message overtakes nothing. They cannot be equal by having wrapped:
/// the receiver's is read at this moment, and no window is so large.
///
/// Bound: what is redirected and not read stays within the credit.
#[inline(always)]
pub fn redirect(e: &Evidence) -> Result<(), Counter> {
    if !e.enabled {
        return Err(Counter::FallbackOff);
    }
    if e.ulp {
        return Err(Counter::FallbackUlp);
    }
    let splices = if e.to_proxy {
        WORKLOAD_PROXY_SPLICES
    } else {
        WORKLOAD_SPLICES
    };
    if !e.to_proxy {
        if e.took_tcp || !e.asked || !e.watched || e.receiver_flags & e.level == 0 {
            return Err(Counter::FallbackApplication);
        }
        if e.blocking {
            return Err(Counter::FallbackBlocking);
        }
    }
    if e.receiver_flags & e.level == 0 {
        return Err(Counter::FallbackOff);
    }
    if e.receiver_flags & splices != 0 {
        return Err(Counter::FallbackSplice);
    }
    // After SHUT_WR a send must fail with EPIPE; only TCP knows that.
    if e.tcp_state != ESTABLISHED && e.tcp_state != CLOSE_WAIT {
        return Err(Counter::FallbackClosing);
    }
    if e.sent != e.arrived {
        return Err(Counter::FallbackOrder);
    }
    if e.to_proxy && e.unread_bytes == 0 && e.bulk {
        return Err(Counter::FallbackBulk);
    }
    if e.unread_bytes.saturating_add(e.message_bytes as u64) > e.credit_bytes as u64 {
        return Err(Counter::FallbackCredit);
    }
    Ok(())
}

/// The same for a receiver with redirected bytes that it has not read: how it reads, and how far redirect goes, does not count
/// before it has. What took TCP now would wait behind them, where not everybody looks for it, and who splices would find it
/// without what came before.
#[inline(always)]
pub fn unread(e: &Evidence) -> Evidence {
    Evidence {
        enabled: true,
        receiver_flags: e.level,
        blocking: false,
        bulk: false,
        ..*e
    }
}

/// What a sender is told that asks how much it may write to an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendWindow {
    /// As much as TCP takes: the receiver is no application, or nothing is redirected to it any more.
    All,
    /// As much as TCP takes: nothing of the flow is redirected from now on, and why.
    Tcp(Counter),
    /// So many bytes, all of which will be redirected; 0: wait until the application has read.
    Bytes(u32),
}

/// `e.message_bytes` is not looked at.
#[inline(always)]
pub fn send_window(e: &Evidence) -> SendWindow {
    let one_byte = Evidence {
        asked: true,
        message_bytes: 1,
        ..*e
    };
    match redirect(&one_byte) {
        Ok(()) => SendWindow::Bytes((e.credit_bytes as u64 - e.unread_bytes) as u32),
        Err(Counter::FallbackCredit) => SendWindow::Bytes(0),
        Err(why) => SendWindow::Tcp(why),
    }
}

/// What a flow that had to be left to TCP weighs in the port's profile, in messages.
pub const FLOW_ON_TCP: u32 = 1024;
/// What a wait for room weighs.
pub const WAIT: u32 = 4;

/// Messages before a port's profile is believed.
const PROFILE_MESSAGES: u64 = 4096;
/// One connection in so many is inserted on a port where redirect does not pay, to notice when it does again.
const PROFILE_RETRY: u64 = 64;

/// Sockets before a port is believed to have short connections only.
const PROFILE_SOCKETS: u64 = 256;
/// Messages a socket, at the average, that make up for its way into the map and out of it.
const WORTH_MESSAGES: u64 = 3;

/// Whether inserting a connection on a port with this profile pays: being in the map and passing costs 5 to
/// 30 per cent, a redirect saves about half, and a connection for one request is over before it has saved anything.
#[inline(always)]
pub fn pays(profile: &Profile) -> bool {
    let messages = profile.redirected + profile.passed;
    let short = profile.sockets >= PROFILE_SOCKETS && messages / WORTH_MESSAGES < profile.sockets;
    let passes =
        messages >= PROFILE_MESSAGES && profile.passed >= profile.redirected.saturating_mul(4);
    !(short || passes) || profile.skipped % PROFILE_RETRY == PROFILE_RETRY - 1
}

#[cfg(test)]
mod tests {
    use sidecar_common::settings::{
        WORKLOAD_REDIRECT_TO_APPLICATIONS, WORKLOAD_REDIRECT_TO_PROXIES,
    };

    use super::*;

    const POD: Ip = Ip::from_v4(0x0a00_0001_u32.to_be());
    const ELSEWHERE: Ip = Ip::from_v4(0x0a00_0002_u32.to_be());
    const LOOPBACK: Ip = Ip::from_v4(0x7f00_0001_u32.to_be());

    fn workload() -> Workload {
        Workload {
            outbound_port: 15001,
            capture: CAPTURE_WORKLOAD,
            flags: WORKLOAD_ENROLLED,
            credit_bytes: 1000,
            ..Workload::default()
        }
    }

    /// A small message from an application to a proxy.
    fn evidence() -> Evidence {
        Evidence {
            enabled: true,
            receiver_flags: WORKLOAD_ENROLLED | WORKLOAD_REDIRECT_TO_PROXIES,
            to_proxy: true,
            asked: false,
            took_tcp: false,
            watched: false,
            level: WORKLOAD_REDIRECT_TO_PROXIES,
            blocking: false,
            ulp: false,
            tcp_state: ESTABLISHED,
            sent: 7,
            arrived: 7,
            unread_bytes: 0,
            message_bytes: 100,
            bulk: false,
            credit_bytes: 1000,
        }
    }

    #[test]
    fn connects() {
        assert_eq!(
            connect(&workload(), ELSEWHERE, false, false, 0),
            Connect::Steer
        );
        assert_eq!(
            connect(&workload(), ELSEWHERE, true, true, PORT_EXCLUDE),
            Connect::Deny
        );
        assert_eq!(
            connect(&Workload::default(), ELSEWHERE, true, false, 0),
            Connect::Ignore
        );
        assert_eq!(
            connect(&workload(), LOOPBACK, true, false, 0),
            Connect::Leave(Counter::Loopback)
        );
        assert_eq!(
            connect(&workload(), LOOPBACK, false, false, 0),
            Connect::Leave(Counter::Loopback)
        );
        assert_eq!(
            connect(&workload(), Ip::default(), false, false, 0),
            Connect::Leave(Counter::Loopback)
        );
        let link_local = Ip([0xfe80_0000_u32.to_be(), 0, 0, 1]);
        let passing = Workload {
            flags: WORKLOAD_ENROLLED | WORKLOAD_PASSES_UNKNOWN,
            ..workload()
        };
        assert_eq!(
            connect(&passing, link_local, false, false, 0),
            Connect::Leave(Counter::LinkLocal)
        );
        assert_eq!(connect(&passing, link_local, true, false, 0), Connect::Deny);
        assert_eq!(
            connect(&workload(), link_local, false, false, 0),
            Connect::Deny
        );
        // The metadata services of clouds are there.
        let v4 = Ip::from_v4(0xa9fe_a9fe_u32.to_be());
        assert_eq!(connect(&workload(), v4, false, false, 0), Connect::Steer);
        assert_eq!(
            connect(&workload(), ELSEWHERE, false, true, 0),
            Connect::Leave(Counter::Excluded)
        );
        assert_eq!(
            connect(&workload(), ELSEWHERE, false, false, PORT_EXCLUDE),
            Connect::Leave(Counter::Excluded)
        );
        assert_eq!(
            connect(&Workload::default(), ELSEWHERE, false, false, 0),
            Connect::Ignore
        );
    }

    #[test]
    fn captures() {
        let on_shared = |port, rule| inbound(&workload(), POD, ELSEWHERE, port, rule);
        assert_eq!(on_shared(Port::Open, 0), Inbound::Capture);
        assert_eq!(on_shared(Port::Closed, PORT_CAPTURE), Inbound::Capture);
        assert_eq!(on_shared(Port::Closed, 0), Inbound::Leave);
        assert_eq!(on_shared(Port::Unknown, 0), Inbound::Leave);
        assert_eq!(on_shared(Port::Open, PORT_EXCLUDE), Inbound::Leave);
        let to_itself = inbound(&workload(), POD, POD, Port::Open, 0);
        assert_eq!(to_itself, Inbound::Leave, "the pod calls its own address");
        let loopback = inbound(&workload(), LOOPBACK, LOOPBACK, Port::Open, 0);
        assert_eq!(loopback, Inbound::Leave);
        let listed = Workload {
            capture: CAPTURE_LISTED,
            ..workload()
        };
        let listed = |rule| inbound(&listed, POD, ELSEWHERE, Port::Open, rule);
        assert_eq!(listed(0), Inbound::Leave);
        assert_eq!(listed(PORT_CAPTURE), Inbound::Capture);
        let gone = Workload {
            flags: 0,
            ..workload()
        };
        let gone = inbound(&gone, POD, ELSEWHERE, Port::Open, PORT_CAPTURE);
        assert_eq!(gone, Inbound::Leave);
    }

    #[test]
    fn in_a_namespace_of_its_own_what_is_not_known_is_captured() {
        let own = Workload {
            capture: CAPTURE_NAMESPACE,
            ..workload()
        };
        let own = |port, rule| inbound(&own, POD, ELSEWHERE, port, rule);
        assert_eq!(own(Port::Open, 0), Inbound::Capture);
        assert_eq!(own(Port::Unknown, 0), Inbound::Capture);
        assert_eq!(own(Port::Closed, 0), Inbound::Closed);
        assert_eq!(own(Port::Closed, PORT_CAPTURE), Inbound::Closed);
        assert_eq!(own(Port::Open, PORT_EXCLUDE), Inbound::Leave);
        assert_eq!(own(Port::Excluded, 0), Inbound::Leave);
    }

    #[test]
    fn redirects_with_evidence() {
        assert_eq!(redirect(&evidence()), Ok(()));
        assert_eq!(
            redirect(&Evidence {
                unread_bytes: 900,
                ..evidence()
            }),
            Ok(()),
            "exactly the credit"
        );
        assert_eq!(
            redirect(&Evidence {
                tcp_state: CLOSE_WAIT,
                ..evidence()
            }),
            Ok(())
        );
    }

    #[test]
    fn passes_without_evidence() {
        let passes = |why, evidence: Evidence| assert_eq!(redirect(&evidence), Err(why));
        passes(
            Counter::FallbackOrder,
            Evidence {
                sent: 8,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackOrder,
            Evidence {
                arrived: 8,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackCredit,
            Evidence {
                unread_bytes: 901,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackCredit,
            Evidence {
                message_bytes: 1001,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackClosing,
            Evidence {
                tcp_state: 4,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackSplice,
            Evidence {
                receiver_flags: WORKLOAD_REDIRECT_TO_PROXIES | WORKLOAD_PROXY_SPLICES,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackSplice,
            Evidence {
                receiver_flags: WORKLOAD_REDIRECT_TO_APPLICATIONS | WORKLOAD_SPLICES,
                ..to_application()
            },
        );
        passes(
            Counter::FallbackOff,
            Evidence {
                enabled: false,
                ..evidence()
            },
        );
        passes(
            Counter::FallbackApplication,
            Evidence {
                to_proxy: false,
                ..evidence()
            },
        );
        let large = Evidence {
            credit_bytes: 1 << 20,
            message_bytes: LARGE_BYTES + 1,
            ..evidence()
        };
        assert_eq!(redirect(&large), Ok(()), "an answer");
        let bulk = Evidence {
            bulk: true,
            ..large
        };
        passes(Counter::FallbackBulk, bulk);
        assert_eq!(
            redirect(&Evidence {
                unread_bytes: 1,
                ..bulk
            }),
            Ok(()),
            "better than a change of queues"
        );
    }

    #[test]
    fn sixteen_kibibytes_are_not_large() {
        assert!(!is_large(16 * 1024));
        assert!(is_large(16 * 1024 + 1));
    }

    /// A large message from a proxy that asked to an application.
    fn to_application() -> Evidence {
        Evidence {
            receiver_flags: WORKLOAD_ENROLLED | WORKLOAD_REDIRECT_TO_APPLICATIONS,
            to_proxy: false,
            asked: true,
            watched: true,
            level: WORKLOAD_REDIRECT_TO_APPLICATIONS,
            credit_bytes: 1 << 20,
            message_bytes: LARGE_BYTES + 1,
            bulk: true,
            ..evidence()
        }
    }

    #[test]
    fn an_application_gets_its_bytes_through_one_queue() {
        assert_eq!(redirect(&to_application()), Ok(()), "bulk too");
        let passes = |why, evidence: Evidence| {
            assert_eq!(redirect(&evidence), Err(why));
            assert_eq!(send_window(&evidence), SendWindow::Tcp(why));
        };
        let took_tcp = Evidence {
            took_tcp: true,
            ..to_application()
        };
        passes(Counter::FallbackApplication, took_tcp);
        let of_a_lower_level = Evidence {
            receiver_flags: WORKLOAD_ENROLLED,
            ..to_application()
        };
        passes(Counter::FallbackApplication, of_a_lower_level);
        let unwatched = Evidence {
            watched: false,
            ..to_application()
        };
        passes(Counter::FallbackApplication, unwatched);
        let blocking = Evidence {
            blocking: true,
            ..to_application()
        };
        passes(Counter::FallbackBlocking, blocking);
        let ulp = Evidence {
            ulp: true,
            ..to_application()
        };
        passes(Counter::FallbackUlp, ulp);
    }

    #[test]
    fn what_is_unread_is_followed_in_the_same_queue() {
        let changed = Evidence {
            blocking: true,
            receiver_flags: WORKLOAD_SPLICES,
            ..to_application()
        };
        assert!(redirect(&changed).is_err());
        assert_eq!(redirect(&unread(&changed)), Ok(()));
        let beyond = Evidence {
            unread_bytes: 1 << 20,
            ..changed
        };
        assert_eq!(redirect(&unread(&beyond)), Err(Counter::FallbackCredit));
    }

    #[test]
    fn room_is_what_is_left_of_the_credit() {
        let unread = |unread_bytes| {
            send_window(&Evidence {
                asked: false,
                unread_bytes,
                ..to_application()
            })
        };
        assert_eq!(unread(0), SendWindow::Bytes(1 << 20));
        assert_eq!(unread(1), SendWindow::Bytes((1 << 20) - 1));
        assert_eq!(unread(1 << 20), SendWindow::Bytes(0));
        assert_eq!(unread(u64::MAX), SendWindow::Bytes(0));
        // Whoever does not keep to it falls back to TCP, which is safe, and stays there.
        let beyond = Evidence {
            unread_bytes: 1 << 20,
            ..to_application()
        };
        assert_eq!(redirect(&beyond), Err(Counter::FallbackCredit));
    }

    #[test]
    fn learns_where_redirect_pays() {
        assert!(pays(&Profile::default()));
        assert!(pays(&Profile {
            redirected: 5000,
            passed: 100,
            ..Profile::default()
        }));
        let of_connections = |messages: u64| Profile {
            redirected: 1000 * messages,
            sockets: 1000,
            ..Profile::default()
        };
        assert!(!pays(&of_connections(1)), "over before it pays");
        assert!(pays(&of_connections(10)));
        let bulk = Profile {
            redirected: 10,
            passed: 100_000,
            ..Profile::default()
        };
        assert!(!pays(&bulk));
        let skipped = (0..640)
            .filter(|n| {
                pays(&Profile {
                    skipped: *n,
                    ..bulk
                })
            })
            .count();
        assert_eq!(skipped, 10, "a try now and then");
    }
}

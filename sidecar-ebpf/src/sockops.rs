//! sock_ops, the life of a TCP socket: what the connecting end leaves for the accepting end, which pairs are put into the
//! SOCKHASH, and what is cleared when a socket closes.

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};
use sidecar_common::{
    address::{Address, Ip},
    flow::Rendezvous,
    record::Counter,
    settings::{
        INBOUND, ListeningKey, OUTBOUND, PORT_NO_REDIRECT, WORKLOAD_ADAPTIVE, WORKLOAD_REDIRECT,
        WORKLOAD_REDIRECT_TO_APPLICATIONS, WORKLOAD_REDIRECT_TO_PROXIES, WORKLOAD_SPLICES,
    },
    socket_state::SocketState,
};
use sidecar_ebpf::{
    decide,
    evidence::{self, Leave, Tcp},
};

use crate::{
    connect::port_rule,
    context::{
        Ends, LOAD_CONSTANTS, Operation, SetOption, Socket, TcpSocket, now_ns, read, update,
    },
    counters::count,
    device,
    enrolment::{splices, workload_of},
    maps::{CLOSED_UNTIL, LISTENING, NAMESPACES, PROFILES, SOCKETS, WORKLOADS},
    msg::Maps,
    pair, rendezvous,
};

pub const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
pub const STATE: u32 = 10;
const TCP_LISTEN: u32 = 11;
/// `BPF_SOCK_OPS_HDR_OPT_LEN_CB`: before a segment is made, and when a sender asks how large one may be.
const HDR_OPT_LEN: u32 = 14;

pub const TCP_CLOSE: u32 = 7;
const STATE_LISTEN: u32 = 10;

const ANY: u64 = 0;

#[sock_ops]
pub fn workload_sockops(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        TCP_CONNECT => connecting(&ctx),
        ACTIVE_ESTABLISHED => connected(&ctx),
        PASSIVE_ESTABLISHED => accepted(&ctx),
        TCP_LISTEN => listening(&ctx),
        STATE if ctx.arg(1) == TCP_CLOSE => closed(&ctx),
        HDR_OPT_LEN => about_to_send(&ctx),
        _ => None,
    };
    1
}

/// Before the SYN: leave a record for the other end. Earlier than `ACTIVE_ESTABLISHED`, because with Fast Open
/// the other end is accepted first.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if !state.is(SocketState::PROXY | SocketState::STEERED) {
        return None;
    }
    workload_of(state)?;
    state.flow = ctx.flow();
    state.cookie = ctx.cookie();
    state.service_port = if state.original.is_some() {
        state.original.port
    } else {
        state.flow.remote.port
    };
    // Towards its application a proxy says whom it speaks for.
    state.direction = if state.claimed_peer.is_some() {
        INBOUND
    } else {
        OUTBOUND
    };
    let bound = state.flags & (SocketState::BOUND_ADDRESS | SocketState::BOUND_PORT);
    state.flags &= SocketState::PROXY | SocketState::STEERED | SocketState::MULTIPATH;
    state.flags |= bound;
    state.peer = 0;
    let local = state.flow.remote.ip.is_loopback() || state.flow.remote.ip == state.flow.local.ip;
    let tcp = socket.tcp();
    let initial_seq = tcp.and_then(|tcp| tcp.write_seq()).unwrap_or(0);
    state.start_seq = initial_seq.wrapping_add(1);
    let proxy = state.is(SocketState::PROXY);
    // Subflows of Multipath TCP, which the kernel makes itself, have their protocol on top of TCP, as kernel TLS is: neither enters
    // the map.
    let suits = tcp.is_some_and(|tcp| !tcp.has_ulp() && (proxy || nonblocking(tcp)));
    let within = is_within_workload(state);
    let pays = suits && allowed(state, within) && pays(state);
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    let record = Rendezvous {
        owner: state.cookie,
        since_ns: now_ns(),
        original: state.original,
        shown_peer: state.claimed_peer,
        initial_seq,
        answered_seq: 0,
        workload: state.workload,
        flags: flag(local, Rendezvous::LOCAL)
            | flag(!pays, Rendezvous::TCP_ONLY)
            | flag(state.is(SocketState::PROXY), Rendezvous::OF_PROXY)
            | flag(
                state.is(SocketState::BOUND_ADDRESS),
                Rendezvous::BOUND_ADDRESS,
            )
            | flag(state.is(SocketState::BOUND_PORT), Rendezvous::BOUND_PORT),
        source: state.source,
        device: state.device,
        _pad: 0,
    };
    rendezvous::leave(state, &record);
    if state.is(SocketState::NO_HANDOVER) {
        count(state.workload, Counter::HandoverFailed, 1);
    }
    if pays && !within {
        rendezvous::announce(state, &record);
    }
    ctx.watch_close()
}

/// The other end is this workload's proxy, or the proxy's application.
#[inline(always)]
fn is_within_workload(state: &SocketState) -> bool {
    state.is(SocketState::STEERED) || state.claimed_peer.is_some()
}

/// An application that blocks in its calls would notice that its socket is in the SOCKHASH: a blocked receive can
/// return EAGAIN (`tcp_bpf_recvmsg` waits once). Whoever does not block expects that.
#[inline(always)]
fn nonblocking(socket: TcpSocket) -> bool {
    socket.is_nonblocking() == Some(true)
}

/// Whether redirect is switched on for the workload and for the connection's port. `within`: an application is at one end.
#[inline(always)]
fn allowed(state: &SocketState, within: bool) -> bool {
    let level = match within {
        true => WORKLOAD_REDIRECT_TO_PROXIES,
        false => WORKLOAD_REDIRECT,
    };
    !state.is(SocketState::MULTIPATH)
        && LOAD_CONSTANTS.load().redirect != 0
        && workload_of(state).is_some_and(|w| {
            w.flags & level != 0
                && (state.is(SocketState::PROXY) || splices(state.workload) & WORKLOAD_SPLICES == 0)
        })
        && port_rule(state.workload, state.direction, state.service_port) & PORT_NO_REDIRECT == 0
}

/// Whether this connection should be put into the SOCKHASH if both ends turn out to be here.
#[inline(always)]
fn pays(state: &SocketState) -> bool {
    let Some(profile) = PROFILES.get_ptr_mut(&pair::port(state)) else {
        return true;
    };
    let adaptive = workload_of(state).is_some_and(|w| w.flags & WORKLOAD_ADAPTIVE != 0);
    let pays = !adaptive || decide::pays(&read(profile));
    if !pays {
        count(state.workload, Counter::Unprofitable, 1);
    }
    update(profile, |p| p.skipped = p.skipped.wrapping_add(1));
    pays
}

/// SYN-ACK arrived at the connecting end.
#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if state.is(SocketState::PAIRING) {
        // Gone already if the other end was accepted first (Fast Open): then it stays on TCP.
        match rendezvous::own_pairing(state) {
            Some(record) if read(record).is(Rendezvous::LOCAL) => {
                enter(ctx, socket, state, record);
            }
            _ => {}
        }
    }
    if state.is(SocketState::HANDOVER) {
        let record = rendezvous::own_handover(state)?;
        if !read(record).is(Rendezvous::LOCAL) {
            // It left the namespace: nobody here will take it.
            rendezvous::take_back_handover(state);
        } else if is_within_workload(state) && !read(record).is(Rendezvous::TCP_ONLY) {
            enter(ctx, socket, state, record);
        }
    }
    Some(())
}

/// Puts the connecting socket into the map, and into its record what the other end has answered with.
#[inline(always)]
fn enter(
    ctx: &SockOpsContext,
    socket: Socket,
    state: &mut SocketState,
    record: *mut Rendezvous,
) -> Option<()> {
    let tcp = socket.tcp()?;
    if tcp.has_ulp() {
        return None;
    }
    let read_seq = tcp.copied_seq()?;
    pair::insert(ctx, socket, state, 0)?;
    if state.claimed_peer.is_some() {
        watch_for_tcp(ctx, state);
    }
    update(record, |r: &mut Rendezvous| {
        r.answered_seq = read_seq.wrapping_sub(1);
        r.flags |= Rendezvous::ANSWERED;
    });
    Some(())
}

/// The accepting end is established: take what the connecting end left.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = match SOCKETS.get(socket) {
        Some(state) => {
            if workload_of(state).is_none() {
                // The listener was one of a workload that has left.
                *state = of_namespace(ctx)?;
            }
            state
        }
        None => {
            let mut state = of_namespace(ctx)?;
            SOCKETS.get_or_insert(socket, &mut state)?
        }
    };
    // A copy of the listener's until now.
    let listener = TcpSocket::from_word(state.socket);
    state.flow = ctx.flow();
    state.cookie = ctx.cookie();
    state.socket = 0;
    state.peer = 0;
    state.flags &= SocketState::PROXY | SocketState::MULTIPATH | SocketState::NONBLOCKING;
    // The listener's, if it was connected once.
    state.original = Address::default();
    state.shown_peer = Address::default();
    state.claimed_peer = Address::default();
    state.source = Ip::default();
    state.device = 0;
    let proxy = state.is(SocketState::PROXY);
    let own = rendezvous::take(state);
    if let Some(own) = &own {
        if proxy {
            state.original = own.original;
            state.source = own.source;
            state.device = own.device;
            if own.is(Rendezvous::BOUND_ADDRESS) {
                state.flags |= SocketState::BOUND_ADDRESS;
            }
            if own.is(Rendezvous::BOUND_PORT) {
                state.flags |= SocketState::BOUND_PORT;
            }
        } else {
            state.shown_peer = own.shown_peer;
        }
        count(state.workload, Counter::Origin, 1);
    }
    let within = own.filter(|own| own.original.is_some() || own.shown_peer.is_some());
    let record = match within {
        Some(own) => own,
        None => rendezvous::pairing(state)?,
    };
    state.service_port = if record.original.is_some() {
        record.original.port
    } else {
        state.flow.local.port
    };
    state.direction = if within.is_some() && proxy {
        OUTBOUND
    } else {
        INBOUND
    };
    let within = within.is_some();
    let entered = enter_as_accepted(ctx, socket, state, listener, &record, within);
    if entered.is_none() && within && proxy {
        // The application's socket would be in the map alone, and get its bytes by TCP.
        pair::take_out(record.owner);
    }
    entered
}

/// Puts the accepted socket into the map, where the one that has left `record` is. `within`: that is of the same workload.
#[inline(always)]
fn enter_as_accepted(
    ctx: &SockOpsContext,
    socket: Socket,
    state: &mut SocketState,
    listener: TcpSocket,
    record: &Rendezvous,
    within: bool,
) -> Option<()> {
    let proxy = state.is(SocketState::PROXY);
    let tcp = socket.tcp()?;
    state.start_seq = tcp.write_seq()?;
    if !record.is_met_by(tcp.copied_seq()?, state.start_seq) {
        // Somebody else's connection with the same addresses, or too late (Fast Open).
        return None;
    }
    if !within {
        rendezvous::forget_pairing(state);
    }
    if record.is(Rendezvous::TCP_ONLY) || !allowed(state, within) || tcp.has_ulp() {
        return None;
    }
    if !proxy && !(within && (state.is(SocketState::NONBLOCKING) || nonblocking(listener))) {
        // Nobody has this socket yet, but the sockets of a listener that blocks mostly do.
        pair::learn(state, 0, decide::FLOW_ON_TCP as u64);
        return None;
    }
    pair::insert(ctx, socket, state, record.owner)?;
    pair::meet(record.owner, state.cookie);
    if proxy && within {
        watch_for_tcp(ctx, state);
    }
    ctx.watch_close()
}

/// A proxy's socket whose other end is an application: see `about_to_send`. Where nothing is redirected to applications, all
/// that they get takes TCP, and their sockets are in the map for what they send.
#[inline(always)]
fn watch_for_tcp(ctx: &SockOpsContext, state: &mut SocketState) -> Option<()> {
    let flags = workload_of(state)?.flags;
    if flags & WORKLOAD_REDIRECT_TO_APPLICATIONS != 0 {
        let watched = ctx.watch_segments()?;
        state.flags |= SocketState::WATCHED;
        if !watched {
            state.flags |= SocketState::OWN_WATCH;
        }
    }
    Some(())
}

/// The first bytes that a proxy leaves to TCP take its application's socket out of the map, before they are queued.
#[inline(always)]
fn about_to_send(ctx: &SockOpsContext) -> Option<()> {
    let state = SOCKETS.get(ctx.socket()?)?;
    match evidence::leave(&Maps, state) {
        Leave::NotYet => return Some(()),
        Leave::Now(cookie) => pair::take_out(cookie),
        Leave::Never => {}
    }
    state.flags &= !SocketState::WATCHED;
    if state.is(SocketState::OWN_WATCH) {
        ctx.unwatch_segments()?;
    }
    Some(())
}

/// Of an accepted socket whose listener bears no mark, as those of Multipath TCP do: in a namespace of the workload's own it is the
/// application's, which shall see the client's address all the same.
#[inline(always)]
fn of_namespace(ctx: &SockOpsContext) -> Option<SocketState> {
    let workload = read(NAMESPACES.get_ptr(&ctx.netns_cookie())?);
    let enrolment = WORKLOADS.get(workload)?.enrolment;
    (enrolment != 0).then_some(SocketState {
        workload,
        enrolment,
        flags: SocketState::MULTIPATH,
        ..SocketState::default()
    })
}

/// A socket of the application begins to listen. Who has stopped is found by userspace: several sockets may listen at one
/// place.
#[inline(always)]
fn listening(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if state.is(SocketState::PROXY) {
        return None;
    }
    if state.device != 0 {
        // As the application has wanted it all along. If the device has gone meanwhile it listens on all.
        if let Some(name) = device::name_of(state) {
            let _ = ctx.bind_to_device(name);
        }
        state.device = 0;
    }
    state.socket = socket.tcp().map_or(0, TcpSocket::to_word);
    if workload_of(state)?.netns != ctx.netns_cookie() {
        return None;
    }
    let local = ctx.flow().local;
    let port = u32::from(local.port);
    let own = LISTENING.get(state.workload)?;
    let now = now_ns();
    let place = ListeningKey { ip: local.ip, port };
    let mut noted = own.insert(&place, &now, ANY).is_ok();
    if local.ip.is_unspecified() && !local.ip.is_v4() {
        // Of both families, unless it said otherwise: userspace will see.
        let place = ListeningKey {
            ip: Ip::from_v4(0),
            port,
        };
        noted &= own.insert(&place, &now, ANY).is_ok();
    }
    if !noted && let Some(until) = CLOSED_UNTIL.get_ptr_mut(state.workload) {
        // What cannot be remembered is not closed.
        update(until, |until| *until = 0);
        count(state.workload, Counter::ListenerLost, 1);
    }
    Some(())
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) -> Option<()> {
    let state = SOCKETS.get(ctx.socket()?)?;
    if ctx.arg(0) == STATE_LISTEN {
        return Some(());
    }
    rendezvous::take_back(state);
    if state.is(SocketState::IN_MAP) {
        pair::remove(state);
    }
    // Until it connects again: the application may still ask for addresses.
    state.flags &= SocketState::PROXY
        | SocketState::MULTIPATH
        | SocketState::STEERED
        | SocketState::BOUND_ADDRESS
        | SocketState::BOUND_PORT;
    Some(())
}

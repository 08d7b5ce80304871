//! Whether a message may go past TCP, and how far: the proofs, on the state of both ends.
//!
//! Everything that is asked of the kernel goes through [`Kernel`], so that a model on the host runs the very same code
//! (`evidence/model.rs`).
//!
//! # Joined hops
//!
//! The proxy joins two of its sockets when it has found that it relays every byte between them as it is. Over one proxy or
//! two the joined hops then lead from an application's socket to the application at the far end. Each of these hops is
//! proved by both of its ends, which have met and know each other by cookie. What may still be under way between is known by
//! counting: the application that sends knows how many bytes it gave to its first hop, and the last proxy says how many it
//! has written to the other application, all of them ([`settle`]). If both are the same number, nothing is in any queue or
//! proxy between, and a message that goes past them overtakes nothing. While they differ messages take the first hop.

use sidecar_common::{
    flow::HalfFlow,
    record::Counter,
    settings::{
        NAIVE_JOIN, NAIVE_REDIRECT, WORKLOAD_REDIRECT, WORKLOAD_REDIRECT_JOINED,
        WORKLOAD_REDIRECT_TO_APPLICATIONS, WORKLOAD_REDIRECT_TO_PROXIES,
    },
    socket_state::SocketState,
};

use crate::decide::{self, Evidence, SendWindow};

#[cfg(test)]
mod model;

/// What the proofs need to know.
pub trait Kernel {
    type Half: Half;
    type Tcp: Tcp;
    /// The entry of the socket with this cookie, if it is in `HALF_FLOWS`.
    fn half(&self, cookie: u64) -> Option<Self::Half>;
    /// The socket at an address that was noted when it entered the map. It may have gone since.
    fn tcp(&self, address: u64) -> Self::Tcp;
    /// The workload in this place, if the enrolment is the one that it has now.
    fn workload(&self, index: u32, enrolment: u64) -> Option<Receiver>;
    /// Redirect is on for the node.
    fn is_enabled(&self) -> bool;
    /// Which evidence is not asked for: one of the `NAIVE_` constants.
    fn naive(&self) -> u32;
}

/// An entry of `HALF_FLOWS`.
pub trait Half {
    fn read<R>(&self, look: impl FnOnce(&HalfFlow) -> R) -> R;
    fn write(&self, change: impl FnOnce(&mut HalfFlow));
}

/// A `tcp_sock`. `None`: it cannot be read.
pub trait Tcp {
    /// Up to where the application has read what came by TCP.
    fn copied_seq(&self) -> Option<u32>;
    /// Up to where it has written what goes by TCP.
    fn write_seq(&self) -> Option<u32>;
    /// Whether all that was redirected to the socket has been read.
    fn ingress_is_empty(&self) -> bool;
    fn is_nonblocking(&self) -> Option<bool>;
    /// Another protocol sits on top of TCP.
    fn has_ulp(&self) -> bool;
}

/// What the receiving workload says.
#[derive(Debug, Clone, Copy)]
pub struct Receiver {
    pub flags: u32,
    pub credit_bytes: u32,
}

/// Where a message was redirected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirected {
    /// The other end of the connection.
    ToPeer,
    /// The application at the far end, past the proxies between.
    Joined,
}

/// The entry of the socket with this cookie and no other.
#[inline(always)]
fn half<K: Kernel>(kernel: &K, cookie: u64) -> Option<K::Half> {
    if cookie == 0 {
        return None;
    }
    kernel
        .half(cookie)
        .filter(|half| half.read(|h| h.cookie) == cookie)
}

/// The entry of the socket at the other end, which has to name this one in turn: a socket keeps its cookie when it connects
/// anew.
#[inline(always)]
fn other_end<K: Kernel>(kernel: &K, state: &SocketState, cookie: u64) -> Option<K::Half> {
    half(kernel, cookie).filter(|half| half.read(|h| h.peer) == state.cookie)
}

/// The cookie of the socket at the other end, if both have met. Remembered in the socket's own state.
#[inline(always)]
fn peer<K: Kernel>(kernel: &K, state: &mut SocketState) -> Option<u64> {
    if state.peer == 0 {
        // A connecting socket is told by the accepted one.
        state.peer = half(kernel, state.cookie)?.read(|own| own.peer);
    }
    (state.peer != 0).then_some(state.peer)
}

/// A message is about to be sent on a socket in the map: redirects it, or says why it takes TCP. `tcp_state`: of the
/// socket. `redirect`: puts the message into the queue of the socket with a cookie, if that is in the map.
#[inline(always)]
pub fn message<K: Kernel>(
    kernel: &K,
    state: &mut SocketState,
    tcp_state: u32,
    bytes: u32,
    bulk: bool,
    redirect: impl Fn(u64) -> bool,
) -> Result<Redirected, Counter> {
    let Some(to) = peer(kernel, state) else {
        if state.claimed_peer.is_some() {
            // Its application's socket may yet enter the map.
            keep_to_tcp(kernel, state);
        }
        return Err(Counter::FallbackNoPeer);
    };
    let receiver = other_end(kernel, state, to).ok_or(Counter::FallbackNoPeer)?;
    if kernel.workload(state.workload, state.enrolment).is_none() {
        // Its workload has left.
        take_tcp(kernel, state, &receiver);
        return Err(Counter::FallbackOff);
    }
    if kernel.naive() != NAIVE_REDIRECT {
        if !state.is(SocketState::PROXY)
            && past_proxies(kernel, state, tcp_state, &receiver, bytes, &redirect).is_some()
        {
            return Ok(Redirected::Joined);
        }
        let evidence = evidence(kernel, state, tcp_state, &receiver, bytes, bulk);
        let verdict = match &evidence {
            Some(evidence) => decide::redirect(evidence).or_else(|why| {
                let unread = decide::redirect(&decide::unread(evidence)).is_ok()
                    && has_unread(kernel, state, &receiver);
                if unread { Ok(()) } else { Err(why) }
            }),
            None => Err(Counter::FallbackMiss),
        };
        verdict.inspect_err(|_| take_tcp(kernel, state, &receiver))?;
    }
    if !redirect(to) {
        take_tcp(kernel, state, &receiver);
        return Err(Counter::FallbackMiss);
    }
    state.sent_bytes = state.sent_bytes.wrapping_add(u64::from(bytes));
    receiver.write(|r| r.received_bytes = r.received_bytes.wrapping_add(u64::from(bytes)));
    Ok(Redirected::ToPeer)
}

/// Whether the message is part of a stream: large, and nothing came the other way since the large one before.
#[inline(always)]
pub fn is_bulk<K: Kernel>(kernel: &K, state: &mut SocketState, bytes: u32) -> bool {
    if !decide::is_large(bytes) {
        return false;
    }
    let Some(by_tcp) = kernel.tcp(state.socket).copied_seq() else {
        return true;
    };
    let redirected = half(kernel, state.cookie).map_or(0, |own| own.read(|o| o.received_bytes));
    let heard = redirected.wrapping_add(u64::from(by_tcp));
    let stream = state.heard == heard;
    state.heard = heard;
    stream
}

/// Towards an application there is no way back from TCP: see `decide::redirect`.
#[inline(always)]
fn take_tcp<K: Kernel>(kernel: &K, state: &mut SocketState, receiver: &K::Half) {
    if !receiver.read(|r| r.is(HalfFlow::OF_PROXY)) {
        keep_to_tcp(kernel, state);
    }
}

#[inline(always)]
fn keep_to_tcp<K: Kernel>(kernel: &K, state: &mut SocketState) {
    if state.is(SocketState::TCP) {
        return;
    }
    state.flags |= SocketState::TCP;
    state.fallback = state.fallback.wrapping_add(decide::FLOW_ON_TCP);
    if let Some(own) = half(kernel, state.cookie) {
        own.write(|o| o.flags |= HalfFlow::TCP);
    }
}

/// `getsockopt` of a proxy on its socket in the map: how much it may write now. `None`: the other end has not been met
/// yet. The socket's lock is held as it is while it sends.
#[inline(always)]
pub fn send_window<K: Kernel>(
    kernel: &K,
    state: &mut SocketState,
    tcp_state: u32,
) -> Option<SendWindow> {
    let to = peer(kernel, state)?;
    let Some(receiver) = other_end(kernel, state, to) else {
        return Some(SendWindow::Tcp(Counter::FallbackNoPeer));
    };
    if kernel.naive() == NAIVE_REDIRECT || receiver.read(|r| r.is(HalfFlow::OF_PROXY)) {
        return Some(SendWindow::All);
    }
    if state.is(SocketState::TCP) {
        return Some(SendWindow::All);
    }
    let window = match evidence(kernel, state, tcp_state, &receiver, 0, false) {
        Some(evidence) => match decide::send_window(&evidence) {
            // Others redirect to it, too, who may be about to: it stays as it is.
            SendWindow::Tcp(_) if is_settled(kernel, state) => {
                decide::send_window(&decide::unread(&evidence))
            }
            // What waits in the queue beside TCP's has to be read first: only then can the socket leave the map (`leave`).
            SendWindow::Tcp(_) if has_unread(kernel, state, &receiver) => SendWindow::Bytes(0),
            window => window,
        },
        None => SendWindow::Tcp(Counter::FallbackMiss),
    };
    match window {
        SendWindow::Bytes(bytes) => {
            if !state.is(SocketState::ASKED) {
                state.flags |= SocketState::ASKED;
                if let Some(own) = half(kernel, state.cookie) {
                    own.write(|o| o.flags |= HalfFlow::ASKED);
                }
            }
            if bytes == 0 {
                state.fallback = state.fallback.wrapping_add(decide::WAIT);
            }
        }
        SendWindow::Tcp(_) => take_tcp(kernel, state, &receiver),
        SendWindow::All => {}
    }
    Some(window)
}

/// Whether something redirected waits at the receiver, or more may come to it from others at any time.
#[inline(always)]
fn has_unread<K: Kernel>(kernel: &K, state: &SocketState, receiver: &K::Half) -> bool {
    let (of_proxy, socket) = receiver.read(|r| (r.is(HalfFlow::OF_PROXY), r.socket));
    !of_proxy && is_settled(kernel, state)
        || state.sent_bytes != 0 && !kernel.tcp(socket).ingress_is_empty()
}

#[inline(always)]
fn is_settled<K: Kernel>(kernel: &K, state: &SocketState) -> bool {
    half(kernel, state.cookie).is_none_or(|own| own.read(|o| o.is(HalfFlow::SETTLED)))
}

/// Whether the application's socket at the other end shall leave the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It has this cookie.
    Now(u64),
    /// Nothing takes TCP so far, or something redirected is unread.
    NotYet,
    Never,
}

/// A proxy's socket is about to have bytes queued by TCP. An application's socket in the map that gets its bytes by TCP would be
/// out of its right place: `FIONREAD` knows redirected bytes only on some kernels, and a blocking read may return at once with
/// nothing. What was redirected and is unread would be lost with it, so that nobody else may redirect to it, as those do that
/// are joined.
#[inline(always)]
pub fn leave<K: Kernel>(kernel: &K, state: &mut SocketState) -> Leave {
    if !state.is(SocketState::TCP) {
        return Leave::NotYet;
    }
    if is_settled(kernel, state) {
        return Leave::Never;
    }
    let Some(to) = peer(kernel, state) else {
        // On its way into the map it is met within microseconds; mostly it never comes.
        if state.is(SocketState::LONE) {
            return Leave::Never;
        }
        state.flags |= SocketState::LONE;
        return Leave::NotYet;
    };
    let Some(receiver) = other_end(kernel, state, to) else {
        return Leave::Never;
    };
    let (of_proxy, cookie, socket) =
        receiver.read(|r| (r.is(HalfFlow::OF_PROXY), r.cookie, r.socket));
    if of_proxy {
        Leave::Never
    } else if kernel.tcp(socket).ingress_is_empty() {
        Leave::Now(cookie)
    } else {
        Leave::NotYet
    }
}

/// Runs under the sender's lock. Only where two threads send on one socket at a time may a message that is still on its
/// way be taken for read; the bound is then exceeded by that message.
#[inline(always)]
fn evidence<K: Kernel>(
    kernel: &K,
    state: &mut SocketState,
    tcp_state: u32,
    receiver: &K::Half,
    bytes: u32,
    bulk: bool,
) -> Option<Evidence> {
    let (workload, enrolment, to_proxy, socket) =
        receiver.read(|r| (r.workload, r.enrolment, r.is(HalfFlow::OF_PROXY), r.socket));
    let sender = kernel.tcp(state.socket);
    let receiver = kernel.tcp(socket);
    let workload = kernel.workload(workload, enrolment)?;
    if state.read_bytes != state.sent_bytes && receiver.ingress_is_empty() {
        state.read_bytes = state.sent_bytes;
    }
    // An application is at one end at most.
    let has_ulp = if to_proxy {
        sender.has_ulp()
    } else {
        receiver.has_ulp()
    };
    Some(Evidence {
        enabled: kernel.is_enabled(),
        receiver_flags: workload.flags,
        to_proxy,
        asked: state.is(SocketState::ASKED),
        took_tcp: state.is(SocketState::TCP),
        watched: state.is(SocketState::WATCHED),
        level: level(state, to_proxy),
        blocking: !to_proxy && receiver.is_nonblocking() == Some(false),
        ulp: has_ulp,
        tcp_state,
        sent: sender.write_seq()?,
        arrived: receiver.copied_seq()?,
        unread_bytes: state.sent_bytes.wrapping_sub(state.read_bytes),
        message_bytes: bytes,
        bulk,
        credit_bytes: workload.credit_bytes,
    })
}

/// The flag that says that redirect goes as far as from this sender to a proxy, or to an application.
#[inline(always)]
fn level(state: &SocketState, to_proxy: bool) -> u32 {
    match (to_proxy, state.is(SocketState::PROXY)) {
        (false, _) => WORKLOAD_REDIRECT_TO_APPLICATIONS,
        (true, false) => WORKLOAD_REDIRECT_TO_PROXIES,
        (true, true) => WORKLOAD_REDIRECT,
    }
}

/// The hops from an application to the one at the far end.
struct Chain<H> {
    /// The socket of the far proxy that the near one is connected with, if there are two.
    between: Option<H>,
    /// The application's socket at the far end.
    last: H,
    /// The last proxy's socket at the other end of that one.
    last_proxy: H,
}

/// Follows the joined hops from the proxy's socket that `cookie` is connected with. Each hop has to be what both its ends
/// say.
#[inline(always)]
fn chain<K: Kernel>(kernel: &K, cookie: u64, first: &K::Half) -> Option<Chain<K::Half>> {
    let (sender, other, next) = first.read(|f| (f.peer, f.joined_to, f.next));
    if next == 0 || sender != cookie {
        return None;
    }
    let hop = half(kernel, next)?;
    let (hop_of_proxy, hop_peer, hop_other, hop_next) =
        hop.read(|h| (h.is(HalfFlow::OF_PROXY), h.peer, h.joined_to, h.next));
    if hop_peer != other {
        return None;
    }
    let chain = if hop_of_proxy {
        Chain {
            between: Some(hop),
            last: half(kernel, hop_next)?,
            last_proxy: half(kernel, hop_other)?,
        }
    } else {
        Chain {
            between: None,
            last: hop,
            last_proxy: half(kernel, other)?,
        }
    };
    let (last, last_peer, last_of_proxy) = chain
        .last
        .read(|l| (l.cookie, l.peer, l.is(HalfFlow::OF_PROXY)));
    let (proxy, proxy_peer) = chain.last_proxy.read(|p| (p.cookie, p.peer));
    (!last_of_proxy && last_peer == proxy && proxy_peer == last).then_some(chain)
}

/// Redirects the message past the proxies if that is proven safe. `first`: the socket of the sender's own proxy.
#[inline(always)]
fn past_proxies<K: Kernel>(
    kernel: &K,
    state: &mut SocketState,
    tcp_state: u32,
    first: &K::Half,
    bytes: u32,
    redirect: impl Fn(u64) -> bool,
) -> Option<()> {
    let chain = chain(kernel, state.cookie, first)?;
    let (settled_bytes, proxy_flags) = chain.last_proxy.read(|p| (p.settled_bytes, p.flags));
    if proxy_flags & HalfFlow::SETTLED == 0 {
        return None;
    }
    let (cookie, socket, workload, enrolment) = chain
        .last
        .read(|l| (l.cookie, l.socket, l.workload, l.enrolment));
    let receiver = kernel.tcp(socket);
    let workload = kernel.workload(workload, enrolment)?;
    if state.joined_read_bytes != state.joined_bytes && receiver.ingress_is_empty() {
        state.joined_read_bytes = state.joined_bytes;
    }
    let sender = kernel.tcp(state.socket);
    let by_tcp = sender.write_seq()?.wrapping_sub(state.start_seq);
    let sent = by_tcp.wrapping_add(state.sent_bytes as u32);
    let arrived = if kernel.naive() == NAIVE_JOIN {
        sent
    } else {
        settled_bytes
    };
    let evidence = Evidence {
        enabled: kernel.is_enabled(),
        receiver_flags: workload.flags,
        to_proxy: false,
        asked: proxy_flags & HalfFlow::ASKED != 0,
        took_tcp: proxy_flags & HalfFlow::TCP != 0,
        watched: true,
        level: WORKLOAD_REDIRECT_JOINED,
        blocking: receiver.is_nonblocking() == Some(false),
        ulp: receiver.has_ulp() || sender.has_ulp(),
        tcp_state,
        sent,
        arrived,
        unread_bytes: state.joined_bytes.wrapping_sub(state.joined_read_bytes),
        message_bytes: bytes,
        bulk: false,
        credit_bytes: workload.credit_bytes,
    };
    decide::redirect(&evidence).ok()?;
    if !redirect(cookie) {
        return None;
    }
    let bytes = u64::from(bytes);
    state.joined_bytes = state.joined_bytes.wrapping_add(bytes);
    let bypassed = |half: &mut HalfFlow| {
        half.bypassed_bytes = half.bypassed_bytes.wrapping_add(bytes);
    };
    first.write(bypassed);
    if let Some(between) = chain.between {
        between.write(bypassed);
    }
    chain
        .last
        .write(|l| l.received_bytes = l.received_bytes.wrapping_add(bytes));
    Some(())
}

/// `setsockopt`: the proxy relays from `state`'s socket to the one with the cookie `other`, every byte as it is. Both are the
/// workload's proxy's own, and have met their other ends.
#[inline(always)]
pub fn join<K: Kernel>(kernel: &K, state: &mut SocketState, other: u64) -> Option<()> {
    peer(kernel, state)?;
    let own = kernel.workload(state.workload, state.enrolment)?;
    if own.flags & WORKLOAD_REDIRECT_JOINED == 0 {
        return None;
    }
    let here = half(kernel, state.cookie)?;
    let there = half(kernel, other)?;
    let (flags, workload, enrolment, next) =
        there.read(|t| (t.flags, t.workload, t.enrolment, t.peer));
    if here.read(|h| h.flags) & flags & HalfFlow::OF_PROXY == 0
        || workload != state.workload
        || enrolment != state.enrolment
        || next == 0
        || other == state.cookie
    {
        return None;
    }
    here.write(|h| {
        h.joined_to = other;
        h.next = next;
    });
    Some(())
}

/// `setsockopt`: the proxy has written to `state`'s socket all that has arrived for it, `bytes` so far. `None`: the other end
/// is no application, or not all that was written to it has been taken.
#[inline(always)]
pub fn settle<K: Kernel>(kernel: &K, state: &mut SocketState, bytes: u32) -> Option<()> {
    let to = peer(kernel, state)?;
    let receiver = other_end(kernel, state, to)?;
    let (of_proxy, socket) = receiver.read(|r| (r.is(HalfFlow::OF_PROXY), r.socket));
    if of_proxy || state.is(SocketState::TCP) || !state.is(SocketState::ASKED) {
        return None;
    }
    // What may have gone by TCP in the beginning has been read.
    if kernel.tcp(state.socket).write_seq()? != kernel.tcp(socket).copied_seq()? {
        return None;
    }
    half(kernel, state.cookie)?.write(|own| {
        own.settled_bytes = bytes;
        own.flags |= HalfFlow::SETTLED;
    });
    Some(())
}

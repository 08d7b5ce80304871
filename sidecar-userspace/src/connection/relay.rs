//! Relay: bytes between two TCP connections, both ways at once.
//!
//! One task, no lock, no allocation while the receiver keeps up: each read is followed by one write. A
//! direction that cannot write does not read (back-pressure). The end of one direction is carried over and the
//! other goes on; a reset, or a peer that vanished, ends both with a reset.

use std::{
    future::Future,
    io,
    net::Shutdown,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::Either;
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{
    Ended, Outcome, Reason, Stream, Transport,
    buffers::{Buffers, Pending},
    liveness,
    send_window::SendWindow,
    stream,
};
use crate::model::{Snapshot, Timeouts};

mod broken;
mod join;
mod layered;

use broken::Failure;
use join::Join;

/// Bytes of one read at first and, once a direction has moved [`BULK_AFTER_BYTES`], the configured size.
const FIRST_READ_BYTES: usize = 16 * 1024;
const BULK_AFTER_BYTES: u64 = 64 * 1024;

/// Bytes moved in one turn before other connections of the worker get theirs.
const TURN_BYTES: usize = 1024 * 1024;

/// How often a connection is looked at that nothing else wakes: for its idle time, and for a peer that went
/// away where the relay is not reading.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_secs(5);

/// What the relay needs to know of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Ends the connection with a reset; zero: never. Exceeded by up to a quarter.
    pub idle_timeout: Duration,
    /// Bytes of one read at most.
    pub buffer_bytes: usize,
    /// For noticing that upstream has vanished.
    pub timeouts: &'a Timeouts,
}

impl<'a> Settings<'a> {
    pub fn of(snapshot: &'a Snapshot) -> Self {
        Self {
            idle_timeout: snapshot.timeouts.idle,
            // An empty buffer would read like an end of stream.
            buffer_bytes: snapshot.limits.buffer_bytes.max(1024),
            timeouts: &snapshot.timeouts,
        }
    }

    /// Of one read, in a direction that has moved `moved_bytes`.
    fn read_bytes(self, moved_bytes: u64) -> usize {
        match moved_bytes {
            ..BULK_AFTER_BYTES => FIRST_READ_BYTES.min(self.buffer_bytes),
            _ => self.buffer_bytes,
        }
    }
}

/// Relays until both directions ended or one side failed. If the future is dropped before, both sides are reset.
///
/// No `async fn`, which would hold both sides twice: most of a connection's life is spent here.
pub fn relay<'a>(
    client: Transport,
    upstream: Transport,
    pool: &'a Buffers,
    settings: Settings<'a>,
) -> impl Future<Output = Ended> + use<'a> {
    match (client, upstream) {
        (Transport::Tcp(client), Transport::Tcp(upstream)) => {
            Either::Left(sockets(client, upstream, pool, settings))
        }
        (client, upstream) => {
            Either::Right(Box::pin(layered::relay(client, upstream, pool, settings)))
        }
    }
}

async fn sockets(
    client: Stream,
    upstream: Stream,
    pool: &Buffers,
    settings: Settings<'_>,
) -> Ended {
    let ((client, from_client), (upstream, from_upstream)) =
        match (client.into_parts(), upstream.into_parts()) {
            (Ok(client), Ok(upstream)) => (client, upstream),
            (Err(error), other) => return unusable(Reason::ClientReset, error, other),
            (other, Err(error)) => return unusable(Reason::UpstreamReset, error, other),
        };
    let mut pair = Pair {
        sockets: Some((client, upstream)),
        to_upstream: Flow::new(&from_client, pool),
        to_client: Flow::new(&from_upstream, pool),
        join: Join::default(),
    };
    let (outcome, detail) = {
        let mut patience = Patience::new(settings.idle_timeout);
        let mut timer = pin!(sleep(patience.period));
        std::future::poll_fn(|cx| pair.poll(cx, pool, settings, &mut patience, timer.as_mut()))
            .await
    };
    let (past_to_upstream, past_to_client) = pair.joined_bytes();
    if outcome == Outcome::Success {
        // Both ends were said and heard: a plain close.
        pair.sockets.take();
    }
    Ended {
        outcome,
        client_bytes: pair.to_upstream.moved_bytes + past_to_upstream,
        upstream_bytes: pair.to_client.moved_bytes + past_to_client,
        detail,
    }
}

/// One side's socket cannot be used any more, and was reset; so is the other.
fn unusable(reason: Reason, error: io::Error, other: io::Result<(TcpStream, Bytes)>) -> Ended {
    if let Ok((tcp, _)) = other {
        stream::reset(tcp);
    }
    Ended {
        outcome: reason.into(),
        client_bytes: 0,
        upstream_bytes: 0,
        detail: Some(error.to_string()),
    }
}

struct Pair {
    /// Client and upstream; taken at an orderly end, reset otherwise.
    sockets: Option<(TcpStream, TcpStream)>,
    to_upstream: Flow,
    to_client: Flow,
    join: Join,
}

/// One direction.
struct Flow {
    pending: Pending,
    /// Of the receiver.
    window: SendWindow,
    moved_bytes: u64,
    /// The sender's end was read; it is passed on when nothing is pending.
    ended: bool,
    /// The end was passed on.
    done: bool,
}

/// Bytes that one turn may still move, and whether any did.
struct Turn {
    left_bytes: usize,
    moved: bool,
    /// The other direction is done.
    last: bool,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            left_bytes: TURN_BYTES,
            moved: false,
            last: false,
        }
    }
}

type End = (Outcome, Option<String>);

impl Pair {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        pool: &Buffers,
        settings: Settings<'_>,
        patience: &mut Patience,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<End> {
        let Some((client, upstream)) = &self.sockets else {
            return Poll::Ready((Outcome::Success, None));
        };
        // Each direction has its own share of the turn, so that neither starves the other.
        let (mut there, mut back) = (Turn::default(), Turn::default());
        there.last = self.to_client.done;
        if let Poll::Ready(Err(failure)) = self
            .to_upstream
            .poll(cx, client, upstream, pool, settings, &mut there)
        {
            return Poll::Ready(failure.to_upstream());
        }
        back.last = self.to_upstream.done;
        if there.moved {
            self.to_client.window.ask_again();
        }
        if let Poll::Ready(Err(failure)) = self
            .to_client
            .poll(cx, upstream, client, pool, settings, &mut back)
        {
            return Poll::Ready(failure.to_client());
        }
        patience.moved |= there.moved || back.moved;
        if self.to_upstream.done && self.to_client.done {
            return Poll::Ready((Outcome::Success, None));
        }
        let heard = back.moved && self.to_upstream.window.ask_again();
        if there.left_bytes == 0 || back.left_bytes == 0 || heard {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if there.moved || back.moved {
            let (there, back) = self.join.turn(
                &self.to_upstream.turned(client, upstream, &there),
                &self.to_client.turned(upstream, client, &back),
            );
            self.to_upstream.forget_window(there);
            self.to_client.forget_window(back);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(end) = broken::unseen(client, upstream) {
                return Poll::Ready(end);
            }
            patience.watch(upstream, settings);
            patience.past(self.join.bytes(client, upstream));
            if patience.ends() {
                return Poll::Ready((Reason::IdleTimeout.into(), None));
            }
            timer.as_mut().reset(Instant::now() + patience.period);
        }
        Poll::Pending
    }
}

impl Pair {
    /// To upstream and to the client.
    fn joined_bytes(&self) -> (u64, u64) {
        let sockets = self.sockets.as_ref();
        sockets.map_or((0, 0), |(client, upstream)| {
            self.join.bytes(client, upstream)
        })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some((client, upstream)) = self.sockets.take() {
            stream::reset(client);
            stream::reset(upstream);
        }
    }
}

impl Flow {
    /// `already_read`: bytes of this direction that come before what the socket still holds.
    fn new(already_read: &Bytes, pool: &Buffers) -> Self {
        Self {
            pending: Pending::copy_of(already_read, pool),
            window: SendWindow::default(),
            moved_bytes: 0,
            ended: false,
            done: false,
        }
    }

    /// Moves bytes until one of the sockets is not ready. `Ready(Ok)`: this direction is done.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        pool: &Buffers,
        settings: Settings<'_>,
        turn: &mut Turn,
    ) -> Poll<Result<(), Failure>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        while turn.left_bytes > 0 {
            if !self.pending.is_empty() {
                ready!(self.poll_write_pending(cx, to, pool, turn))?;
            }
            if self.ended {
                // The last end is said by closing, which comes at once.
                if !turn.last {
                    SockRef::from(to)
                        .shutdown(Shutdown::Write)
                        .map_err(Failure::Receiver)?;
                }
                self.done = true;
                turn.moved = true;
                return Poll::Ready(Ok(()));
            }
            // The socket counts as empty only after EAGAIN: see `stream`.
            ready!(from.poll_read_ready(cx)).map_err(Failure::Sender)?;
            self.move_once(from, to, pool, settings, turn)?;
        }
        Poll::Pending
    }

    fn poll_write_pending(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        pool: &Buffers,
        turn: &mut Turn,
    ) -> Poll<Result<(), Failure>> {
        while !self.pending.is_empty() {
            let pending = self.pending.bytes();
            let written = ready!(stream::poll_write(cx, to, &mut self.window, pending))
                .map_err(Failure::Receiver)?;
            self.pending.advance(written, pool);
            self.count(written, turn);
        }
        Poll::Ready(Ok(()))
    }

    /// One read and one write of what it gave.
    fn move_once(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        pool: &Buffers,
        settings: Settings<'_>,
        turn: &mut Turn,
    ) -> Result<(), Failure> {
        let limit = pool.grant(settings.read_bytes(self.moved_bytes));
        let mut buffer = pool.take(settings.buffer_bytes);
        let space = buffer.get_mut(..limit).unwrap_or_default();
        let read = match from.try_read(space) {
            Ok(read) => read,
            Err(error) => {
                pool.give(buffer);
                let would_block = error.kind() == io::ErrorKind::WouldBlock;
                return if would_block {
                    Ok(())
                } else {
                    Err(Failure::Sender(error))
                };
            }
        };
        self.ended = read == 0;
        let bytes = buffer.get(..read).unwrap_or_default();
        let written = if bytes.is_empty() {
            Ok(0)
        } else {
            write_some(to, &mut self.window, bytes)
        };
        match written {
            Ok(written) if written < read => {
                self.pending = Pending::keep(buffer, written, read, pool);
                self.count(written, turn);
                Ok(())
            }
            Ok(written) => {
                pool.give(buffer);
                self.count(written, turn);
                Ok(())
            }
            Err(error) => {
                pool.give(buffer);
                Err(Failure::Receiver(error))
            }
        }
    }

    fn turned<'a>(
        &self,
        from: &'a TcpStream,
        to: &'a TcpStream,
        turn: &Turn,
    ) -> join::HalfRelay<'a, TcpStream> {
        join::HalfRelay {
            from,
            to,
            passed_bytes: self.moved_bytes,
            settled: turn.moved && self.pending.is_empty() && !self.ended,
        }
    }

    fn forget_window(&mut self, out_of_date: bool) {
        if out_of_date {
            self.window.forget();
        }
    }

    fn count(&mut self, written: usize, turn: &mut Turn) {
        self.moved_bytes += written as u64;
        turn.left_bytes = turn.left_bytes.saturating_sub(written);
        turn.moved |= written > 0;
    }
}

/// The connection's idle time, counted in steps of a coarse timer so that moving bytes costs no clock.
struct Patience {
    idle_timeout: Duration,
    period: Duration,
    quiet_for: Duration,
    /// Set by the relay whenever bytes move.
    moved: bool,
    /// Bytes that went past the relay, both ways, when that was looked at last.
    past_bytes: u64,
    /// Upstream is asked for a sign of life.
    watching: bool,
}

impl Patience {
    fn new(idle_timeout: Duration) -> Self {
        let period = match idle_timeout {
            Duration::ZERO => LOOK_AT_MOST_EVERY,
            timeout => (timeout / 4).clamp(Duration::from_millis(5), LOOK_AT_MOST_EVERY),
        };
        Self {
            idle_timeout,
            period,
            quiet_for: Duration::ZERO,
            moved: false,
            past_bytes: 0,
            watching: false,
        }
    }

    /// The connection has lived for a period: a peer that vanishes must be noticed from now on.
    fn watch(&mut self, upstream: &TcpStream, settings: Settings<'_>) {
        if !self.watching {
            self.watching = true;
            // It fails only on a socket that has failed, and then that is seen anyway.
            let _ = liveness::watch(&SockRef::from(upstream), settings.timeouts);
        }
    }

    /// So many bytes have gone past the relay, each way.
    fn past(&mut self, (to_upstream, to_client): (u64, u64)) {
        let past_bytes = to_upstream + to_client;
        self.moved |= past_bytes != self.past_bytes;
        self.past_bytes = past_bytes;
    }

    /// One period has passed; `true` if that is enough.
    fn ends(&mut self) -> bool {
        let moved = std::mem::take(&mut self.moved);
        self.quiet_for = if moved {
            Duration::ZERO
        } else {
            self.quiet_for + self.period
        };
        !self.idle_timeout.is_zero() && self.quiet_for >= self.idle_timeout
    }
}

/// What a write without waiting takes; 0: nothing now.
fn write_some(to: &TcpStream, window: &mut SendWindow, bytes: &[u8]) -> io::Result<usize> {
    let granted = window.now(to, bytes.len());
    if granted == 0 {
        return Ok(0);
    }
    match to.try_write(bytes.get(..granted).unwrap_or(bytes)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Ok(written) => {
            window.spend(written);
            Ok(written)
        }
        Err(error) => Err(error),
    }
}

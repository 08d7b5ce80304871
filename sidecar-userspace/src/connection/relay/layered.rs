//! The relay where at least one side is TLS or a stream of a tunnel. The same rules as between sockets: a direction that cannot write does
//! not read, an end is carried over by close_notify, and a stream that breaks off without one resets the other side.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    End, Patience, Settings, Turn,
    broken::{self, Failure},
};
use crate::connection::{
    Ended, Outcome, Reason, Transport,
    buffers::{Buffers, Held, Pending},
    tunnel::TunnelStream,
};

/// As [`super::relay`].
pub(super) async fn relay(
    client: Transport,
    upstream: Transport,
    pool: &Buffers,
    settings: Settings<'_>,
) -> Ended {
    let mut pair = Pair {
        sides: Some((client, upstream)),
        to_upstream: Flow::default(),
        to_client: Flow::default(),
    };
    let (outcome, detail) = {
        let mut patience = Patience::new(settings.idle_timeout);
        let mut timer = pin!(sleep(patience.period));
        std::future::poll_fn(|cx| pair.poll(cx, pool, settings, &mut patience, timer.as_mut()))
            .await
    };
    if outcome == Outcome::Success {
        // Both ends were said and heard: a plain close.
        pair.sides.take();
    }
    Ended {
        outcome,
        client_bytes: pair.to_upstream.moved_bytes,
        upstream_bytes: pair.to_client.moved_bytes,
        detail,
    }
}

struct Pair {
    /// Client and upstream; taken at an orderly end, reset otherwise.
    sides: Option<(Transport, Transport)>,
    to_upstream: Flow,
    to_client: Flow,
}

/// One direction.
#[derive(Default)]
struct Flow {
    pending: Pending,
    /// What a tunnel's stream holds while the receiver does not keep up.
    held: Option<Held>,
    moved_bytes: u64,
    /// The receiver's TLS may hold bytes that are not in its socket.
    unflushed: bool,
    /// The sender's end was read; it is passed on when nothing is pending.
    ended: bool,
    /// The end was passed on.
    done: bool,
}

impl Pair {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        pool: &Buffers,
        settings: Settings<'_>,
        patience: &mut Patience,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<End> {
        let Some((client, upstream)) = &mut self.sides else {
            return Poll::Ready((Outcome::Success, None));
        };
        let (mut there, mut back) = (Turn::default(), Turn::default());
        let polled = self
            .to_upstream
            .poll(cx, client, upstream, pool, settings, &mut there);
        if let Poll::Ready(Err(failure)) = polled {
            return Poll::Ready(failure.to_upstream());
        }
        let polled = self
            .to_client
            .poll(cx, upstream, client, pool, settings, &mut back);
        if let Poll::Ready(Err(failure)) = polled {
            return Poll::Ready(failure.to_client());
        }
        patience.moved |= there.moved || back.moved;
        if self.to_upstream.done && self.to_client.done {
            return Poll::Ready((Outcome::Success, None));
        }
        if there.left_bytes == 0 || back.left_bytes == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(error) = client.poll_broken(cx) {
            return Poll::Ready(broken::client(&error));
        }
        if let Some(error) = upstream.poll_broken(cx) {
            return Poll::Ready(broken::upstream(&error));
        }
        while timer.as_mut().poll(cx).is_ready() {
            // As `broken::unseen`.
            if let Some(error) = client.take_error() {
                return Poll::Ready(broken::client(&error));
            }
            if let Some(error) = upstream.take_error() {
                return Poll::Ready(broken::upstream(&error));
            }
            if let Some(upstream) = upstream.tcp() {
                patience.watch(upstream, settings);
            }
            if patience.ends() {
                return Poll::Ready((Reason::IdleTimeout.into(), None));
            }
            timer.as_mut().reset(Instant::now() + patience.period);
        }
        Poll::Pending
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some((client, upstream)) = self.sides.take() {
            client.reset();
            upstream.reset();
        }
    }
}

impl Flow {
    /// Moves bytes until one of the sides is not ready. `Ready(Ok)`: this direction is done.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Transport,
        to: &mut Transport,
        pool: &Buffers,
        settings: Settings<'_>,
        turn: &mut Turn,
    ) -> Poll<Result<(), Failure>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        while turn.left_bytes > 0 {
            while !self.pending.is_empty() {
                let written = Pin::new(&mut *to).poll_write(cx, self.pending.bytes());
                let written = ready!(written).map_err(Failure::Receiver)?;
                self.pending.advance(written, pool);
                self.count(written, turn);
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Failure::Receiver)?;
                self.done = true;
                turn.moved = true;
                return Poll::Ready(Ok(()));
            }
            match self.poll_move(cx, from, to, pool, settings, turn) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Failure::Receiver)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Pending
    }

    /// One read and one write of what it gave. `Pending`: there is nothing to read, or what was read stays where it is.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Transport,
        to: &mut Transport,
        pool: &Buffers,
        settings: Settings<'_>,
        turn: &mut Turn,
    ) -> Poll<Result<(), Failure>> {
        if let Transport::Tunnel(from) = from {
            return self.poll_pass(cx, from, to, pool, turn);
        }
        let limit = pool.grant(settings.read_bytes(self.moved_bytes));
        let mut buffer = pool.take(settings.buffer_bytes);
        let mut space = ReadBuf::new(buffer.get_mut(..limit).unwrap_or_default());
        let read = match Pin::new(from).poll_read(cx, &mut space) {
            Poll::Ready(Ok(())) => space.filled().len(),
            other => {
                pool.give(buffer);
                return other.map_err(Failure::Sender);
            }
        };
        self.ended = read == 0;
        let bytes = buffer.get(..read).unwrap_or_default();
        let written = match bytes {
            [] => Ok(0),
            bytes => match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(written) => written,
                Poll::Pending => Ok(0),
            },
        };
        match written {
            Ok(written) if written < read => {
                self.pending = Pending::keep(buffer, written, read, pool);
                self.count(written, turn);
                Poll::Ready(Ok(()))
            }
            Ok(written) => {
                pool.give(buffer);
                self.count(written, turn);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                pool.give(buffer);
                Poll::Ready(Err(Failure::Receiver(error)))
            }
        }
    }

    /// As [`Self::poll_move`], without a buffer in between: a tunnel's frames are written as they came.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TunnelStream,
        to: &mut Transport,
        pool: &Buffers,
        turn: &mut Turn,
    ) -> Poll<Result<(), Failure>> {
        let chunk = ready!(from.poll_chunk(cx)).map_err(Failure::Sender)?;
        if chunk.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        match Pin::new(to).poll_write(cx, chunk) {
            Poll::Ready(Ok(written)) => {
                from.consume(written);
                self.held = None;
                self.count(written, turn);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(Failure::Receiver(error))),
            Poll::Pending => {
                from.gather(cx);
                self.held = Some(pool.hold(from.held_bytes()));
                Poll::Pending
            }
        }
    }

    fn count(&mut self, written: usize, turn: &mut Turn) {
        self.moved_bytes += written as u64;
        self.unflushed |= written > 0;
        turn.left_bytes = turn.left_bytes.saturating_sub(written);
        turn.moved |= written > 0;
    }
}

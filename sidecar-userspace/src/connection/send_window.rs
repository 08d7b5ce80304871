//! How much may be written to a socket at once.
//!
//! What is redirected to an application waits in a queue beside TCP's, and an application must get all bytes of a
//! connection through one of them (ARCHITECTURE.md, "Redirect on evidence"). So the kernel half does not fall back to
//! TCP there when the credit is used up: the proxy asks how much room there is, keeps to it, and waits for more. It
//! asks once where nothing is redirected, else once for each credit's worth of bytes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{
    io::unix::AsyncFd,
    time::{Sleep, sleep},
};

use crate::sys::sockopt::{self, Answer};

/// A reader that keeps up empties its queue in about this time; tokio's own timer knows milliseconds only.
const SHORT: Duration = Duration::from_micros(50);
/// After so many short waits the reader is slow, or stopped, and the waits grow.
const SHORT_WAITS: u32 = 16;
const LONGEST: Duration = Duration::from_millis(10);
/// So often the other end may be found not accepted yet. The kernel does that before `connect` returns; whoever finds
/// it otherwise goes on by TCP.
const UNDECIDED_WAITS: u32 = 100;

/// Of one direction of one connection; belongs to whoever writes.
#[derive(Debug, Default)]
pub struct SendWindow {
    left: Left,
    /// Made at the first wait.
    wait: Option<Box<Wait>>,
}

#[derive(Debug, Default, Clone, Copy)]
enum Left {
    /// Not asked yet.
    #[default]
    Unknown,
    /// As much as TCP takes.
    Tcp,
    /// So many bytes before the next question.
    Bytes(u32),
}

impl SendWindow {
    /// How many of `wanted` bytes may be written to `socket` now; 0: none, see [`Self::poll`].
    pub fn now(&mut self, socket: &impl AsFd, wanted: usize) -> usize {
        if let Left::Bytes(left) = self.left
            && left > 0
        {
            return wanted.min(left as usize);
        }
        let waits = self.wait.as_ref().map_or(0, |wait| wait.waits);
        if !matches!(self.left, Left::Tcp) {
            self.left = match sockopt::room(socket) {
                Answer::Undecided if waits < UNDECIDED_WAITS => return 0,
                Answer::Undecided | Answer::Tcp => Left::Tcp,
                Answer::Bytes(bytes) => Left::Bytes(bytes),
            };
        }
        match self.left {
            Left::Bytes(left) => wanted.min(left as usize),
            Left::Unknown | Left::Tcp => wanted,
        }
    }

    /// As [`Self::now`], waiting until there is room for at least one byte.
    pub fn poll(&mut self, cx: &mut Context<'_>, socket: &impl AsFd, wanted: usize) -> Poll<usize> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.poll(cx));
            }
            let room = self.now(socket, wanted);
            if room > 0 || wanted == 0 {
                if let Some(wait) = &mut self.wait {
                    wait.waits = 0;
                }
                return Poll::Ready(room);
            }
            let wait = self.wait.get_or_insert_with(Box::default);
            wait.begin(period(wait.waits));
            wait.waits = wait.waits.saturating_add(1);
        }
    }

    /// What was said of the room is out of date: others write to the same receiver.
    pub fn forget(&mut self) {
        if matches!(self.left, Left::Bytes(_)) {
            self.left = Left::Unknown;
        }
    }

    /// `bytes` were written.
    pub fn spend(&mut self, bytes: usize) {
        if let Left::Bytes(left) = &mut self.left {
            *left = left.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }
}

/// The length of the wait after `waits` others.
fn period(waits: u32) -> Duration {
    let doublings = waits.saturating_sub(SHORT_WAITS).min(16);
    (SHORT * 2_u32.saturating_pow(doublings)).min(LONGEST)
}

/// A timer that is finer than the runtime's; the runtime's where the kernel has no descriptor for us.
#[derive(Debug, Default)]
struct Wait {
    state: State,
    /// How many there were since room was last given.
    waits: u32,
    /// Kept from one wait to the next.
    timer: Option<AsyncFd<OwnedFd>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Over,
    Timer,
    Sleep(Pin<Box<Sleep>>),
}

impl Wait {
    fn begin(&mut self, period: Duration) {
        self.state = match self.arm(period) {
            Ok(()) => State::Timer,
            Err(_) => State::Sleep(Box::pin(sleep(period))),
        };
    }

    fn arm(&mut self, period: Duration) -> io::Result<()> {
        if self.timer.is_none() {
            let timer = timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe, which has its rooms; a timer keeps its descriptor"
            )]
            let registered = AsyncFd::new(timer)?;
            self.timer = Some(registered);
        }
        let Some(timer) = &self.timer else {
            return Ok(());
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(period).unwrap_or_default(),
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Over => return Poll::Ready(()),
            State::Sleep(sleep) => ready!(sleep.as_mut().poll(cx)),
            State::Timer => ready!(self.poll_timer(cx)),
        }
        self.state = State::Over;
        Poll::Ready(())
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timer) = &self.timer else {
            return Poll::Ready(());
        };
        loop {
            let Ok(mut ready) = ready!(timer.poll_read_ready(cx)) else {
                // The runtime is shutting down.
                return Poll::Ready(());
            };
            match rustix::io::read(timer, &mut [0; 8]) {
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                _ => {
                    ready.clear_ready();
                    return Poll::Ready(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::UdpSocket};

    use super::*;

    #[test]
    fn waits_grow() {
        assert_eq!(period(0), SHORT);
        assert_eq!(period(SHORT_WAITS), SHORT);
        assert_eq!(period(SHORT_WAITS + 1), SHORT * 2);
        assert_eq!(period(u32::MAX), LONGEST);
    }

    #[test]
    fn without_the_kernel_half_there_is_room() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut window = SendWindow::default();
        assert_eq!(window.now(&socket, 1 << 30), 1 << 30);
        window.spend(1 << 30);
        assert_eq!(window.now(&socket, 7), 7);
    }

    #[test]
    fn what_was_given_is_spent_before_the_next_question() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut window = SendWindow {
            left: Left::Bytes(10),
            ..SendWindow::default()
        };
        assert_eq!(window.now(&socket, 100), 10);
        window.spend(6);
        assert_eq!(window.now(&socket, 100), 4);
        window.spend(4);
        assert_eq!(window.now(&socket, 100), 100, "nothing is redirected here");
    }

    #[tokio::test]
    async fn a_wait_is_finer_than_a_millisecond() {
        let mut wait = Wait::default();
        let start = std::time::Instant::now();
        for _ in 0..20 {
            wait.begin(SHORT);
            poll_fn(|cx| wait.poll(cx)).await;
        }
        assert!(start.elapsed() >= SHORT * 20);
        assert!(matches!(wait.state, State::Over));
        assert!(wait.timer.is_some());
    }
}

//! How much may be written to a socket at once.
//!
//! What is redirected to an application waits in a queue beside TCP's, and an application must get all bytes of a
//! connection through one of them (ARCHITECTURE.md, "Redirect on evidence"). So the kernel half does not fall back to
//! TCP there when the credit is used up: the proxy asks how much room there is, keeps to it, and waits for more. It
//! asks once where nothing is redirected, else once for each credit's worth of bytes.
//!
//! Nothing announces that an application has read. So the proxy asks again: soon at first, for readers that keep up, and
//! more and more rarely the longer a reader has not read; and at once when the application has sent something, or when
//! another reader that had stopped for long reads again.

use std::{
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep};

use super::fine_timer::{self, Wait};
use crate::sys::sockopt::{self, Answer};

/// A reader that keeps up empties its queue in about this time.
const SHORTEST: Duration = Duration::from_micros(50);
/// A reader that has not read for some time is asked after when this part of that time has passed again: who begins to
/// read again waits for a sixteenth of his pause at most.
const PART_OF_STALL: u32 = 16;
const LONGEST: Duration = Duration::from_millis(100);
/// Where very many wait, each asks so much more rarely that all of them together ask once in this time: a question costs
/// some microseconds, all of them a fiftieth of a CPU, however many they are.
const BETWEEN_QUESTIONS: Duration = Duration::from_micros(200);
/// Who reads again after so long is perhaps an application that was stopped as a whole: all others are asked after as well,
/// which is not done again before this time has passed for each of them.
const LONG_STALL: Duration = LONGEST.saturating_mul(PART_OF_STALL);
const BETWEEN_QUESTIONS_TO_ALL: Duration = Duration::from_micros(400);
/// For so long the other end may be found not accepted yet. The kernel accepts before `connect` returns; whoever finds
/// it otherwise goes on by TCP.
const UNDECIDED: Duration = Duration::from_secs(1);

/// Of one direction of one connection; belongs to whoever writes.
#[derive(Debug, Default)]
pub struct SendWindow {
    left: Left,
    /// `None`: there was room when it was looked for last.
    stall: Option<Box<Stall>>,
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

/// A time without room.
#[derive(Debug)]
struct Stall {
    since: Instant,
    /// Until the next question; `None`: it is due.
    pause: Option<Pause>,
}

#[derive(Debug)]
enum Pause {
    Fine(Wait),
    /// Where the kernel has no descriptor for the worker's timer.
    Coarse(Pin<Box<Sleep>>),
}

impl SendWindow {
    /// How many of `wanted` bytes may be written to `socket` now; 0: none, see [`Self::poll`].
    pub fn now(&mut self, socket: &impl AsFd, wanted: usize) -> usize {
        if let Left::Bytes(left) = self.left
            && left > 0
        {
            return wanted.min(left as usize);
        }
        if !matches!(self.left, Left::Tcp) {
            let stall = self.stall.as_ref();
            self.left = match sockopt::send_window(socket) {
                Answer::Undecided if stall.is_none_or(|s| s.since.elapsed() < UNDECIDED) => {
                    return 0;
                }
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
            if let Some(stall) = &mut self.stall {
                ready!(stall.poll(cx));
            }
            let room = self.now(socket, wanted);
            if room > 0 || wanted == 0 {
                let stall = self.stall.take();
                if stall.is_some_and(|stall| stall.is_long()) {
                    fine_timer::end_all(BETWEEN_QUESTIONS_TO_ALL);
                }
                return Poll::Ready(room);
            }
            let now = Instant::now();
            let stall = self.stall.get_or_insert_with(|| {
                Box::new(Stall {
                    since: now,
                    pause: None,
                })
            });
            stall.begin(now, cx);
        }
    }

    /// The application has sent something, and has thus probably read: the next [`Self::poll`] asks. `true`: somebody waits
    /// for it.
    pub fn ask_again(&mut self) -> bool {
        let stall = self.stall.as_mut();
        stall.is_some_and(|stall| stall.pause.take().is_some())
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

impl Stall {
    fn begin(&mut self, now: Instant, cx: &Context<'_>) {
        let period = period(now - self.since, fine_timer::waiting());
        self.pause = Some(match Wait::begin(period, now, cx) {
            Ok(wait) => Pause::Fine(wait),
            Err(_) => Pause::Coarse(Box::pin(sleep(period))),
        });
    }

    fn is_long(&self) -> bool {
        self.since.elapsed() >= LONG_STALL
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.pause {
            Some(Pause::Fine(wait)) => ready!(wait.poll(cx)),
            Some(Pause::Coarse(sleep)) => ready!(sleep.as_mut().poll(cx)),
            None => {}
        }
        self.pause = None;
        Poll::Ready(())
    }
}

/// How long to wait when there has been no room for `stalled`, on a worker where `others` wait as well.
fn period(stalled: Duration, others: usize) -> Duration {
    let others = u32::try_from(others).unwrap_or(u32::MAX);
    let longest = LONGEST.max(BETWEEN_QUESTIONS.saturating_mul(others));
    (stalled / PART_OF_STALL).clamp(SHORTEST, longest)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn waits_grow_with_the_stall() {
        let ms = Duration::from_millis;
        assert_eq!(period(Duration::ZERO, 0), SHORTEST);
        assert_eq!(period(PART_OF_STALL * SHORTEST, 0), SHORTEST);
        assert_eq!(period(ms(160), 0), ms(10));
        assert_eq!(period(Duration::MAX, 0), LONGEST);
    }

    #[test]
    fn however_many_wait_they_ask_so_often_only() {
        assert_eq!(period(Duration::MAX, 500), LONGEST);
        assert_eq!(period(Duration::MAX, 10_000), Duration::from_secs(2));
        // Readers that keep up are not held up by those that do not.
        assert_eq!(period(Duration::ZERO, 10_000), SHORTEST);
    }

    #[tokio::test]
    async fn a_message_from_the_application_ends_the_wait() {
        let mut window = SendWindow::default();
        assert!(!window.ask_again(), "nobody waits");
        let since = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let mut stall = Box::new(Stall { since, pause: None });
        std::future::poll_fn(|cx| {
            stall.begin(Instant::now(), cx);
            assert!(stall.poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        window.stall = Some(stall);
        assert!(window.ask_again());
        assert_eq!(fine_timer::waiting(), 0);
        assert!(!window.ask_again(), "once is enough");
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
}

//! A worker's timer for waits that the runtime's own timer, which knows milliseconds only, is too coarse for.
//!
//! All waits of a worker share one timer of the kernel: a wait is an entry of an ordered map, and costs neither a
//! descriptor nor a system call unless it is the first to end.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Waits of at least this length may end a little later, together with others.
const COARSE_FROM: Duration = Duration::from_millis(32);
/// They end on multiples of this, so that many of them wake the worker once.
const COARSE_STEP: Duration = Duration::from_millis(4);

/// When a wait ends, and a number of its own.
type Key = (Instant, u64);

/// A worker's timer; belongs to the task that drives it, and thus to the worker's runtime.
#[derive(Debug)]
struct FineTimer {
    timer: AsyncFd<OwnedFd>,
    start: Instant,
    waits: Mutex<Waits>,
}

/// Written by whoever waits and by the driving task, which are on the same thread: the lock is never contended. It is
/// there since hyper wants streams that are `Send`.
#[derive(Debug, Default)]
struct Waits {
    wakers: BTreeMap<Key, Waker>,
    next_number: u64,
    /// When the kernel's timer will fire; `None`: it is not set.
    armed: Option<Instant>,
    /// When all waits were ended before their time.
    ended_all: Option<Instant>,
}

thread_local! {
    /// Of the worker whose thread this is. Gone, and made anew, when its runtime has ended.
    static OWN: RefCell<Weak<FineTimer>> = const { RefCell::new(Weak::new()) };
}

/// One wait. Dropping it ends it.
#[derive(Debug)]
pub struct Wait {
    timer: Weak<FineTimer>,
    key: Key,
}

impl Wait {
    /// Waits for `period` from now. Fails where the kernel has no descriptor for the worker's timer. Only within a runtime.
    pub fn begin(period: Duration, now: Instant, cx: &Context<'_>) -> io::Result<Self> {
        let timer = FineTimer::own()?;
        let key = timer.insert(period, now, cx.waker().clone());
        Ok(Self {
            timer: Arc::downgrade(&timer),
            key,
        })
    }

    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Some(timer) = self.timer.upgrade() else {
            // The runtime is shutting down.
            return Poll::Ready(());
        };
        match timer.lock().wakers.get_mut(&self.key) {
            Some(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.upgrade() {
            let waker = timer.lock().wakers.remove(&self.key);
            // Not under the lock: it may be the last to hold a task, with other waits.
            drop(waker);
        }
    }
}

/// How many waits there are on this worker.
pub fn waiting() -> usize {
    OWN.with_borrow(Weak::upgrade)
        .map_or(0, |timer| timer.lock().wakers.len())
}

/// Ends all waits of this worker now, unless that was done within `rest` for each of them.
pub fn end_all(rest: Duration) {
    if let Some(timer) = OWN.with_borrow(Weak::upgrade) {
        timer.end_all(rest);
    }
}

impl FineTimer {
    fn own() -> io::Result<Arc<Self>> {
        OWN.with_borrow_mut(|own| {
            if let Some(timer) = own.upgrade() {
                return Ok(timer);
            }
            let timer = Arc::new(Self::new()?);
            tokio::spawn(drive(timer.clone()));
            *own = Arc::downgrade(&timer);
            Ok(timer)
        })
    }

    fn new() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, which has its rooms; a timer keeps its descriptor"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self {
            timer,
            start: Instant::now(),
            waits: Mutex::default(),
        })
    }

    fn insert(&self, period: Duration, now: Instant, waker: Waker) -> Key {
        let end = match period < COARSE_FROM {
            true => now + period,
            false => self.round_up(now + period),
        };
        let mut waits = self.lock();
        waits.next_number += 1;
        let key = (end, waits.next_number);
        waits.wakers.insert(key, waker);
        if waits.armed.is_none_or(|armed| end < armed) {
            waits.armed = Some(end);
            self.arm(end, now);
        }
        key
    }

    fn round_up(&self, end: Instant) -> Instant {
        let steps = (end - self.start).as_micros() / COARSE_STEP.as_micros() + 1;
        self.start + COARSE_STEP * u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// Wakes those whose waits are over, and sets the timer for the next.
    fn fire(&self) {
        let mut due = Vec::new();
        let now = Instant::now();
        {
            let mut waits = self.lock();
            while let Some(first) = waits.wakers.first_entry()
                && first.key().0 <= now
            {
                due.push(first.remove());
            }
            waits.armed = waits.wakers.first_key_value().map(|(key, _)| key.0);
            if let Some(end) = waits.armed {
                self.arm(end, now);
            }
        }
        due.into_iter().for_each(Waker::wake);
    }

    fn end_all(&self, rest: Duration) {
        let now = Instant::now();
        let ended = {
            let mut waits = self.lock();
            let count = u32::try_from(waits.wakers.len()).unwrap_or(u32::MAX);
            let rest = rest.saturating_mul(count);
            if waits.ended_all.is_some_and(|last| now - last < rest) {
                return;
            }
            waits.ended_all = Some(now);
            std::mem::take(&mut waits.wakers)
        };
        ended.into_values().for_each(Waker::wake);
    }

    fn arm(&self, end: Instant, now: Instant) {
        // Zero would switch it off.
        let left = (end - now).max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(left).unwrap_or_default(),
        };
        // Fails for malformed times only.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs as long as the worker's runtime.
async fn drive(timer: Arc<FineTimer>) {
    // An error: the runtime is shutting down.
    while let Ok(mut ready) = timer.timer.readable().await {
        // How often it fired need not be read: each time is an edge of its own.
        ready.clear_ready();
        timer.fire();
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use futures_util::future::join_all;

    use super::*;

    async fn wait(period: Duration) -> Duration {
        let start = Instant::now();
        let mut wait = None;
        poll_fn(|cx| {
            let wait = wait.get_or_insert_with(|| Wait::begin(period, start, cx).unwrap());
            wait.poll(cx)
        })
        .await;
        start.elapsed()
    }

    fn timers() -> usize {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|target| target.to_string_lossy().contains("timerfd"))
            .count()
    }

    #[tokio::test]
    async fn a_wait_is_finer_than_a_millisecond() {
        let period = Duration::from_micros(50);
        let start = Instant::now();
        for _ in 0..200 {
            assert!(wait(period).await >= period);
        }
        assert!(start.elapsed() < Duration::from_millis(200));
        assert_eq!(waiting(), 0);
    }

    #[tokio::test]
    async fn waits_share_a_timer_and_end_in_order() {
        let before = timers();
        let periods = (1..=1000_u32).rev().map(|n| n * Duration::from_micros(100));
        let (mut last, mut timers_used) = (Duration::ZERO, 0);
        let all = join_all(periods.map(async |period| {
            let took = wait(period).await;
            assert!(took >= period && took < period + Duration::from_secs(5));
        }));
        let look = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            timers_used = timers().saturating_sub(before);
            last = wait(Duration::from_millis(100)).await;
        };
        tokio::join!(all, look);
        assert!(last >= Duration::from_millis(100));
        // Other tests run beside this one, on threads of their own.
        assert!(timers_used < 100, "{timers_used} timers");
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_is_forgotten() {
        {
            let mut long = pin!(wait(Duration::from_secs(3600)));
            poll_fn(|cx| {
                assert!(long.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            assert_eq!(waiting(), 1);
        }
        assert_eq!(waiting(), 0);
        // Nor does it hold up shorter ones.
        assert!(wait(Duration::from_millis(1)).await < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn all_waits_can_be_ended_but_not_all_the_time() {
        let hour = Duration::from_secs(3600);
        let waits = join_all((0..10).map(|_| wait(hour)));
        let end = async {
            tokio::task::yield_now().await;
            assert_eq!(waiting(), 10);
            end_all(hour);
        };
        tokio::join!(waits, end);
        let again = async {
            tokio::task::yield_now().await;
            end_all(hour);
            assert_eq!(waiting(), 1, "it is too soon");
            end_all(Duration::ZERO);
        };
        tokio::join!(wait(hour), again);
    }

    #[test]
    fn each_runtime_has_a_timer_of_its_own() {
        for _ in 0..2 {
            let runtime = tokio::runtime::LocalRuntime::new().unwrap();
            runtime.block_on(wait(Duration::from_micros(50)));
        }
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            assert!(FineTimer::own().is_ok());
        });
        drop(runtime);
        assert!(OWN.with_borrow(Weak::upgrade).is_none());
    }
}

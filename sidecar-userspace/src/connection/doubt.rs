//! Whether a socket that gave less than it was asked for has more.
//!
//! A socket in the kernel's SOCKHASH has two queues, and a read takes from one of them (see [`super::stream`]). To ask
//! again after each short read costs a system call and a turn of the connection's task for every message, and almost
//! always in vain. Here the question waits: where more is owed, until the tasks that are ready have run, since most often
//! they find that the message was complete; where nothing is owed, for 50 ms and more. Bytes that come after the read are
//! announced by an edge of epoll, which answers the question before it is asked.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;

/// Bytes that nobody waits for, and whose edge was missed, are found within twice this time: the start of a request that was
/// sent behind another, what a server says unasked.
const LATER: Duration = Duration::from_millis(50);

/// Of one socket; shared by its [`super::Stream`] and by who knows where messages end. Both are of one worker's thread; hyper
/// wants what it reads from to be `Send` nevertheless.
#[derive(Debug)]
pub struct Doubt {
    /// The last read came short.
    open: AtomicBool,
    /// The next read is to ask the kernel.
    asks: AtomicBool,
    /// Of the message that was read last there is more to come.
    owed: AtomicBool,
    /// Never puts the question off.
    hasty: AtomicBool,
    /// Among [`Inner::later`].
    listed: AtomicBool,
    /// Raised since that list was gone through last.
    fresh: AtomicBool,
    /// Who reads the socket.
    reader: AtomicWaker,
    all: Doubts,
}

/// Of all sockets of a worker. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Doubts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    soon: Mutex<Vec<Arc<Doubt>>>,
    /// A task looks after that list; it takes what is in it before it waits.
    soon_runs: AtomicBool,
    /// A task looks after it while there is something in it.
    later: Mutex<Vec<Arc<Doubt>>>,
}

impl Doubts {
    pub fn of_socket(&self) -> Arc<Doubt> {
        Arc::new(Doubt {
            open: false.into(),
            asks: false.into(),
            owed: false.into(),
            hasty: false.into(),
            listed: false.into(),
            fresh: false.into(),
            reader: AtomicWaker::new(),
            all: self.clone(),
        })
    }

    fn ask_soon(&self, doubt: &Arc<Doubt>) {
        lock(&self.0.soon).push(doubt.clone());
        if !self.0.soon_runs.swap(true, Relaxed) {
            let all = self.clone();
            tokio::task::spawn_local(async move {
                loop {
                    let doubts = mem::take(&mut *lock(&all.0.soon));
                    if doubts.is_empty() {
                        break;
                    }
                    behind_others().await;
                    for doubt in &doubts {
                        match doubt.owed.load(Relaxed) {
                            true => doubt.ask(),
                            false => all.ask_later(doubt),
                        }
                    }
                }
                all.0.soon_runs.store(false, Relaxed);
            });
        }
    }

    fn ask_later(&self, doubt: &Arc<Doubt>) {
        if !doubt.open.load(Relaxed) || doubt.listed.swap(true, Relaxed) {
            return;
        }
        let mut later = lock(&self.0.later);
        later.push(doubt.clone());
        if later.len() == 1 {
            let all = self.clone();
            tokio::task::spawn_local(async move {
                while !lock(&all.0.later).is_empty() {
                    tokio::time::sleep(LATER).await;
                    lock(&all.0.later).retain(|doubt| {
                        // Of a busy connection the next edge answers.
                        let stays = doubt.fresh.swap(false, Relaxed);
                        if !stays {
                            doubt.listed.store(false, Relaxed);
                            doubt.ask();
                        }
                        stays
                    });
                }
            });
        }
    }
}

fn lock(list: &Mutex<Vec<Arc<Doubt>>>) -> MutexGuard<'_, Vec<Arc<Doubt>>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves when the tasks that are ready now have had their turn.
async fn behind_others() {
    let mut waited = false;
    std::future::poll_fn(|cx| match mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

impl Doubt {
    /// A read came short. Whoever knows that this ended the message says so by [`Self::message_done`].
    pub fn raise(&self) {
        self.open.store(true, Relaxed);
        self.asks.store(false, Relaxed);
        self.owed.store(true, Relaxed);
        self.fresh.store(true, Relaxed);
    }

    /// The kernel has said that the socket is empty, or a read filled its buffer.
    pub fn resolve(&self) {
        self.open.store(false, Relaxed);
        self.asks.store(false, Relaxed);
    }

    /// Nothing is owed: the message is complete.
    pub fn message_done(&self) {
        self.owed.store(false, Relaxed);
    }

    /// From now on the question is asked by whoever reads next.
    pub fn hasten(&self) {
        self.hasty.store(true, Relaxed);
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Whether to ask the kernel now. If not, whoever reads is woken when the time has come.
    pub fn asks(self: &Arc<Self>, cx: &Context<'_>) -> bool {
        if !self.is_open() {
            return false;
        }
        if self.asks.load(Relaxed) || self.hasty.load(Relaxed) {
            return true;
        }
        self.reader.register(cx.waker());
        match self.owed.load(Relaxed) {
            true => self.all.ask_soon(self),
            false => self.all.ask_later(self),
        }
        false
    }

    fn ask(&self) {
        if self.is_open() {
            self.asks.store(true, Relaxed);
            self.reader.wake();
        }
    }
}

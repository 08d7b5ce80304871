//! The agent's side: takes connections, keeps each within its bounds, and lets [`State`] decide.
//!
//! Everybody on the node may connect, so that everything is bounded: connections in all and of one pod, the time until
//! the first message, the length of a message, the time that one may take, enrolments of one pod in a time.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    caller::Caller,
    message::{MAX_DESCRIPTORS, Reply, Request},
    state::{State, channel},
    wire::{Wire, WireError},
};
use crate::{
    endpoint::{self, UNBOUNDED},
    model::Steering,
};

/// A connection that says nothing is ended after this.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// Connections at once: of everybody, and of one pod. A pod needs two while its sidecar is replaced.
const MAX_CONNECTIONS: usize = 6000;
const MAX_OF_POD: usize = 4;
/// Messages that attach or change rules: so many at once, then one in this time.
const BURST: u32 = 20;
const ONE_IN: Duration = Duration::from_millis(500);
/// A pod's refusals are said once in this time.
const QUIET: Duration = Duration::from_secs(10);
/// Pods whose habits are remembered.
const MAX_REMEMBERED: usize = 20_000;

/// Serves connections. Shared by their tasks.
pub struct Agent {
    state: Rc<RefCell<State>>,
    habits: RefCell<HashMap<u64, Habit>>,
    connections: Cell<usize>,
    next_id: Cell<u64>,
    /// When a caller that is in no pod was last told of in the log.
    said: Cell<Option<Instant>>,
}

/// What one pod has done lately.
struct Habit {
    connections: usize,
    /// Messages that it may still send at once, at the time.
    credit: u32,
    at: Instant,
    warned: Option<Instant>,
}

/// Frees a connection's place when dropped.
struct Place<'a> {
    agent: &'a Agent,
    pod: u64,
}

impl Agent {
    pub fn new(state: Rc<RefCell<State>>) -> Rc<Self> {
        Rc::new(Self {
            state,
            habits: RefCell::default(),
            connections: Cell::new(0),
            next_id: Cell::new(1),
            said: Cell::default(),
        })
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Takes connections for as long as it is polled. Needs a local task set.
    pub async fn serve(self: Rc<Self>, listener: UnixListener) -> Infallible {
        endpoint::accept(listener, "sidecars", UNBOUNDED, |stream| {
            let agent = self.clone();
            async move { agent.connection(stream).await }
        })
        .await
    }

    async fn connection(&self, stream: UnixStream) {
        if self.connections.get() >= MAX_CONNECTIONS {
            debug!("too many connections");
            return;
        }
        self.connections.set(self.connections.get() + 1);
        self.known(stream).await;
        self.connections.set(self.connections.get() - 1);
    }

    async fn known(&self, stream: UnixStream) {
        let caller = Caller::of(&stream, &self.state.borrow().host);
        let mut wire = Wire::new(stream, MAX_DESCRIPTORS);
        let caller = match caller {
            Ok(caller) => caller,
            Err(error) => {
                let news = self.said.get().is_none_or(|at| at.elapsed() > ONE_IN);
                if news {
                    self.said.set(Some(Instant::now()));
                    info!(%error, "refused");
                }
                self.state.borrow_mut().totals.refusals += 1;
                refuse(&wire, error.to_string()).await;
                return;
            }
        };
        let Some(_place) = self.place(caller.pod_id) else {
            let reason = format!("the pod has {MAX_OF_POD} connections to the agent already");
            self.warn(&caller, &reason);
            return refuse(&wire, reason).await;
        };
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let end = self.converse(id, &caller, &mut wire).await;
        self.state.borrow_mut().hung_up(id, caller.pod_id);
        match end {
            end @ (WireError::Closed | WireError::Io(_)) => {
                debug!(pid = caller.pid, %end, "a connection has ended");
            }
            error => self.warn(&caller, &error.to_string()),
        }
    }

    /// Until the connection ends, and why it did.
    async fn converse(&self, id: u64, caller: &Caller, wire: &mut Wire) -> WireError {
        let (to, mut replies) = channel();
        let mut silent = true;
        loop {
            let said = async {
                match silent {
                    true => timeout(FIRST_WORD, wire.receive())
                        .await
                        .map_err(|_| WireError::Slow)?,
                    false => wire.receive().await,
                }
            };
            let (request, descriptors) = tokio::select! {
                biased;
                Some((reply, descriptors)) = replies.recv() => {
                    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                    match wire.send(&reply, &descriptors).await {
                        Ok(()) => continue,
                        Err(error) => return error,
                    }
                }
                said = said => match said {
                    Ok(said) => said,
                    Err(error) => return error,
                },
            };
            silent = false;
            let answer = self.answer(id, caller, request, descriptors, &to).await;
            if let Some(reply) = answer {
                let refused = matches!(reply, Reply::Refused { .. });
                if let Err(error) = wire.send(&reply, &[]).await {
                    return error;
                }
                if refused {
                    return WireError::Closed;
                }
            }
        }
    }

    async fn answer(
        &self,
        id: u64,
        caller: &Caller,
        request: Request,
        descriptors: Vec<OwnedFd>,
        to: &super::state::ToSidecar,
    ) -> Option<Reply> {
        let changes = matches!(
            request,
            Request::Enrol(_) | Request::Reload { .. } | Request::TakeOver
        );
        if changes && !self.may_change(caller.pod_id) {
            // Not refused: whoever is in a hurry waits.
            tokio::time::sleep(ONE_IN).await;
        }
        let mut state = self.state.borrow_mut();
        match request {
            Request::Enrol(enrol) => {
                if !caller.is_alive() {
                    return Some(Reply::Refused {
                        reason: "the caller is gone".to_owned(),
                    });
                }
                match state.enrol(id, caller, enrol, descriptors, to.clone()) {
                    Ok(enrolled) => Some(Reply::Enrolled(enrolled)),
                    Err(error) => {
                        state.totals.refusals += 1;
                        self.warn(caller, &error.to_string());
                        Some(Reply::Refused {
                            reason: error.to_string(),
                        })
                    }
                }
            }
            Request::Reload { steering } => self.reload(&mut state, id, caller, *steering),
            Request::TakeOver => match state.take_over(id, caller, to.clone()) {
                true => None,
                false => Some(Reply::Refused {
                    reason: "no other sidecar serves this pod from this cgroup".to_owned(),
                }),
            },
            Request::Listeners(listeners) => match state.pass_on(id, listeners, descriptors) {
                true => None,
                false => Some(Reply::Refused {
                    reason: "nobody has asked for listeners".to_owned(),
                }),
            },
            Request::Unknown => None,
        }
    }

    fn reload(
        &self,
        state: &mut State,
        id: u64,
        caller: &Caller,
        steering: Steering,
    ) -> Option<Reply> {
        match state.reload(id, caller.pod_id, steering) {
            Ok(()) => Some(Reply::Reloaded),
            Err(error) => {
                self.warn(caller, &error.to_string());
                // The old rules stay in force, and the connection with them.
                None
            }
        }
    }

    /// A place for one more connection of the pod.
    fn place(&self, pod: u64) -> Option<Place<'_>> {
        let mut habits = self.habits.borrow_mut();
        if habits.len() >= MAX_REMEMBERED {
            habits.retain(|_, habit| habit.connections > 0);
        }
        let habit = habits.entry(pod).or_insert_with(|| Habit {
            connections: 0,
            credit: BURST,
            at: Instant::now(),
            warned: None,
        });
        if habit.connections >= MAX_OF_POD {
            return None;
        }
        habit.connections += 1;
        Some(Place { agent: self, pod })
    }

    /// Whether the pod has been moderate.
    fn may_change(&self, pod: u64) -> bool {
        let mut habits = self.habits.borrow_mut();
        let Some(habit) = habits.get_mut(&pod) else {
            return false;
        };
        let earned = habit.at.elapsed().as_millis() / ONE_IN.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(BURST);
            habit.credit = habit.credit.saturating_add(earned).min(BURST);
            habit.at = Instant::now();
        }
        let may = habit.credit > 0;
        habit.credit = habit.credit.saturating_sub(1);
        may
    }

    fn warn(&self, caller: &Caller, reason: &str) {
        let mut habits = self.habits.borrow_mut();
        if let Some(habit) = habits.get_mut(&caller.pod_id) {
            if habit.warned.is_some_and(|at| at.elapsed() < QUIET) {
                return;
            }
            habit.warned = Some(Instant::now());
        }
        let cgroup = caller.proxy.path().display();
        warn!(pid = caller.pid, uid = caller.uid, %cgroup, reason, "refused");
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(habit) = self.agent.habits.borrow_mut().get_mut(&self.pod) {
            habit.connections -= 1;
        }
    }
}

async fn refuse(wire: &Wire, reason: String) {
    // Whoever does not listen misses it.
    let _ = wire.send(&Reply::Refused { reason }, &[]).await;
}

/// The agent's socket, in place of a former agent's at once. Everybody may connect: who may what is decided by what the
/// kernel says of the caller.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    endpoint::unix(path, 0o666)
}

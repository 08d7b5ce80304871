//! The agent's side: takes connections, keeps each within its bounds, and lets [`State`] decide.
//!
//! Everybody on the node may connect, so that everything is bounded: connections in all and of one pod, the time until
//! the first message, the length of a message, the time that one may take, messages of one pod in a time.

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
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    caller::Caller,
    message::{MAX_DESCRIPTORS, Reply, Request},
    rate::Bucket,
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
/// Of those, how many others have than the sidecar that serves the pod: an application does not keep its sidecar out.
const MAX_OF_STRANGERS: usize = 2;
/// What a message costs of the pod's bucket: every one has to be read and understood, and an enrolment may attach.
const A_MESSAGE: u32 = 1;
const AN_ENROLMENT: u32 = 2;
/// Callers that are in no pod are told of in the log once in this time.
const QUIET_OF_NOBODY: Duration = Duration::from_millis(500);
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
    /// Of the connections, those of others than its sidecar.
    strangers: usize,
    bucket: Bucket,
    warned: Option<Instant>,
}

/// Frees a connection's place when dropped.
struct Place<'a> {
    agent: &'a Agent,
    pod: u64,
    stranger: bool,
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
                let news = self
                    .said
                    .get()
                    .is_none_or(|at| at.elapsed() > QUIET_OF_NOBODY);
                if news {
                    self.said.set(Some(Instant::now()));
                    info!(%error, "refused");
                }
                self.state.borrow_mut().totals.refusals += 1;
                refuse(&wire, error.to_string()).await;
                return;
            }
        };
        let Some(_place) = self.place(&caller) else {
            let reason = format!(
                "the pod has {MAX_OF_POD} connections to the agent already, or {MAX_OF_STRANGERS} beside its sidecar's"
            );
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
            // Not refused: whoever is in a hurry waits, with what it has to say in its own memory.
            let debt = match wire.has_begun() {
                true => Duration::ZERO,
                false => self.debt(caller.pod_id),
            };
            let said = async {
                if !debt.is_zero() {
                    sleep(debt).await;
                }
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
                    Err(error @ (WireError::Closed | WireError::Io(_))) => return error,
                    Err(nonsense) => {
                        self.spend(caller.pod_id, A_MESSAGE);
                        return nonsense;
                    }
                },
            };
            silent = false;
            let cost = match request {
                Request::Enrol(_) => AN_ENROLMENT,
                _ => A_MESSAGE,
            };
            self.spend(caller.pod_id, cost);
            let answer = self.answer(id, caller, request, descriptors, &to);
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

    fn answer(
        &self,
        id: u64,
        caller: &Caller,
        request: Request,
        descriptors: Vec<OwnedFd>,
        to: &super::state::ToSidecar,
    ) -> Option<Reply> {
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
                Some(Reply::NotReloaded {
                    reason: error.to_string(),
                })
            }
        }
    }

    /// A place for one more connection of the pod.
    fn place(&self, caller: &Caller) -> Option<Place<'_>> {
        let pod = caller.pod_id;
        let stranger = !self.state.borrow().may_serve(caller);
        let mut habits = self.habits.borrow_mut();
        if habits.len() >= MAX_REMEMBERED {
            habits.retain(|_, habit| habit.connections > 0);
        }
        let habit = habits.entry(pod).or_insert_with(|| Habit {
            connections: 0,
            strangers: 0,
            bucket: Bucket::full(Instant::now()),
            warned: None,
        });
        let full = stranger && habit.strangers >= MAX_OF_STRANGERS;
        if full || habit.connections >= MAX_OF_POD {
            return None;
        }
        habit.connections += 1;
        habit.strangers += usize::from(stranger);
        Some(Place {
            agent: self,
            pod,
            stranger,
        })
    }

    /// How long the pod has to wait before it is listened to.
    fn debt(&self, pod: u64) -> Duration {
        let habits = self.habits.borrow();
        let habit = habits.get(&pod);
        habit.map_or(Duration::ZERO, |habit| habit.bucket.debt(Instant::now()))
    }

    fn spend(&self, pod: u64, tokens: u32) {
        if let Some(habit) = self.habits.borrow_mut().get_mut(&pod) {
            habit.bucket.spend(tokens, Instant::now());
        }
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
            habit.strangers -= usize::from(self.stranger);
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

//! The sidecar's side: enrols once the listeners are there, and again whenever the agent has been away. Meanwhile the
//! kernel half goes on by itself.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    message::{Enrol, Listeners as Shape, MAX_DESCRIPTORS, Reply, Request},
    wire::{Wire, WireError},
};
use crate::{connection::listen::Handles, lifecycle::readiness::Token, model::Steering};

/// Between attempts, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Attaching takes some 20 ms; this is for an agent that many ask at once.
const ANSWER: Duration = Duration::from_secs(30);
/// For connecting, and for an old sidecar to hand its listeners over.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent has said, for whoever runs the sidecar.
#[derive(Debug, Clone)]
pub struct Told {
    /// Attached, at least once.
    pub enrolled: watch::Receiver<bool>,
    /// Whether the pod has other processes; `None`: not said yet.
    pub company: watch::Receiver<Option<bool>>,
    /// A new sidecar has taken over.
    pub superseded: watch::Receiver<bool>,
}

/// Keeps the sidecar enrolled.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    outbound_port: u16,
    /// Of all listeners, until a new sidecar has them.
    handles: Option<Rc<Handles>>,
    steering: watch::Receiver<Steering>,
    ready: Option<Token>,
    connected: IntGauge,
    enrolled: watch::Sender<bool>,
    company: watch::Sender<Option<bool>>,
    superseded: watch::Sender<bool>,
}

/// What a client is made of.
#[derive(Debug)]
pub struct Terms {
    pub socket: PathBuf,
    pub outbound_port: u16,
    pub handles: Handles,
    /// Each new value goes to the agent.
    pub steering: watch::Receiver<Steering>,
    /// Done when the sidecar is attached.
    pub ready: Token,
    /// 1 while the agent is there.
    pub connected: IntGauge,
}

/// Why a connection ended.
enum End {
    Lost(WireError),
    Refused(String),
    Superseded,
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Lost(error)
    }
}

impl Client {
    pub fn new(terms: Terms) -> (Self, Told) {
        let (enrolled, company, superseded) = (
            watch::Sender::new(false),
            watch::Sender::new(None),
            watch::Sender::new(false),
        );
        let told = Told {
            enrolled: enrolled.subscribe(),
            company: company.subscribe(),
            superseded: superseded.subscribe(),
        };
        let Terms {
            socket,
            outbound_port,
            handles,
            steering,
            ready,
            connected,
        } = terms;
        let client = Self {
            socket,
            outbound_port,
            handles: Some(Rc::new(handles)),
            steering,
            ready: Some(ready),
            connected,
            enrolled,
            company,
            superseded,
        };
        (client, told)
    }

    /// Enrols, again and again, until a new sidecar takes over.
    pub async fn follow(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut silent = false;
        loop {
            let socket = self.socket.display().to_string();
            let enrolled = *self.enrolled.borrow();
            let mut was_enrolled = false;
            let end = self.session(&mut was_enrolled).await;
            self.connected.set(0);
            if was_enrolled {
                (pause, silent) = (FIRST_PAUSE, false);
            }
            match end {
                End::Superseded => {
                    self.handles = None;
                    info!(
                        "a new sidecar accepts from our listeners: ending when the connections have"
                    );
                    self.superseded.send_replace(true);
                    return;
                }
                End::Refused(reason) => {
                    error!(
                        reason,
                        "the agent refuses to enrol this sidecar: nothing is steered to it"
                    );
                    pause = LONGEST_PAUSE;
                }
                End::Lost(error) if !silent => {
                    silent = true;
                    match enrolled || was_enrolled {
                        true => {
                            warn!(agent = socket, %error, "the agent is away: steering goes on without it")
                        }
                        false => warn!(agent = socket, %error, "waiting for the agent"),
                    }
                }
                End::Lost(error) => debug!(agent = socket, %error, "the agent is away"),
            }
            // Not all sidecars of a node at once.
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn session(&mut self, was_enrolled: &mut bool) -> End {
        match self.talk(was_enrolled).await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn talk(&mut self, was_enrolled: &mut bool) -> Result<std::convert::Infallible, End> {
        let mut wire = Wire::new(connect(&self.socket).await?, 0);
        let handles = self.handles.clone();
        let handles = handles.ok_or(End::Superseded)?;
        let listeners = Shape {
            workers: handles.workers,
            outbound: handles.outbound,
        };
        let sockets: Vec<_> = handles.sockets.iter().map(AsFd::as_fd).collect();
        let steering = self.steering.borrow_and_update().clone();
        let enrol = Request::Enrol(Enrol {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            outbound_port: self.outbound_port,
            listeners,
            again: *self.enrolled.borrow(),
            steering: Box::new(steering),
        });
        wire.send(&enrol, &sockets).await?;
        loop {
            let said = async {
                match *was_enrolled {
                    true => wire.receive::<Reply>().await,
                    false => timeout(ANSWER, wire.receive())
                        .await
                        .map_err(|_| WireError::Slow)?,
                }
            };
            let (reply, _) = tokio::select! {
                said = said => said?,
                Ok(()) = self.steering.changed() => {
                    let steering = Box::new(self.steering.borrow_and_update().clone());
                    wire.send(&Request::Reload { steering }, &[]).await?;
                    continue;
                }
            };
            match reply {
                Reply::Enrolled(enrolled) => {
                    *was_enrolled = true;
                    self.connected.set(1);
                    let redirect = enrolled.redirect;
                    info!(agent = enrolled.release, redirect, "enrolled: steering");
                    if let Some(ready) = self.ready.take() {
                        ready.done();
                    }
                    self.enrolled.send_replace(true);
                }
                Reply::Refused { reason } => return Err(End::Refused(reason)),
                Reply::Reloaded => debug!("the agent follows the new configuration"),
                Reply::NotReloaded { reason } => error!(
                    reason,
                    "the agent does not take the new configuration: what is steered, excluded and denied stays as it was"
                ),
                Reply::HandOver => {
                    wire.send(&Request::Listeners(listeners), &sockets).await?;
                    info!("the listeners are handed to a new sidecar");
                }
                Reply::Superseded => return Err(End::Superseded),
                Reply::Company { present } => {
                    self.company.send_replace(Some(present));
                }
                Reply::Listeners(_) | Reply::Unknown => {}
            }
        }
    }
}

/// Asks for the listeners of the sidecar that serves this pod now, from this cgroup. The error says why there are none.
pub async fn take_over(socket: &Path) -> Result<Handles, String> {
    let asked = async {
        let mut wire = Wire::new(connect(socket).await?, MAX_DESCRIPTORS);
        wire.send(&Request::TakeOver, &[]).await?;
        loop {
            match wire.receive().await? {
                (Reply::Listeners(shape), sockets) => return Ok(Ok((shape, sockets))),
                (Reply::Refused { reason }, _) => return Ok(Err(reason)),
                _ => {}
            }
        }
    };
    let asked: Result<Result<(Shape, Vec<OwnedFd>), String>, WireError> = timeout(PATIENCE, asked)
        .await
        .unwrap_or(Err(WireError::Slow));
    let (shape, sockets) = asked.map_err(|error| error.to_string())??;
    if shape.count() != Some(sockets.len()) {
        return Err("the old sidecar handed over other sockets than it said".to_owned());
    }
    Ok(Handles {
        workers: shape.workers,
        outbound: shape.outbound,
        sockets,
    })
}

async fn connect(socket: &Path) -> Result<UnixStream, WireError> {
    let connected = timeout(PATIENCE, UnixStream::connect(socket)).await;
    Ok(connected.map_err(|_| WireError::Slow)??)
}

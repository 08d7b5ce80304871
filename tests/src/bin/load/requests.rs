//! Requests by HTTP/1.1: in a closed loop, at a fixed rate measured from when each was due, or one per connection.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::{
    event::epoll::EventFlags,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send,
        socket_with, sockopt,
    },
};
use sidecar_tests::output::tell;

use crate::{
    http1::Response,
    poll::{Poll, TIMER},
    recorder::{Recorder, Timing},
    schedule::Schedule,
};

/// What is due when the time is over may still be answered so long.
const GRACE: Duration = Duration::from_secs(2);
/// If so many fail and none is answered, it is no measurement.
const ERROR_LIMIT: u32 = 100;

#[derive(Args)]
pub struct Requests {
    /// Where to connect to
    #[arg(long)]
    to: SocketAddr,
    /// What to ask for
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests a second, measured from when each was due; absent: the next one as soon as one is answered
    #[arg(long)]
    rate: Option<f64>,
    /// One request per connection
    #[arg(long, conflicts_with = "rate")]
    new_connections: bool,
    #[command(flatten)]
    timing: Timing,
}

impl Requests {
    pub fn run(self) -> Result<()> {
        let mut load = Load::new(&self)?;
        load.run()?;
        tell(&load.recorder.report())
    }

    fn request(&self) -> Vec<u8> {
        let connection = if self.new_connections {
            "Connection: close\r\n"
        } else {
            ""
        };
        let (path, to) = (&self.path, self.to);
        format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: load\r\nAccept: */*\r\n{connection}\r\n")
            .into_bytes()
    }
}

/// One connection at a time.
struct Slot {
    socket: Option<OwnedFd>,
    state: State,
    /// When the request was due, or sent.
    due: Instant,
    /// When `connect` was called.
    connect_from: Instant,
    response: Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Idle,
    Waiting,
    /// Answered; the server is to close.
    Ending,
}

struct Load {
    to: SocketAddr,
    request: Vec<u8>,
    new_connections: bool,
    poll: Poll,
    slots: Vec<Slot>,
    /// Open loop: when requests are due, and who may send one, the longest idle first.
    schedule: Option<Schedule>,
    idle: VecDeque<usize>,
    recorder: Recorder,
    buffer: Vec<u8>,
    failures: u32,
    answers: u64,
}

impl Load {
    fn new(arguments: &Requests) -> Result<Self> {
        ensure!(arguments.connections > 0, "no connection to send on");
        let mut poll = Poll::new()?;
        let now = Instant::now();
        let schedule = match arguments.rate {
            Some(rate) => {
                let interval = Duration::try_from_secs_f64(1.0 / rate).context("a rate")?;
                poll.tick(interval)?;
                Some(Schedule::new(now + interval, interval))
            }
            None => None,
        };
        let slot = |_| Slot {
            socket: None,
            state: State::Idle,
            due: now,
            connect_from: now,
            response: Response::default(),
        };
        Ok(Self {
            to: arguments.to,
            request: arguments.request(),
            new_connections: arguments.new_connections,
            poll,
            slots: (0..arguments.connections).map(slot).collect(),
            schedule,
            idle: VecDeque::new(),
            recorder: Recorder::new(&arguments.timing)?,
            buffer: vec![0; 256 * 1024],
            failures: 0,
            answers: 0,
        })
    }

    fn run(&mut self) -> Result<()> {
        for at in 0..self.slots.len() {
            self.open(at)?;
        }
        let mut ready = Vec::new();
        while self.recorder.goes_on(Instant::now())? {
            self.step(&mut ready, true)?;
        }
        // Nothing more becomes due; what was, may be answered.
        let deadline = Instant::now() + GRACE;
        while self.schedule.is_some() && self.is_waiting() && Instant::now() < deadline {
            self.step(&mut ready, false)?;
        }
        // In a closed loop a request is always on its way.
        if let Some(schedule) = &mut self.schedule {
            let sent = self
                .slots
                .iter()
                .filter(|slot| slot.state == State::Waiting);
            for due in sent
                .map(|slot| slot.due)
                .chain(std::iter::from_fn(|| schedule.next()))
            {
                self.recorder
                    .failed(due, || "not answered by the end".to_owned());
            }
        }
        Ok(())
    }

    fn step(&mut self, ready: &mut Vec<u64>, more: bool) -> Result<()> {
        self.poll.wait(ready)?;
        for &token in ready.iter() {
            if token != TIMER {
                self.ready(token as usize)?;
            }
        }
        if let Some(schedule) = &mut self.schedule {
            if more {
                schedule.advance(Instant::now());
            }
            self.send_due()?;
        }
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        self.slots.iter().any(|slot| slot.state == State::Waiting)
    }

    fn send_due(&mut self) -> Result<()> {
        while let Some(&at) = self.idle.front() {
            let Some(due) = self.schedule.as_mut().and_then(Schedule::next) else {
                break;
            };
            self.idle.pop_front();
            self.send(at, due)?;
        }
        Ok(())
    }

    fn open(&mut self, at: usize) -> Result<()> {
        let family = match self.to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None).context("socket")?;
        sockopt::set_tcp_nodelay(&socket, true).context("TCP_NODELAY")?;
        let now = Instant::now();
        match connect(&socket, &self.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => {
                self.recorder.failed(now, || format!("connect: {error}"));
                bail!("connecting to {}: {error}", self.to);
            }
        }
        self.poll.add(&socket, at as u64, EventFlags::OUT)?;
        let slot = &mut self.slots[at];
        slot.socket = Some(socket);
        slot.state = State::Connecting;
        slot.connect_from = now;
        slot.due = now;
        Ok(())
    }

    fn ready(&mut self, at: usize) -> Result<()> {
        match self.slots[at].state {
            State::Connecting => self.connected(at),
            _ => self.read(at),
        }
    }

    fn connected(&mut self, at: usize) -> Result<()> {
        let slot = &mut self.slots[at];
        let Some(socket) = &slot.socket else {
            return Ok(());
        };
        if let Err(error) = sockopt::socket_error(socket).context("SO_ERROR")? {
            return self.fail(at, || format!("connect: {error}"));
        }
        self.poll.modify(socket, at as u64, EventFlags::IN)?;
        self.recorder.connected(slot.connect_from, Instant::now());
        if self.schedule.is_some() {
            slot.state = State::Idle;
            self.idle.push_back(at);
            return Ok(());
        }
        // One per connection: its time begins with the connection.
        let due = if self.new_connections {
            slot.connect_from
        } else {
            Instant::now()
        };
        self.send(at, due)
    }

    fn send(&mut self, at: usize, due: Instant) -> Result<()> {
        let slot = &mut self.slots[at];
        slot.due = due;
        slot.response = Response::default();
        slot.state = State::Waiting;
        let Some(socket) = &slot.socket else {
            return Ok(());
        };
        match send(socket, &self.request, SendFlags::NOSIGNAL) {
            Ok(count) if count == self.request.len() => Ok(()),
            // So few bytes always fit into a socket that waits for nothing.
            Ok(_) => self.fail(at, || "a request was cut".to_owned()),
            Err(error) => self.fail(at, || format!("send: {error}")),
        }
    }

    fn read(&mut self, at: usize) -> Result<()> {
        loop {
            let slot = &mut self.slots[at];
            let Some(socket) = &slot.socket else {
                return Ok(());
            };
            let count = match recv(socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((_, count)) => count,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return self.fail(at, || format!("recv: {error}")),
            };
            if count == 0 {
                return match slot.state {
                    State::Ending => self.open_again(at),
                    _ => self.fail(at, || "the connection ended without an answer".to_owned()),
                };
            }
            match slot.response.feed(&self.buffer[..count]) {
                Ok(true) => return self.answered(at),
                // More of it is there already if the buffer was full.
                Ok(false) if count == self.buffer.len() => {}
                Ok(false) => return Ok(()),
                Err(error) => return self.fail(at, || format!("{error:#}")),
            }
        }
    }

    fn answered(&mut self, at: usize) -> Result<()> {
        let now = Instant::now();
        let slot = &mut self.slots[at];
        self.recorder
            .answered(slot.due, now, slot.response.body_bytes);
        self.answers += 1;
        if self.new_connections {
            slot.state = State::Ending;
            // Usually the end is there already.
            return self.read(at);
        }
        if self.schedule.is_some() {
            slot.state = State::Idle;
            self.idle.push_back(at);
            return Ok(());
        }
        self.send(at, now)
    }

    fn open_again(&mut self, at: usize) -> Result<()> {
        self.slots[at].socket = None;
        self.open(at)
    }

    fn fail(&mut self, at: usize, why: impl Fn() -> String) -> Result<()> {
        let slot = &self.slots[at];
        self.recorder.failed(slot.due, &why);
        self.failures += 1;
        if self.failures >= ERROR_LIMIT && self.answers == 0 {
            bail!("nothing is answered: {}", why());
        }
        self.open_again(at)
    }
}

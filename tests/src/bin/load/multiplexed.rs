//! Requests by HTTP/2 with prior knowledge, and unary gRPC calls: many streams over few connections, as clients of both do.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use clap::Args;
use h2::client::SendRequest;
use http::Request;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use sidecar_tests::output::tell;
use tokio::{net::TcpStream, sync::Notify, task::LocalSet};

use crate::{
    poll::read_tick,
    recorder::{Recorder, Timing},
    schedule::Schedule,
};

/// So often one looks whether the time is over.
const LOOK: Duration = Duration::from_millis(5);
/// What is due when the time is over may still be answered so long.
const GRACE: Duration = Duration::from_secs(2);
/// If so many fail and none is answered, it is no measurement.
const ERROR_LIMIT: u32 = 100;

#[derive(Args)]
pub struct Multiplexed {
    /// Where to connect to
    #[arg(long)]
    to: SocketAddr,
    /// What to ask for
    #[arg(long, default_value = "/")]
    path: String,
    /// Connections that the streams share
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests at once
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Requests a second, measured from when each was due; absent: the next one as soon as one is answered
    #[arg(long)]
    rate: Option<f64>,
    /// A unary gRPC call with a message of so many bytes, instead of a GET
    #[arg(long)]
    grpc: Option<usize>,
    #[command(flatten)]
    timing: Timing,
}

/// What the streams share.
struct Shared {
    recorder: RefCell<Recorder>,
    /// Open loop only.
    schedule: Option<RefCell<Schedule>>,
    due: Notify,
    /// The measured time is over.
    over: RefCell<bool>,
    failures: RefCell<u32>,
    answers: RefCell<u64>,
    pending: RefCell<usize>,
}

impl Multiplexed {
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, self.measure())
    }

    async fn measure(self) -> Result<()> {
        ensure!(
            self.connections > 0 && self.streams > 0,
            "no stream to send on"
        );
        let interval = match self.rate {
            Some(rate) => Some(Duration::try_from_secs_f64(1.0 / rate).context("a rate")?),
            None => None,
        };
        let schedule = interval.map(|interval| Schedule::new(Instant::now() + interval, interval));
        let shared = Rc::new(Shared {
            recorder: RefCell::new(Recorder::new(&self.timing)?),
            schedule: schedule.map(RefCell::new),
            due: Notify::new(),
            over: RefCell::new(false),
            failures: RefCell::new(0),
            answers: RefCell::new(0),
            pending: RefCell::new(0),
        });
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            connections.push(open(self.to).await?);
        }
        let call = Rc::new(Call {
            path: format!("http://{}{}", self.to, self.path),
            message: self.grpc.map(message),
        });
        for stream in 0..self.streams {
            let connection = connections[stream % self.connections].clone();
            tokio::task::spawn_local(requests(shared.clone(), connection, call.clone()));
        }
        if let Some(interval) = interval {
            tokio::task::spawn_local(tick(shared.clone(), interval));
        }
        while shared.recorder.borrow_mut().goes_on(Instant::now())? {
            let hopeless =
                *shared.failures.borrow() >= ERROR_LIMIT && *shared.answers.borrow() == 0;
            let why = || shared.recorder.borrow().first_error().to_owned();
            ensure!(!hopeless, "nothing is answered: {}", why());
            tokio::time::sleep(LOOK).await;
        }
        *shared.over.borrow_mut() = true;
        let deadline = Instant::now() + GRACE;
        while interval.is_some() && *shared.pending.borrow() > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        let unanswered = match &shared.schedule {
            Some(_) => *shared.pending.borrow() as u64,
            None => 0,
        };
        // The tasks keep their share; nothing is recorded any more.
        let mut report = shared
            .recorder
            .replace(Recorder::new(&self.timing)?)
            .report();
        report.errors += unanswered;
        tell(&report)
    }
}

/// What each stream asks.
struct Call {
    path: String,
    message: Option<Bytes>,
}

/// A gRPC message: not compressed, its length, itself.
fn message(bytes: usize) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + bytes);
    message.put_u8(0);
    message.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    message.put_bytes(b'x', bytes);
    message.freeze()
}

async fn open(to: SocketAddr) -> Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(to).await.context("connecting")?;
    socket.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24);
    let (sender, connection) = builder.handshake(socket).await.context("HTTP/2")?;
    tokio::task::spawn_local(async move {
        // Its requests tell what went wrong.
        let _ = connection.await;
    });
    Ok(sender)
}

/// Wakes a stream for each request that becomes due.
async fn tick(shared: Rc<Shared>, interval: Duration) -> Result<()> {
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
    )?;
    if let Some(schedule) = &shared.schedule {
        // A moment before the timer: what is due has become so when it ticks.
        schedule.borrow_mut().restart(Instant::now() + interval);
    }
    let interval = Timespec::try_from(interval).context("an interval")?;
    let spec = Itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
    let timer = sidecar_tests::sys::readable(timer)?;
    while !*shared.over.borrow() {
        timer.readable().await?.clear_ready();
        read_tick(timer.get_ref())?;
        if let Some(schedule) = &shared.schedule {
            for _ in 0..schedule.borrow_mut().advance(Instant::now()) {
                shared.due.notify_one();
            }
        }
    }
    Ok(())
}

/// One request after the other.
async fn requests(shared: Rc<Shared>, mut connection: SendRequest<Bytes>, call: Rc<Call>) {
    while !*shared.over.borrow() {
        let due = match &shared.schedule {
            None => Instant::now(),
            Some(schedule) => {
                let next = schedule.borrow_mut().next();
                match next {
                    Some(due) => due,
                    None => {
                        shared.due.notified().await;
                        continue;
                    }
                }
            }
        };
        *shared.pending.borrow_mut() += 1;
        let answer = request(&mut connection, &call).await;
        *shared.pending.borrow_mut() -= 1;
        match answer {
            Ok(bytes) => {
                let mut recorder = shared.recorder.borrow_mut();
                recorder.answered(due, Instant::now(), bytes);
                *shared.answers.borrow_mut() += 1;
            }
            Err(error) => {
                let why = || format!("{error:#}");
                shared.recorder.borrow_mut().failed(due, why);
                *shared.failures.borrow_mut() += 1;
                // A connection that is gone fails at once, and for good: leave the thread to others.
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// The bytes of the answer's body.
async fn request(connection: &mut SendRequest<Bytes>, call: &Call) -> Result<u64> {
    *connection = connection.clone().ready().await?;
    let mut request = Request::get(&call.path);
    if call.message.is_some() {
        request = Request::post(&call.path)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    }
    let request = request.body(())?;
    let (response, mut stream) = connection.send_request(request, call.message.is_none())?;
    if let Some(message) = &call.message {
        stream.send_data(message.clone(), true)?;
    }
    let response = response.await?;
    ensure!(
        response.status() == 200,
        "answered with {}",
        response.status()
    );
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        bytes += data.len() as u64;
        body.flow_control().release_capacity(data.len())?;
    }
    let trailers = body.trailers().await?;
    if call.message.is_some() {
        let status = trailers
            .as_ref()
            .and_then(|trailers| trailers.get("grpc-status"));
        ensure!(
            status.is_some_and(|status| status == "0"),
            "grpc-status {status:?}"
        );
    }
    Ok(bytes)
}

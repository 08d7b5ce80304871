//! epoll, and a timer that it reports: a timeout of epoll's own is whole milliseconds.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

/// How long to sleep at most: so often one looks whether the time is over.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// The token of the timer; sockets have small ones.
pub const TIMER: u64 = u64::MAX;

pub struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
    timer: Option<OwnedFd>,
}

impl Poll {
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).context("epoll_create1")?,
            events: Vec::with_capacity(256),
            timer: None,
        })
    }

    /// Reports [`TIMER`] every `interval`.
    pub fn tick(&mut self, interval: Duration) -> Result<()> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .context("timerfd_create")?;
        let interval = Timespec::try_from(interval).context("an interval")?;
        let spec = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec).context("timerfd_settime")?;
        self.add(&timer, TIMER, EventFlags::IN)?;
        self.timer = Some(timer);
        Ok(())
    }

    pub fn add(&self, socket: impl AsFd, token: u64, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, socket, EventData::new_u64(token), flags).context("epoll_ctl")
    }

    pub fn modify(&self, socket: impl AsFd, token: u64, flags: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags).context("epoll_ctl")
    }

    /// Waits; the tokens of what is ready, into `tokens`.
    pub fn wait(&mut self, tokens: &mut Vec<u64>) -> Result<()> {
        self.events.clear();
        tokens.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&PATIENCE),
        ) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        tokens.extend(self.events.iter().map(|event| event.data.u64()));
        if let (Some(timer), true) = (&self.timer, tokens.contains(&TIMER)) {
            read_tick(timer)?;
        }
        Ok(())
    }
}

/// The kernel sets a timer again when it is read.
pub fn read_tick(timer: impl AsFd) -> Result<()> {
    match rustix::io::read(timer, &mut [0; 8]) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error).context("reading a timer"),
    }
}

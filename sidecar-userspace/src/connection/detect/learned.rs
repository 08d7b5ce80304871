//! What a worker has learned about the protocol behind a destination.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::connection::Direction;

/// A destination may change its protocol: knowledge is renewed after this.
const VALID_FOR: Duration = Duration::from_secs(300);

/// Destinations remembered by one worker.
const MAX_DESTINATIONS: usize = 4096;

/// What is known of a destination. Nothing is known of one whose clients speak first and not HTTP: there, each
/// connection is looked at anew, which costs it nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Http,
    ServerFirst,
}

/// A worker's memory of protocols.
#[derive(Debug, Default)]
pub struct Learned(RefCell<HashMap<(Direction, SocketAddr), (Known, Instant)>>);

impl Learned {
    pub fn get(&self, direction: Direction, destination: SocketAddr) -> Option<Known> {
        let (known, at) = *self.0.borrow().get(&(direction, destination))?;
        (at.elapsed() < VALID_FOR).then_some(known)
    }

    /// `None` forgets.
    pub fn put(&self, direction: Direction, destination: SocketAddr, known: Option<Known>) {
        let mut all = self.0.borrow_mut();
        let key = (direction, destination);
        let Some(known) = known else {
            all.remove(&key);
            return;
        };
        if all.len() >= MAX_DESTINATIONS && !all.contains_key(&key) {
            all.retain(|_, (_, at)| at.elapsed() < VALID_FOR);
            if all.len() >= MAX_DESTINATIONS {
                all.clear();
            }
        }
        all.insert(key, (known, Instant::now()));
    }
}

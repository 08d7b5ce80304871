//! Accept: take connections from a listener, shed those that are too many, survive errors.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};

use super::{Direction, Reason, Unserved, Worker, origin, stream};
use crate::model::Snapshot;

/// Pause after the first error that will not go away at once; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that was accepted and has its place.
#[derive(Debug)]
pub struct Accepted {
    pub client: Unserved,
    pub direction: Direction,
    pub peer: SocketAddr,
    /// The configuration in force now.
    pub snapshot: Arc<Snapshot>,
    /// Frees the place when dropped.
    pub place: Place,
}

/// Connections that the process may serve at once. Shared by the workers.
#[derive(Debug, Clone)]
pub struct Places {
    taken: Arc<AtomicUsize>,
    /// What the descriptors suffice for.
    by_descriptors: usize,
    /// What the memory suffices for.
    by_memory: usize,
}

/// One served connection.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

/// Serves a listener until its future is dropped: `serve` gets each connection that has a place.
pub async fn accept(
    listener: TcpListener,
    direction: Direction,
    worker: Rc<Worker>,
    serve: impl Fn(Accepted),
) -> std::convert::Infallible {
    let mut pause = FIRST_PAUSE;
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                pause = FIRST_PAUSE;
                let peer = origin::canonical(peer);
                let snapshot = worker.snapshot.load();
                match worker.places.take(snapshot.limits.connections) {
                    Ok(place) => serve(Accepted {
                        client: Unserved::new(tcp),
                        direction,
                        peer,
                        snapshot,
                        place,
                    }),
                    Err(reason) => shed(&worker, direction, tcp, peer, reason),
                }
            }
            Err(error) => {
                let (name, lasting) = classify(&error);
                worker.recorder.accept_failed(direction, name);
                if lasting {
                    tracing::warn!(direction = direction.name(), %error, ?pause, "cannot accept connections");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Refuses a connection at once, so that its client can go elsewhere instead of waiting.
fn shed(worker: &Worker, direction: Direction, tcp: TcpStream, peer: SocketAddr, reason: Reason) {
    worker.recorder.connection(direction, peer).end(reason);
    stream::reset(tcp);
}

/// A name for the metric, and whether the same error is to be expected from the next call.
fn classify(error: &io::Error) -> (&'static str, bool) {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => ("emfile", true),
        Some(Errno::NFILE) => ("enfile", true),
        Some(Errno::NOBUFS) => ("enobufs", true),
        Some(Errno::NOMEM) => ("enomem", true),
        // The errors of the one connection, see accept(2): the next one may be fine.
        Some(Errno::CONNABORTED) => ("econnaborted", false),
        Some(
            Errno::CONNRESET | Errno::PROTO | Errno::INTR | Errno::NETDOWN | Errno::HOSTUNREACH,
        ) => ("connection", false),
        // Unknown: better slow than spinning.
        _ => ("other", true),
    }
}

impl Places {
    /// `descriptors`: how many the process may have open, now and in addition to what is open already. A
    /// connection needs two. `by_memory`: how many connections the memory suffices for.
    pub fn new(descriptors: usize, by_memory: usize) -> Self {
        Self {
            taken: Arc::default(),
            by_descriptors: descriptors / 2,
            by_memory,
        }
    }

    /// How many connections may be served at once where `limit` is what the configuration says.
    pub fn limit(&self, limit: Option<usize>) -> usize {
        limit.unwrap_or(self.by_memory).min(self.by_descriptors)
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// A place, unless `limit` are taken, or what the memory suffices for where the configuration sets no limit, or the
    /// descriptors run out.
    pub(super) fn take(&self, limit: Option<usize>) -> Result<Place, Reason> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.taken.clone());
        match before {
            _ if before >= limit.unwrap_or(self.by_memory) => Err(Reason::ConnectionLimit),
            _ if before >= self.by_descriptors => Err(Reason::DescriptorLimit),
            _ => Ok(place),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_come_back() {
        let places = Places::new(7, 10);
        let held: Vec<_> = (0..3).map(|_| places.take(Some(10)).unwrap()).collect();
        assert_eq!(places.take(Some(10)).unwrap_err(), Reason::DescriptorLimit);
        assert_eq!(places.take(Some(3)).unwrap_err(), Reason::ConnectionLimit);
        drop(held);
        assert_eq!(places.taken(), 0);
        assert!(places.take(Some(1)).is_ok());
    }

    #[test]
    fn memory_limits_them_where_the_configuration_does_not() {
        let places = Places::new(1000, 2);
        let _held = [(); 2].map(|()| places.take(None).unwrap());
        assert_eq!(places.take(None).unwrap_err(), Reason::ConnectionLimit);
        assert!(places.take(Some(3)).is_ok(), "who says so wants it");
        assert_eq!((places.limit(None), places.limit(Some(9000))), (2, 500));
    }
}

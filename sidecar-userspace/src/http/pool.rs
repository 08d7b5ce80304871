//! Connections to endpoints that are kept for the next request. One pool per worker, no locks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;

use super::body::RequestBody;
use crate::{
    connection::{
        ConnectionContext, Direction, Doubt, Source,
        route::Target,
        sweep::{self, Sweep},
    },
    model::ServiceTls,
    tls::Secured,
};

/// HTTP/2 connections to one endpoint; beyond that requests share the fullest ones and wait their turn.
const MAX_HTTP2_CONNECTIONS: usize = 4;

/// What a kept connection may be used for again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub address: SocketAddr,
    /// Inbound, the application is shown the client's address as its peer: a connection serves requests of
    /// that client only.
    pub client: Option<IpAddr>,
    /// Outbound, what the application has bound its socket to.
    source: Option<Box<Source>>,
    /// How the connection is encrypted, and to whom: another service may reach the same address otherwise.
    pub tls: Option<Arc<ServiceTls>>,
    /// Which of the ids that this workload had is shown to the peer; see [`crate::tls::mesh::MeshHandle::owner`].
    owner: u64,
}

impl Key {
    /// `owner`: as it was before the connection was made, if it was made for this.
    pub fn new(
        context: &ConnectionContext,
        target: &Target,
        address: SocketAddr,
        owner: u64,
    ) -> Self {
        let inbound = context.direction == Direction::Inbound;
        Self {
            address,
            client: inbound.then(|| context.peer.ip()),
            source: context.source.key(),
            tls: target.tls().cloned(),
            owner,
        }
    }
}

/// A worker's idle HTTP/1 connections and its HTTP/2 connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pool(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    http1: RefCell<HashMap<Key, Vec<Idle>>>,
    http2: RefCell<HashMap<Key, Vec<Rc<Http2>>>>,
    /// HTTP/2 connections that are being made, so that requests wait for one instead of each making its own.
    dialling: RefCell<HashMap<Key, Rc<Notify>>>,
    swept: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    kept: Http1,
    until: Instant,
}

/// An HTTP/1 connection, for one request at a time.
#[derive(Debug)]
pub(super) struct Http1 {
    pub sender: http1::SendRequest<RequestBody>,
    pub tls: Option<Arc<Secured>>,
    /// Told where responses end.
    pub doubt: Option<Arc<Doubt>>,
}

/// One HTTP/2 connection, shared by many requests.
#[derive(Debug)]
pub(super) struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    tls: Option<Arc<Secured>>,
    /// Requests on it.
    streams: Cell<usize>,
    /// Requests that the endpoint allows at once; the connection's task keeps it up to date.
    max_streams: Rc<Cell<usize>>,
    idle_since: Cell<Instant>,
    idle_timeout: Duration,
}

/// A place on an HTTP/2 connection until dropped.
#[derive(Debug)]
pub(super) struct Place(Rc<Http2>);

/// How an HTTP/2 connection is to be had.
pub(super) enum Http2Choice {
    Connected(Place),
    /// Somebody else makes one: wait, then ask again.
    Wait(Rc<Notify>),
    /// Make one; others wait until the token is dropped.
    Dial(Dialling),
}

/// Held while an HTTP/2 connection is made.
pub(super) struct Dialling {
    pool: Pool,
    key: Key,
}

impl Pool {
    /// An idle connection that is known to be alive, the one used last first.
    pub(super) fn take_http1(&self, key: &Key) -> Option<Http1> {
        let mut all = self.0.http1.borrow_mut();
        let idle = all.get_mut(key)?;
        while let Some(Idle { kept, until }) = idle.pop() {
            if kept.sender.is_ready() && until > Instant::now() {
                return Some(kept);
            }
        }
        None
    }

    /// Keeps a connection whose response is complete. One that is not ready for the next request yet is
    /// waited for.
    pub(super) fn put_http1(
        &self,
        key: Key,
        mut kept: Http1,
        max_idle: usize,
        idle_timeout: Duration,
    ) {
        if kept.sender.is_closed() || max_idle == 0 {
            return;
        }
        if !kept.sender.is_ready() {
            let pool = self.clone();
            tokio::task::spawn_local(async move {
                let ready = tokio::time::timeout(idle_timeout, kept.sender.ready());
                if let Ok(Ok(())) = ready.await {
                    pool.put_http1(key, kept, max_idle, idle_timeout);
                }
            });
            return;
        }
        let mut all = self.0.http1.borrow_mut();
        let idle = all.entry(key).or_default();
        if idle.len() >= max_idle {
            // The oldest: it is the likeliest to be closed by the endpoint.
            idle.remove(0);
        }
        let until = Instant::now() + idle_timeout;
        idle.push(Idle { kept, until });
        drop(all);
        sweep::start(&self.0, idle_timeout);
    }

    pub(super) fn http2(&self, key: &Key) -> Http2Choice {
        let mut all = self.0.http2.borrow_mut();
        let mut connections = 0;
        if let Some(open) = all.get_mut(key) {
            open.retain(|connection| !connection.sender.is_closed());
            connections = open.len();
            let least = open
                .iter()
                .min_by_key(|connection| connection.streams.get());
            if let Some(least) = least
                && (least.has_room() || connections >= MAX_HTTP2_CONNECTIONS)
            {
                return Http2Choice::Connected(Place::on(least));
            }
        }
        let mut dialling = self.0.dialling.borrow_mut();
        if let Some(notify) = dialling.get(key) {
            if connections == 0 {
                return Http2Choice::Wait(notify.clone());
            }
            // There is a connection, only a full one: better to queue on it than to wait.
            let fullest = all.get(key).and_then(|open| open.first());
            if let Some(connection) = fullest {
                return Http2Choice::Connected(Place::on(connection));
            }
        }
        dialling.insert(key.clone(), Rc::default());
        Http2Choice::Dial(Dialling {
            pool: self.clone(),
            key: key.clone(),
        })
    }

    /// Takes in a new HTTP/2 connection and gives the first place on it.
    pub(super) fn put_http2(
        &self,
        key: Key,
        sender: http2::SendRequest<RequestBody>,
        tls: Option<Arc<Secured>>,
        max_streams: Rc<Cell<usize>>,
        idle_timeout: Duration,
    ) -> Place {
        let connection = Rc::new(Http2 {
            sender,
            tls,
            streams: Cell::new(0),
            max_streams,
            idle_since: Cell::new(Instant::now()),
            idle_timeout,
        });
        let place = Place::on(&connection);
        let mut all = self.0.http2.borrow_mut();
        all.entry(key).or_default().push(connection);
        drop(all);
        sweep::start(&self.0, idle_timeout);
        place
    }
}

impl Sweep for Inner {
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut http1 = self.http1.borrow_mut();
        http1.retain(|_, idle| {
            idle.retain(|idle| idle.until > now && !idle.kept.sender.is_closed());
            !idle.is_empty()
        });
        let mut http2 = self.http2.borrow_mut();
        http2.retain(|_, open| {
            open.retain(|connection| !connection.is_spent(now));
            !open.is_empty()
        });
        !http1.is_empty() || !http2.is_empty()
    }

    fn swept(&self) -> &Cell<bool> {
        &self.swept
    }
}

impl Http2 {
    fn has_room(&self) -> bool {
        self.streams.get() < self.max_streams.get()
    }

    fn is_spent(&self, now: Instant) -> bool {
        let idle = self.streams.get() == 0 && self.idle_since.get() + self.idle_timeout <= now;
        idle || self.sender.is_closed()
    }
}

impl Place {
    fn on(connection: &Rc<Http2>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self(connection.clone())
    }

    pub fn sender(&self) -> http2::SendRequest<RequestBody> {
        self.0.sender.clone()
    }

    pub fn tls(&self) -> Option<&Arc<Secured>> {
        self.0.tls.as_ref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let connection = &self.0;
        connection
            .streams
            .set(connection.streams.get().saturating_sub(1));
        connection.idle_since.set(Instant::now());
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let notify = self.pool.0.dialling.borrow_mut().remove(&self.key);
        if let Some(notify) = notify {
            notify.notify_waiters();
        }
    }
}

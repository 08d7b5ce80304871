//! A worker's tunnels: to which endpoint, as whom, and which has room for one more stream. No locks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Uri;
use tokio::sync::Notify;

use super::{MAX_AGE, MAX_STREAMS};
use crate::{
    connection::{
        ConnectionContext, Source,
        connect::ConnectError,
        route::Target,
        sweep::{self, Sweep},
    },
    model::ServiceTls,
    tls::Secured,
};

/// An endpoint that takes no tunnels is asked again after this.
const WITHOUT_FOR: Duration = Duration::from_secs(60);
/// Endpoints remembered for that.
const MAX_WITHOUT: usize = 4096;

/// What a tunnel may be used for again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub address: SocketAddr,
    /// What the applications have bound their sockets to.
    source: Option<Box<Source>>,
    /// Who is expected there.
    tls: Arc<ServiceTls>,
    /// The state of our identity that was shown: after a renewal, or with other roots, a new handshake decides.
    identity: u64,
}

impl Key {
    /// `None`: the target has no TLS, or we have no identity.
    pub fn new(context: &ConnectionContext, target: &Target, address: SocketAddr) -> Option<Self> {
        let mesh = context.worker.mesh.as_ref()?;
        // Before the handshake: a tunnel that is made while the identity changes is used by those who wait for it only.
        let identity = mesh.state();
        mesh.load()?;
        Some(Self {
            address,
            source: context.source.key(),
            tls: target.tls()?.clone(),
            identity,
        })
    }
}

/// Clones share the tunnels.
#[derive(Debug, Clone, Default)]
pub struct Pool(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kept: RefCell<HashMap<Key, Vec<Arc<Tunnel>>>>,
    /// Tunnels that are being made, so that others wait for one instead of each making its own.
    making: RefCell<HashMap<Key, Rc<Made>>>,
    /// Endpoints that take no tunnels, until when that is believed.
    without: RefCell<HashMap<Key, Instant>>,
    swept: Cell<bool>,
}

/// One tunnel, shared by many connections. They stay on its worker, but what they are part of has to be `Send` for hyper.
#[derive(Debug)]
pub(super) struct Tunnel {
    sender: SendRequest<Bytes>,
    tls: Arc<Secured>,
    /// What its streams ask for.
    authority: Uri,
    /// Set when no further stream can be opened.
    closed: Closed,
    /// Connections on it.
    streams: AtomicU32,
    made_at: Instant,
    /// Counted from `made_at`.
    idle_since_ms: AtomicU64,
    idle_timeout: Duration,
}

/// Set when no further stream can be opened on a tunnel. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Closed(Arc<AtomicBool>);

/// A place on a tunnel until dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Tunnel>);

/// How a tunnel is to be had.
pub(super) enum Choice {
    On(Place),
    /// Somebody else makes one.
    Wait(Rc<Made>),
    /// Make one; others wait until the token is dropped.
    Make(Making),
    /// The endpoint takes none.
    Without,
}

/// What those who wait are told.
#[derive(Debug, Default)]
pub(super) struct Made {
    notify: Notify,
    failure: RefCell<Option<ConnectError>>,
}

/// Held while a tunnel is made.
pub(super) struct Making {
    pool: Pool,
    key: Key,
}

impl Pool {
    pub(super) fn choose(&self, key: &Key) -> Choice {
        let mut kept = self.0.kept.borrow_mut();
        if let Some(tunnels) = kept.get_mut(key) {
            tunnels.retain(|tunnel| !tunnel.closed.is_set());
            if let Some(tunnel) = tunnels.iter().find(|tunnel| tunnel.has_room()) {
                return Choice::On(Place::on(tunnel));
            }
        }
        drop(kept);
        let mut without = self.0.without.borrow_mut();
        if !without.is_empty()
            && let Some(until) = without.get(key)
        {
            if *until > Instant::now() {
                return Choice::Without;
            }
            without.remove(key);
        }
        let mut making = self.0.making.borrow_mut();
        if let Some(made) = making.get(key) {
            return Choice::Wait(made.clone());
        }
        making.insert(key.clone(), Rc::default());
        Choice::Make(Making {
            pool: self.clone(),
            key: key.clone(),
        })
    }
}

impl Sweep for Inner {
    /// A tunnel ends in order when nobody holds it.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut kept = self.kept.borrow_mut();
        kept.retain(|_, tunnels| {
            tunnels.retain(|tunnel| !tunnel.is_spent(now));
            !tunnels.is_empty()
        });
        !kept.is_empty()
    }

    fn swept(&self) -> &Cell<bool> {
        &self.swept
    }
}

impl Tunnel {
    fn has_room(&self) -> bool {
        let most = self.sender.current_max_send_streams();
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(MAX_STREAMS);
        self.streams.load(Ordering::Relaxed) < most && self.made_at.elapsed() < MAX_AGE
    }

    fn is_spent(&self, now: Instant) -> bool {
        let unused = self.streams.load(Ordering::Relaxed) == 0;
        let idle_since = Duration::from_millis(self.idle_since_ms.load(Ordering::Relaxed));
        let idle = self.made_at + idle_since + self.idle_timeout <= now;
        self.closed.is_set() || unused && (idle || self.made_at + MAX_AGE <= now)
    }
}

impl Place {
    fn on(tunnel: &Arc<Tunnel>) -> Self {
        tunnel.streams.fetch_add(1, Ordering::Relaxed);
        Self(tunnel.clone())
    }

    pub fn sender(&self) -> SendRequest<Bytes> {
        self.0.sender.clone()
    }

    pub fn tls(&self) -> &Arc<Secured> {
        &self.0.tls
    }

    pub fn authority(&self) -> Uri {
        self.0.authority.clone()
    }

    /// No further stream goes there.
    pub fn close(&self) {
        self.0.closed.set();
    }
}

impl Closed {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            let age_ms = self.0.made_at.elapsed().as_millis();
            let age_ms = u64::try_from(age_ms).unwrap_or(u64::MAX);
            self.0.idle_since_ms.store(age_ms, Ordering::Relaxed);
        }
    }
}

impl Made {
    /// Until the one who makes it is done; the error is that one's.
    pub async fn done(&self) -> Result<(), ConnectError> {
        self.notify.notified().await;
        match &*self.failure.borrow() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }
}

impl Making {
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Takes in a new tunnel and gives the first place on it.
    pub fn made(
        self,
        sender: SendRequest<Bytes>,
        tls: Arc<Secured>,
        authority: Uri,
        closed: Closed,
        idle_timeout: Duration,
    ) -> Place {
        let tunnel = Arc::new(Tunnel {
            sender,
            tls,
            authority,
            closed,
            streams: AtomicU32::new(0),
            made_at: Instant::now(),
            idle_since_ms: AtomicU64::new(0),
            idle_timeout,
        });
        let place = Place::on(&tunnel);
        let mut kept = self.pool.0.kept.borrow_mut();
        kept.entry(self.key.clone()).or_default().push(tunnel);
        drop(kept);
        sweep::start(&self.pool.0, idle_timeout);
        place
    }

    /// The endpoint takes no tunnels.
    pub fn without(self) {
        let mut without = self.pool.0.without.borrow_mut();
        if without.len() >= MAX_WITHOUT {
            without.clear();
        }
        without.insert(self.key.clone(), Instant::now() + WITHOUT_FOR);
    }

    pub fn failed(self, failure: &ConnectError) {
        if let Some(made) = self.pool.0.making.borrow().get(&self.key) {
            *made.failure.borrow_mut() = Some(failure.clone());
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let made = self.pool.0.making.borrow_mut().remove(&self.key);
        if let Some(made) = made {
            made.notify.notify_waiters();
        }
    }
}

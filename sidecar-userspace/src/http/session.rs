//! What the requests of one client connection share.

use std::{cell::RefCell, rc::Rc};

use super::{tunnel::Tunnel, wire::Wire};
use crate::{
    connection::{ConnectionContext, connect::Upstream, route::Target},
    lifecycle::drain::Phase,
};

/// Lives as long as the connection or the last of its requests.
#[derive(Debug)]
pub(super) struct Session {
    pub context: Rc<ConnectionContext>,
    /// Where the connection as a whole goes; `None`: the client asked for no address.
    pub target: Option<Target>,
    /// Dialled while the protocol was being found out; the first request to that address takes it.
    pub early: RefCell<Option<Upstream>>,
    pub wire: Rc<Wire>,
    /// What follows when the last response has switched the protocol.
    pub tunnel: RefCell<Option<Tunnel>>,
    /// The client speaks HTTP/2.
    pub http2: bool,
}

impl Session {
    /// The sidecar is leaving and waits no longer.
    pub fn is_forced(&self) -> bool {
        self.context.drain.phase() == Phase::Ended
    }
}

//! Authorise: whether the connection may go where it wants to.

use std::time::Duration;

use super::{ConnectionContext, ConnectionRecord, Direction, Reason};
use crate::{
    model::UnknownDestination,
    policy::{Decision, Facts, PolicySet},
};

/// As long as a client takes that has its request ready.
const A_MOMENT: Duration = Duration::from_millis(200);

/// Refuses outbound connections whose destination is denied, which the kernel half does before if there is one, and,
/// where the configuration says so, those that no service claims. The explicit proxy's requests name services and pass.
pub fn authorise(context: &ConnectionContext, record: &mut ConnectionRecord) -> Result<(), Reason> {
    let (Direction::Outbound, Some(original)) = (context.direction, context.original) else {
        return Ok(());
    };
    if let Some(rule) = context.snapshot.outbound.denied_by(original) {
        record.detail = Some(rule.name.to_string());
        return Err(Reason::EgressDenied);
    }
    match context.snapshot.outbound.unknown {
        UnknownDestination::RegistryOnly if context.snapshot.service_at(original).is_none() => {
            Err(Reason::DestinationRefused)
        }
        UnknownDestination::RegistryOnly | UnknownDestination::Passthrough => Ok(()),
    }
}

/// What policy says of the connection if its bytes are opaque.
#[derive(Debug)]
pub struct OfBytes(Decision);

impl OfBytes {
    pub fn new(context: &ConnectionContext) -> Self {
        Self(policies(context).decide(&facts(context)))
    }

    /// How long a client that is denied has to show that it makes requests. Where none could pass either, they are
    /// to get an answer instead of a reset; nobody else should wait for that.
    pub fn patience(&self, context: &ConnectionContext) -> Duration {
        match policies(context).is_http_only() {
            true => context.snapshot.timeouts.request_head,
            false => A_MOMENT.min(context.snapshot.timeouts.request_head),
        }
    }

    pub fn is_denied(&self) -> bool {
        self.0.denied_by.is_some()
    }

    /// The connection is one of opaque bytes: notes in its record who decided.
    pub fn enforce(self, record: &mut ConnectionRecord) -> Result<(), Reason> {
        record.audited_by = self.0.audited_by;
        record.denied_by = self.0.denied_by;
        match record.denied_by {
            Some(_) => Err(Reason::PolicyDenied),
            None => Ok(()),
        }
    }
}

/// The policies of the connection's direction.
pub fn policies(context: &ConnectionContext) -> &PolicySet {
    let authorization = &context.snapshot.authorization;
    match context.direction {
        Direction::Inbound => &authorization.inbound,
        Direction::Outbound => &authorization.outbound,
    }
}

/// What is known of the connection itself.
pub fn facts(context: &ConnectionContext) -> Facts<'_> {
    Facts {
        source_ip: context.peer.ip(),
        principal: context.peer_identity.as_ref(),
        destination_ip: context.original.map(|original| original.ip()),
        destination_port: context.original.map(|original| original.port()),
        http: None,
    }
}

//! Authorise: whether the connection may go where it wants to.

use super::{ConnectionContext, Direction, Reason};
use crate::model::UnknownDestination;

/// Refuses outbound connections that no service claims where the configuration says so. The explicit proxy's
/// requests name services and pass.
pub fn authorise(context: &ConnectionContext) -> Result<(), Reason> {
    let (Direction::Outbound, Some(original)) = (context.direction, context.original) else {
        return Ok(());
    };
    match context.snapshot.outbound.unknown {
        UnknownDestination::Refuse if context.snapshot.service_at(original).is_none() => {
            Err(Reason::DestinationRefused)
        }
        UnknownDestination::Refuse | UnknownDestination::Passthrough => Ok(()),
    }
}

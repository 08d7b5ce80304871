//! What may pass, in each direction.

use crate::policy::{PathNormalization, PolicySet};

#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// Done to paths where policies of the direction compare them.
    pub path_normalization: PathNormalization,
    pub inbound: PolicySet,
    pub outbound: PolicySet,
}

impl Default for Authorization {
    fn default() -> Self {
        Self {
            path_normalization: PathNormalization::Strict,
            inbound: PolicySet::open(),
            outbound: PolicySet::open(),
        }
    }
}

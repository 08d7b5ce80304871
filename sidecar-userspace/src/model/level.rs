//! How far redirect goes.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sidecar_common::settings::{
    WORKLOAD_REDIRECT, WORKLOAD_REDIRECT_JOINED, WORKLOAD_REDIRECT_TO_APPLICATIONS,
    WORKLOAD_REDIRECT_TO_PROXIES,
};

/// Which hops of a connection messages may be redirected on; each level includes those before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// None.
    Off,
    /// From one proxy of this node to another.
    BetweenProxies,
    /// And from applications to their proxies.
    TowardsProxies,
    /// And from proxies to their applications.
    TowardsApplications,
    /// And from one application to another, past the proxies between.
    #[default]
    Joined,
}

impl Level {
    const ALL: [Self; 5] = [
        Self::Off,
        Self::BetweenProxies,
        Self::TowardsProxies,
        Self::TowardsApplications,
        Self::Joined,
    ];

    /// As in `Workload::flags`.
    pub fn flags(self) -> u32 {
        let steps = [
            (Self::BetweenProxies, WORKLOAD_REDIRECT),
            (Self::TowardsProxies, WORKLOAD_REDIRECT_TO_PROXIES),
            (Self::TowardsApplications, WORKLOAD_REDIRECT_TO_APPLICATIONS),
            (Self::Joined, WORKLOAD_REDIRECT_JOINED),
        ];
        let included = steps.iter().filter(|(level, _)| *level <= self);
        included.fold(0, |flags, (_, flag)| flags | flag)
    }

    /// The highest level that `flags` of a workload include.
    pub fn of_flags(flags: u32) -> Self {
        let included = |level: &&Self| level.flags() & !flags == 0;
        *Self::ALL.iter().rev().find(included).unwrap_or(&Self::Off)
    }

    /// 0 to 4, for a metric.
    pub fn number(self) -> u8 {
        self as u8
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::BetweenProxies => "between-proxies",
            Self::TowardsProxies => "towards-proxies",
            Self::TowardsApplications => "towards-applications",
            Self::Joined => "joined",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_the_same() {
        for level in Level::ALL {
            assert_eq!(Level::of_flags(level.flags()), level);
        }
        assert_eq!(Level::of_flags(WORKLOAD_REDIRECT_JOINED), Level::Off);
    }
}

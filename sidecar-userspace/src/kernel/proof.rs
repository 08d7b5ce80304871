//! How far redirect goes on this kernel. Each level needs more of the kernel to hold than the one below it, and is switched on by
//! what the self-test found of it, so that a kernel that fails one part keeps the others.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::model::Level;

/// What a level rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The configuration allows it.
    Configuration,
    /// The running kernel's structures are known.
    Types,
    /// The kernel takes the programs.
    Programs,
    /// The rest are parts of the self-test. Messages are redirected at all.
    Redirect,
    Order,
    HalfClose,
    Splice,
    Applications,
    /// `FIONREAD` counts what was redirected.
    Fionread,
    /// An application whose bytes take TCP after all finds them.
    BackToTcp,
    /// Who splices through io_uring is noticed by what he leaves, and can be reset.
    BlindReader,
    Joined,
    /// `FIONREAD` of a socket in the map counts what came by TCP.
    FionreadOfTcp,
}

impl Proof {
    const ALL: [Self; 13] = [
        Self::Configuration,
        Self::Types,
        Self::Programs,
        Self::Redirect,
        Self::Order,
        Self::HalfClose,
        Self::Splice,
        Self::Applications,
        Self::Fionread,
        Self::BackToTcp,
        Self::BlindReader,
        Self::Joined,
        Self::FionreadOfTcp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Types => "BTF",
            Self::Programs => "programs",
            Self::Redirect => "redirect",
            Self::Order => "order",
            Self::HalfClose => "half-close",
            Self::Splice => "splice",
            Self::Applications => "towards applications",
            Self::Fionread => "FIONREAD",
            Self::BackToTcp => "back to TCP",
            Self::BlindReader => "blind reader",
            Self::Joined => "joined",
            Self::FionreadOfTcp => "FIONREAD of TCP",
        }
    }

    /// As in `Workload::redirect_limit`, where 0 is nothing.
    pub fn number(self) -> u32 {
        self as u32 + 1
    }

    pub fn of_number(number: u32) -> Option<Self> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(index).copied()
    }
}

impl Serialize for Proof {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One part of the self-test, and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub name: Proof,
    /// What went wrong; `None` if it held.
    pub failure: Option<String>,
}

/// How far redirect goes, and why no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    pub level: Level,
    /// What the next level lacks, and in which words.
    pub limit: Option<(Proof, String)>,
    /// Whether an application's socket may be in the map and get its bytes by TCP: what `towards-proxies` is.
    counts_tcp: bool,
}

impl Reach {
    /// As far as it can go.
    pub fn full() -> Self {
        Self {
            level: Level::Joined,
            limit: None,
            counts_tcp: true,
        }
    }

    pub fn off(proof: Proof, why: impl Into<String>) -> Self {
        Self {
            level: Level::Off,
            limit: Some((proof, why.into())),
            counts_tcp: false,
        }
    }

    pub fn is_off(&self) -> bool {
        self.level == Level::Off
    }

    /// What the self-test has proven. A part that was not tried has not held.
    pub fn proven(findings: &[Finding]) -> Self {
        let failure = |proof: Proof| {
            let found = findings.iter().find(|found| found.name == proof);
            let failure = match found {
                Some(found) => found.failure.clone()?,
                None => "not tried".to_owned(),
            };
            Some((proof, failure))
        };
        let first = |proofs: &[Proof]| proofs.iter().find_map(|proof| failure(*proof));
        let always = [
            Proof::Redirect,
            Proof::Order,
            Proof::HalfClose,
            Proof::Splice,
        ];
        let applications = [
            Proof::Applications,
            Proof::Fionread,
            Proof::BackToTcp,
            Proof::BlindReader,
        ];
        let counts_tcp = failure(Proof::FionreadOfTcp).is_none();
        let (level, limit) = if let Some(limit) = first(&always) {
            (Level::Off, Some(limit))
        } else if let Some(limit) = first(&applications) {
            match counts_tcp {
                true => (Level::TowardsProxies, Some(limit)),
                false => (Level::BetweenProxies, Some(limit)),
            }
        } else if let Some(limit) = failure(Proof::Joined) {
            (Level::TowardsApplications, Some(limit))
        } else {
            (Level::Joined, None)
        };
        Self {
            level,
            limit,
            counts_tcp,
        }
    }

    /// As it is for a workload whose configuration allows so much.
    pub fn of(&self, allowed: Level) -> Self {
        let (level, limit) = self.within(allowed);
        let limit = match limit {
            Some(Proof::Configuration) => Some((
                Proof::Configuration,
                "redirect.level, or enabled".to_owned(),
            )),
            Some(Proof::FionreadOfTcp) if level < self.level => {
                Some((Proof::FionreadOfTcp, "not counted".to_owned()))
            }
            _ => self.limit.clone(),
        };
        Self {
            level,
            limit,
            counts_tcp: self.counts_tcp,
        }
    }

    /// What holds by both.
    pub fn and(self, other: &Self) -> Self {
        let counts_tcp = self.counts_tcp && other.counts_tcp;
        let lower = if other.level < self.level {
            other.clone()
        } else {
            self
        };
        Self {
            counts_tcp,
            ..lower
        }
    }

    /// No further than the configuration allows.
    pub fn within(&self, allowed: Level) -> (Level, Option<Proof>) {
        if allowed == Level::TowardsProxies && allowed < self.level && !self.counts_tcp {
            (Level::BetweenProxies, Some(Proof::FionreadOfTcp))
        } else if allowed < self.level {
            (allowed, Some(Proof::Configuration))
        } else {
            let limit = self.limit.as_ref();
            (self.level, limit.map(|(proof, _)| *proof))
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        match &self.limit {
            Some((proof, why)) => write!(f, " ({}: {why})", proof.name()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(failures: &[Proof]) -> Reach {
        let tried = Proof::ALL.into_iter().filter(|proof| {
            !matches!(proof, Proof::Configuration | Proof::Types | Proof::Programs)
        });
        let findings: Vec<_> = tried
            .map(|name| Finding {
                name,
                failure: failures.contains(&name).then(|| "so".to_owned()),
            })
            .collect();
        Reach::proven(&findings)
    }

    #[test]
    fn each_level_rests_on_its_own_parts() {
        assert_eq!(found(&[]), Reach::full());
        let level = |failures: &[Proof]| found(failures).level;
        assert_eq!(level(&[Proof::Order]), Level::Off);
        assert_eq!(level(&[Proof::Splice, Proof::Joined]), Level::Off);
        assert_eq!(level(&[Proof::Joined]), Level::TowardsApplications);
        assert_eq!(level(&[Proof::Fionread]), Level::TowardsProxies);
        assert_eq!(level(&[Proof::BackToTcp]), Level::TowardsProxies);
        let neither = [Proof::BackToTcp, Proof::FionreadOfTcp];
        assert_eq!(level(&neither), Level::BetweenProxies);
        // Sockets leave the map before it matters.
        assert_eq!(level(&[Proof::FionreadOfTcp]), Level::Joined);
        assert_eq!(Reach::proven(&[]).level, Level::Off, "nothing was tried");
    }

    #[test]
    fn numbers_say_the_same() {
        for proof in Proof::ALL {
            assert_eq!(Proof::of_number(proof.number()), Some(proof));
        }
        assert_eq!(Proof::of_number(0), None);
    }

    #[test]
    fn the_configuration_may_allow_less() {
        let reach = found(&[Proof::Joined]);
        assert_eq!(
            reach.within(Level::Joined),
            (Level::TowardsApplications, Some(Proof::Joined))
        );
        assert_eq!(
            reach.within(Level::Off),
            (Level::Off, Some(Proof::Configuration))
        );
        let lower = Level::TowardsProxies;
        let allowed = (lower, Some(Proof::Configuration));
        assert_eq!(reach.within(lower), allowed);
        let node = Reach::full().and(&found(&[Proof::FionreadOfTcp]));
        assert_eq!(node.level, Level::Joined);
        assert_eq!(node.of(lower).level, Level::BetweenProxies);
        // A level that rests on what the higher ones do without.
        assert_eq!(
            found(&[Proof::FionreadOfTcp]).within(lower),
            (Level::BetweenProxies, Some(Proof::FionreadOfTcp))
        );
    }
}

//! Which rule for destinations says, of those that the kernel half has found.
//!
//! A rule of `outbound.allow` is an exception from the rules of `outbound.deny` that are wider than it: its range is within
//! theirs, and it names a port, or a protocol, where they name one. So whoever denies an address whatever the port is not
//! overruled by somebody who allows a port whatever the address.

use crate::settings::Ruling;

/// What is found for a destination, each by the longest range: the rules that name its port and its protocol, one of them,
/// or neither.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub both: Ruling,
    pub port: Ruling,
    pub protocol: Ruling,
    pub neither: Ruling,
}

/// The rule that denies, or 0.
///
/// One ruling of each class is enough: in a class the longest range is an exception from all shorter ones, or what makes an
/// exception from it makes one from them.
#[inline(always)]
pub fn denied_by(found: &Found) -> u32 {
    let Found {
        both,
        port,
        protocol,
        neither,
    } = *found;
    if both.denies() {
        return both.rule();
    }
    if port.denies() && !excepts(both, port) {
        return port.rule();
    }
    if protocol.denies() && !excepts(both, protocol) {
        return protocol.rule();
    }
    let excepted = excepts(both, neither) || excepts(port, neither) || excepts(protocol, neither);
    if neither.denies() && !excepted {
        return neither.rule();
    }
    0
}

/// Whether `narrow`, which names more than `wide`, is an exception from it.
#[inline(always)]
fn excepts(narrow: Ruling, wide: Ruling) -> bool {
    narrow.allows() && narrow.bits() >= wide.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Ruling = Ruling::NONE;

    fn found(both: Ruling, port: Ruling, protocol: Ruling, neither: Ruling) -> u32 {
        denied_by(&Found {
            both,
            port,
            protocol,
            neither,
        })
    }

    #[test]
    fn without_rules_nothing_is_denied() {
        assert_eq!(found(NONE, NONE, NONE, NONE), 0);
    }

    #[test]
    fn an_exception_is_narrower_in_every_respect() {
        let everything = Ruling::deny(1, 96);
        // Port 53 of one protocol of one address.
        assert_eq!(found(Ruling::allow(128), NONE, NONE, everything), 0);
        assert_eq!(found(NONE, Ruling::allow(96), NONE, everything), 0);
        assert_eq!(found(NONE, NONE, Ruling::allow(96), everything), 0);
        // A port everywhere, but an address is denied as such.
        let address = Ruling::deny(2, 128);
        assert_eq!(found(Ruling::allow(96), NONE, NONE, address), 2);
        // A range, but a port is denied everywhere.
        let mail = Ruling::deny(3, 96);
        assert_eq!(found(NONE, mail, NONE, Ruling::allow(104)), 3);
        assert_eq!(found(NONE, mail, Ruling::allow(104), NONE), 3);
        assert_eq!(found(Ruling::allow(104), mail, NONE, NONE), 0);
        assert_eq!(found(Ruling::allow(104), NONE, mail, NONE), 0);
        // The narrowest denies.
        assert_eq!(found(Ruling::deny(4, 96), mail, NONE, everything), 4);
    }

    #[test]
    fn what_is_packed_comes_out() {
        let deny = Ruling::deny(u16::MAX, 128);
        assert_eq!((deny.rule(), deny.bits()), (65_535, 128));
        assert!(deny.denies() && !deny.allows());
        let allow = Ruling::allow(0);
        assert!(allow.allows() && !allow.denies());
        assert!(!NONE.allows() && !NONE.denies());
    }
}

//! Ranges of addresses that are not steered, where somebody says which shall be: everything else, as few ranges as cover it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Cidr;

/// The addresses of both families that are in none of `included`.
pub fn all_but(included: &[Cidr]) -> Vec<Cidr> {
    let mut rest = Vec::new();
    for whole in [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ] {
        let family: Vec<Cidr> = included
            .iter()
            .filter(|cidr| cidr.address().is_ipv4() == whole.is_ipv4())
            .copied()
            .collect();
        rest.extend(Cidr::around(whole, 0).map_or_else(Vec::new, |all| without(all, &family)));
    }
    rest
}

/// The parts of `range` that are in none of `included`. Each of these halves it once for each bit that it is longer, so that
/// it makes 128 parts at most.
fn without(range: Cidr, included: &[Cidr]) -> Vec<Cidr> {
    let covers = |outer: &Cidr, inner: &Cidr| {
        outer.prefix_bits() <= inner.prefix_bits() && outer.contains(inner.address())
    };
    if included.iter().any(|cidr| covers(cidr, &range)) {
        return Vec::new();
    }
    let within: Vec<Cidr> = included
        .iter()
        .filter(|cidr| covers(&range, cidr))
        .copied()
        .collect();
    if within.is_empty() {
        return vec![range];
    }
    let halves = halves(range).into_iter();
    halves.flat_map(|half| without(half, &within)).collect()
}

/// Never called with a range of one address: whatever is within that covers it.
fn halves(range: Cidr) -> Vec<Cidr> {
    let bits = range.prefix_bits().saturating_add(1);
    let upper = match range.address() {
        IpAddr::V4(v4) => {
            let bit = 1u32.checked_shl(32u32.saturating_sub(bits.into()));
            IpAddr::from(Ipv4Addr::from_bits(v4.to_bits() | bit.unwrap_or(0)))
        }
        IpAddr::V6(v6) => {
            let bit = 1u128.checked_shl(128u32.saturating_sub(bits.into()));
            IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() | bit.unwrap_or(0)))
        }
    };
    let both = [Cidr::new(range.address(), bits), Cidr::new(upper, bits)];
    both.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(included: &[&str]) -> Vec<String> {
        let included: Vec<Cidr> = included.iter().map(|text| text.parse().unwrap()).collect();
        all_but(&included).iter().map(Cidr::to_string).collect()
    }

    #[test]
    fn what_is_left() {
        assert_eq!(shown(&[]), ["0.0.0.0/0", "::/0"]);
        assert_eq!(shown(&["0.0.0.0/0"]), ["::/0"]);
        assert!(shown(&["0.0.0.0/0", "::/0"]).is_empty());
        assert_eq!(
            shown(&["10.0.0.0/8", "10.1.0.0/16", "::/0"]),
            [
                "0.0.0.0/5",
                "8.0.0.0/7",
                "11.0.0.0/8",
                "12.0.0.0/6",
                "16.0.0.0/4",
                "32.0.0.0/3",
                "64.0.0.0/2",
                "128.0.0.0/1"
            ]
        );
        assert_eq!(shown(&["::1", "0.0.0.0/0"]).len(), 128);
    }

    proptest! {
        #[test]
        fn every_address_is_on_one_side(
            ranges in prop::collection::vec((any::<u32>(), 0u8..=32), 0..6), probe: u32
        ) {
            let ranges: Vec<Cidr> = ranges
                .into_iter()
                .filter_map(|(bits, length)| Cidr::around(Ipv4Addr::from_bits(bits).into(), length))
                .collect();
            let probes = ranges.iter().map(Cidr::address).chain([Ipv4Addr::from_bits(probe).into()]);
            for probe in probes {
                let inside = |list: &[Cidr]| list.iter().filter(|cidr| cidr.contains(probe)).count();
                prop_assert_eq!(inside(&all_but(&ranges)), usize::from(inside(&ranges) == 0));
            }
        }
    }
}

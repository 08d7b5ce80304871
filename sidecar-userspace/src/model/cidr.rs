//! Address ranges and the posture towards unknown destinations.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// What happens to a destination that no service claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownDestination {
    /// Dial the address that the application asked for.
    Passthrough,
    /// Refuse with a reset: only what the configuration names may be reached.
    RegistryOnly,
}

/// An address range, such as `10.0.0.0/8` or `fd00::/8`; a bare address is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix_bits: u8,
}

impl Cidr {
    /// The range of `prefix_bits` leading bits of `address`; `None` if there are more bits than the
    /// address has, or if bits beyond the prefix are set.
    pub fn new(address: IpAddr, prefix_bits: u8) -> Option<Self> {
        let cidr = Self {
            address,
            prefix_bits,
        };
        (prefix_bits <= width(address) && cidr.masked() == cidr.bits(address)).then_some(cidr)
    }

    /// The range of `prefix_bits` leading bits that `address` is in; `None` if the address has fewer bits.
    pub fn around(address: IpAddr, prefix_bits: u8) -> Option<Self> {
        if prefix_bits > width(address) {
            return None;
        }
        let range = Self {
            address,
            prefix_bits,
        };
        let address = match address {
            IpAddr::V4(v4) => IpAddr::from((v4.to_bits() & range.mask() as u32).to_be_bytes()),
            IpAddr::V6(_) => IpAddr::from(range.masked().to_be_bytes()),
        };
        Some(Self {
            address,
            prefix_bits,
        })
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    /// Whether `address` is in the range. A v4-mapped IPv6 address is taken for the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        width(address) == width(self.address)
            && self.bits(address) & self.mask() == self.bits(self.address)
    }

    fn bits(&self, address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    fn mask(&self) -> u128 {
        let host_bits = u32::from(width(self.address) - self.prefix_bits);
        u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }

    fn masked(&self) -> u128 {
        self.bits(self.address) & self.mask()
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bits) = text
            .split_once('/')
            .map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address
            .parse()
            .map_err(|_| "an address or a range such as 10.0.0.0/8")?;
        let bits = match bits {
            None => width(address),
            Some(bits) => bits.parse().map_err(|_| "a prefix length such as /8")?,
        };
        Self::new(address, bits).ok_or("a range whose bits beyond the prefix are zero")
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn ranges_contain_what_they_should() {
        let ten: Cidr = "10.0.0.0/8".parse().unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(ten.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!ten.contains("11.0.0.1".parse().unwrap()));
        assert!(!ten.contains("::a00:1".parse().unwrap()));
        let all: Cidr = "::/0".parse().unwrap();
        assert!(all.contains("fd00::1".parse().unwrap()));
        assert!(!all.contains("1.2.3.4".parse().unwrap()));
        let one: Cidr = "192.0.2.1".parse().unwrap();
        assert_eq!(one.to_string(), "192.0.2.1/32");
        assert!("10.0.0.1/8".parse::<Cidr>().is_err());
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
    }
}

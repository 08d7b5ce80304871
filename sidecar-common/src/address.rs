//! IP addresses and ports as both halves see them.

/// An IP address: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ip(pub [u32; 4]);

/// The third word of a v4-mapped address, in network order.
pub const V4_MAPPED: u32 = 0xffff_u32.to_be();

impl Ip {
    /// `word`: an IPv4 address in network order.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, V4_MAPPED, word])
    }

    /// `0.0.0.0` or `::`, of the same family.
    #[inline(always)]
    pub const fn any(&self) -> Self {
        if self.is_v4() {
            Self::from_v4(0)
        } else {
            Self([0; 4])
        }
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MAPPED
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.0[3].to_be() >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// fe80::/10 or ff00::/8: means something together with an interface only.
    #[inline(always)]
    pub const fn is_scoped(&self) -> bool {
        let first = self.0[0].to_be();
        first >> 22 == 0xfe80 >> 6 || first >> 24 == 0xff
    }

    /// `0.0.0.0` or `::`, which a connect takes for loopback.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0
            && self.0[1] == 0
            && self.0[3] == 0
            && (self.0[2] == 0 || self.0[2] == V4_MAPPED)
    }
}

/// What an application has bound its socket to before it connected.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Source {
    /// The address, with `BOUND`; else the one that the application is shown as its own. All zero: not known.
    pub ip: Ip,
    /// Index of the device, or 0.
    pub device: u32,
    /// In host order, or 0.
    pub port: u16,
    /// See the constant.
    pub flags: u16,
}

impl Source {
    /// The application has chosen the address itself.
    pub const BOUND: u16 = 1;
}

/// An address and a port; all zero means none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Address {
    pub ip: Ip,
    /// Host order.
    pub port: u16,
    pub _pad: u16,
}

impl Address {
    #[inline(always)]
    pub const fn new(ip: Ip, port: u16) -> Self {
        Self { ip, port, _pad: 0 }
    }

    #[inline(always)]
    pub const fn is_some(&self) -> bool {
        self.port != 0
    }
}

const _: () =
    assert!(size_of::<Ip>() == 16 && size_of::<Address>() == 20 && size_of::<Source>() == 24);

#[cfg(feature = "user")]
mod user {
    use core::net::{IpAddr, SocketAddr};

    use super::{Address, Ip, Source};

    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for Ip {}
    // SAFETY: repr(C), padded by hand, any bytes are a value.
    unsafe impl aya::Pod for Address {}
    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for Source {}

    impl From<IpAddr> for Ip {
        fn from(address: IpAddr) -> Self {
            let octets = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let word = |i: usize| {
                u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]])
            };
            Self([word(0), word(4), word(8), word(12)])
        }
    }

    impl From<Ip> for IpAddr {
        fn from(ip: Ip) -> Self {
            let mut octets = [0; 16];
            for (bytes, word) in octets.chunks_exact_mut(4).zip(ip.0) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            Self::from(octets).to_canonical()
        }
    }

    impl From<SocketAddr> for Address {
        fn from(address: SocketAddr) -> Self {
            Self::new(address.ip().into(), address.port())
        }
    }

    impl From<Address> for SocketAddr {
        fn from(address: Address) -> Self {
            Self::new(address.ip.into(), address.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_mapped() {
        assert!(Ip::from_v4(0x7f00_0001_u32.to_be()).is_loopback());
        assert!(Ip::from_v4(0x7fff_fffe_u32.to_be()).is_loopback());
        assert!(!Ip::from_v4(0x0a00_0001_u32.to_be()).is_loopback());
        assert!(Ip([0, 0, 0, 1_u32.to_be()]).is_loopback());
        assert!(!Ip([0, 0, 0, 2_u32.to_be()]).is_loopback());
        assert!(Ip::default().is_unspecified());
        assert!(Ip::from_v4(0).is_unspecified());
        assert!(!Ip::from_v4(1).is_unspecified());
    }

    #[test]
    fn scoped_addresses_are_link_local_and_multicast() {
        for (first, scoped) in [
            (0xfe80_0000_u32, true),
            (0xfebf_0000, true),
            (0xff02_0000, true),
            (0xfec0_0000, false),
            (0xfd00_0000, false),
        ] {
            assert_eq!(
                Ip([first.to_be(), 0, 0, 1]).is_scoped(),
                scoped,
                "{first:x}"
            );
        }
        assert!(!Ip::from_v4(0xffff_fffe_u32.to_be()).is_scoped());
    }
}

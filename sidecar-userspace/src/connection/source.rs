//! Connect: to what the application has bound its socket, the connection to upstream is bound as well.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use tokio::net::{TcpSocket, TcpStream};

use crate::sys::sockopt;

/// What the application at the other end of a steered connection has bound its socket to. Nothing, for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Source {
    /// The address that it has chosen.
    address: Option<IpAddr>,
    /// The one that it is shown, if it has chosen none.
    shown: Option<IpAddr>,
    port: u16,
    /// Index of the device, or 0.
    device: u32,
}

impl Source {
    /// Asks the kernel half about an accepted connection.
    pub fn of(accepted: &TcpStream) -> Self {
        // Nobody answers where none is attached.
        let said = sockopt::source(accepted).unwrap_or_default();
        let ip = Some(IpAddr::from(said.ip)).filter(|ip| !ip.is_unspecified());
        let bound = said.flags & sidecar_common::address::Source::BOUND != 0;
        Self {
            address: ip.filter(|_| bound),
            shown: ip.filter(|_| !bound && said.port != 0),
            port: said.port,
            device: said.device,
        }
    }

    /// Whether the application has chosen a port.
    pub fn has_port(&self) -> bool {
        self.port != 0
    }

    /// What connections have in common that several clients share: a port is one connection's.
    pub fn shared(self) -> Self {
        Self {
            shown: None,
            port: 0,
            ..self
        }
    }

    /// For the key of such connections; `None`, which is small: nothing.
    pub fn key(self) -> Option<Box<Self>> {
        let shared = self.shared();
        (shared != Self::default()).then(|| Box::new(shared))
    }

    /// Binds a socket that will be connected to `to`. The port is used as far as it is free and permitted: says whether it is, if
    /// there is one.
    pub fn bind(&self, socket: &TcpSocket, to: SocketAddr) -> io::Result<bool> {
        if self.device != 0 {
            sockopt::bind_to_device(socket, self.device)?;
        }
        let fits = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
        let address = self.address.filter(fits);
        if self.has_port() {
            // Not all addresses: the application's own socket has this port on loopback.
            if let Some(ip) = address.or(self.shown).filter(fits) {
                socket.set_reuseaddr(true)?;
                if socket.bind(self.local(ip, self.port)).is_ok() {
                    return Ok(true);
                }
                socket.set_reuseaddr(false)?;
            }
        }
        if let Some(ip) = address {
            sockopt::bind_without_port(socket)?;
            socket.bind(self.local(ip, 0))?;
        }
        Ok(!self.has_port())
    }

    fn local(&self, ip: IpAddr, port: u16) -> SocketAddr {
        match ip {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {
                SocketAddrV6::new(v6, port, 0, self.device).into()
            }
            ip => SocketAddr::new(ip, port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(source: Source, to: &str) -> (io::Result<bool>, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        let kept = source.bind(&socket, to.parse().unwrap());
        (kept, socket.local_addr().unwrap())
    }

    #[tokio::test]
    async fn a_port_is_kept_where_it_is_free() {
        let source = Source {
            address: "127.0.0.2".parse().ok(),
            port: 40_321,
            ..Source::default()
        };
        let to = "127.0.0.1:1";
        let (kept, at) = bound(source, to);
        assert!(kept.unwrap());
        assert_eq!(at.to_string(), "127.0.0.2:40321");
        let _taken = std::net::TcpListener::bind("127.0.0.2:40321").unwrap();
        let (kept, at) = bound(source, to);
        assert!(!kept.unwrap());
        assert_eq!(at.ip().to_string(), "127.0.0.2", "the address is kept");
        assert_ne!(at.port(), 40_321);
        let (kept, at) = bound(source.shared(), to);
        assert!(kept.unwrap(), "there is none to be kept");
        assert_eq!(at.ip().to_string(), "127.0.0.2");
    }

    #[tokio::test]
    async fn an_address_of_the_other_family_is_none() {
        let source = Source {
            address: "::1".parse().ok(),
            ..Source::default()
        };
        let (kept, at) = bound(source, "127.0.0.1:1");
        assert!(kept.unwrap());
        assert!(at.ip().is_unspecified());
    }
}

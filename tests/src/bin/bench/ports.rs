//! Which port of the server stands for what. Proxies are told the protocol of each.

use super::row::{Load, Row, Wire};

/// Everything that is known of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub wire: Wire,
    pub mtls: bool,
    pub opt_out: bool,
    pub served_by: Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Nginx,
    Sink,
    Unary,
}

/// Writes of at least so many bytes are bulk; smaller ones have a port of their own, since proxies learn by port.
const BULK: usize = 4096;

pub const PORTS: [Port; 13] = [
    port(8081, Wire::Tcp, false, Server::Nginx),
    port(8444, Wire::Tcp, true, Server::Nginx),
    Port {
        opt_out: true,
        ..port(8091, Wire::Tcp, false, Server::Nginx)
    },
    port(8080, Wire::Http, false, Server::Nginx),
    port(8443, Wire::Http, true, Server::Nginx),
    port(8082, Wire::H2, false, Server::Nginx),
    port(8445, Wire::H2, true, Server::Nginx),
    port(9100, Wire::Grpc, false, Server::Unary),
    port(9101, Wire::Grpc, true, Server::Unary),
    port(BULK_STREAM, Wire::Tcp, false, Server::Sink),
    port(SMALL_STREAM, Wire::Tcp, false, Server::Sink),
    port(BULK_STREAM + 10, Wire::Tcp, true, Server::Sink),
    port(SMALL_STREAM + 10, Wire::Tcp, true, Server::Sink),
];

const BULK_STREAM: u16 = 9000;
const SMALL_STREAM: u16 = 9001;

const fn port(number: u16, wire: Wire, mtls: bool, served_by: Server) -> Port {
    Port {
        number,
        wire,
        mtls,
        opt_out: false,
        served_by,
    }
}

/// The port that a row's load is sent to.
pub fn of(row: &Row) -> u16 {
    if let Load::Stream { write } = row.load {
        let port = if write.0 >= BULK {
            BULK_STREAM
        } else {
            SMALL_STREAM
        };
        return port + if row.mtls { 10 } else { 0 };
    }
    let found = PORTS.iter().find(|port| {
        port.served_by != Server::Sink
            && (port.wire, port.mtls, port.opt_out) == (row.wire, row.mtls, row.opt_out)
    });
    // The table has a port for every row that can be named; see the test.
    found.map_or(0, |port| port.number)
}

/// The ports that `server` listens on.
pub fn served_by(server: Server) -> impl Iterator<Item = Port> {
    PORTS
        .into_iter()
        .filter(move |port| port.served_by == server)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_row_has_a_port_of_its_protocol() {
        for wire in [
            "tcp",
            "tcp-mtls",
            "tcp-optout",
            "http",
            "http-mtls",
            "h2",
            "h2-mtls",
            "grpc",
            "grpc-mtls",
        ] {
            let row: Row = format!("{wire}-1k-max32").parse().unwrap();
            let port = PORTS.iter().find(|port| port.number == of(&row)).unwrap();
            assert_eq!(
                (port.wire, port.mtls, port.opt_out),
                (row.wire, row.mtls, row.opt_out)
            );
        }
        let stream = |name: &str| of(&name.parse().unwrap());
        assert_eq!(stream("tcp-stream-64k"), 9000);
        assert_eq!(stream("tcp-mtls-stream-64b"), 9011);
    }
}

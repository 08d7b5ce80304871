//! How a connection or a request ended: success, or a failure with a reason that stays the same for ever.

use std::fmt;

use super::Direction;

/// The end of one connection or one request. Recorded exactly once, see [`super::record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Failure(Reason),
}

impl Outcome {
    /// `ok`, or the reason's code: the value of the metric label and of the log's `reason`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Success => "ok",
            Self::Failure(reason) => reason.code(),
        }
    }

    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Success => None,
            Self::Failure(reason) => Some(reason),
        }
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self::Failure(reason)
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $flag:literal, $words:literal;)*) => {
        /// Why a connection or a request failed. Codes are an interface: dashboards and alerts name them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Stable, snake_case.
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// Envoy's response flag of the same meaning, `-` where it has none.
            pub fn flag(self) -> &'static str {
                match self { $(Self::$variant => $flag,)* }
            }

            /// For people: what happened, in one clause.
            pub fn words(self) -> &'static str {
                match self { $(Self::$variant => $words,)* }
            }
        }
    };
}

reasons! {
    // accept
    ConnectionLimit = "connection_limit", "UO", "more connections than limits.connections, or the memory limit, allows";
    DescriptorLimit = "descriptor_limit", "UO", "the process has hardly a file descriptor left";
    // origin
    OriginUnknown = "origin_unknown", "NR", "the original destination of the connection could not be read";
    LoopDetected = "loop_detected", "NR", "the original destination is the sidecar itself";
    // accept and connect, TLS
    TlsPlaintextRefused = "tls_plaintext_refused", "UAEX", "the port takes mutual TLS only and the client did not speak TLS";
    TlsHandshakeTimeout = "tls_handshake_timeout", "UF", "the TLS handshake was not complete in time";
    TlsHandshakeFailed = "tls_handshake_failed", "UF", "the peer did not speak TLS correctly";
    TlsVersion = "tls_version", "UF", "the peer and the sidecar have no version of TLS in common";
    TlsNoCertificate = "tls_no_certificate", "UAEX", "the client presented no certificate";
    TlsUnknownIssuer = "tls_unknown_issuer", "UAEX", "no trusted root has signed the peer's certificate";
    TlsCertificateExpired = "tls_certificate_expired", "UAEX", "the peer's certificate has expired";
    TlsCertificateNotYetValid = "tls_certificate_not_yet_valid", "UAEX", "the peer's certificate is not valid yet";
    TlsBadCertificate = "tls_bad_certificate", "UAEX", "the peer's certificate cannot be accepted";
    TlsWrongIdentity = "tls_wrong_identity", "UAEX", "the peer's certificate is not for the workload that was expected";
    TlsRefusedByPeer = "tls_refused_by_peer", "UF", "the peer refused the TLS connection";
    TlsFiles = "tls_files", "UF", "the certificates that are configured for the destination cannot be used";
    TlsIdentityMissing = "tls_identity_missing", "UF", "the sidecar has no identity (yet)";
    // authorise
    DestinationRefused = "destination_refused", "UAEX", "no service claims the destination and outbound.unknown is registryOnly";
    EgressDenied = "egress_denied", "UAEX", "outbound.deny refuses the destination";
    PolicyDenied = "policy_denied", "UAEX", "an authorization policy refuses it";
    PathRefused = "path_refused", "DPE", "the path or host has a spelling that applications read in different ways";
    TokenRefused = "token_refused", "UAEX", "the request's token is not valid";
    TunnelRefused = "tunnel_refused", "UAEX", "another sidecar asked for a destination that is not the one its tunnel leads to";
    // route
    NoRoute = "no_route", "NR", "no route and no service matches the request";
    // balance
    NoEndpoint = "no_endpoint", "UH", "the service has no endpoint that takes traffic";
    NameResolution = "name_resolution", "DF", "the endpoint's name could not be resolved";
    // connect
    ConnectRefused = "connect_refused", "UF", "the destination refused the connection";
    ConnectTimeout = "connect_timeout", "UF", "the destination did not answer within the connect timeout";
    ConnectUnreachable = "connect_unreachable", "UF", "the destination cannot be reached";
    ConnectFailed = "connect_failed", "UF", "the connection to the destination could not be set up";
    // relay, bytes
    ClientReset = "client_reset", "DC", "the client reset the connection";
    UpstreamReset = "upstream_reset", "UC", "the destination reset the connection";
    ClientLost = "client_lost", "DC", "the client no longer answers";
    UpstreamLost = "upstream_lost", "UC", "the destination no longer answers";
    IdleTimeout = "idle_timeout", "SI", "no byte moved in either direction for the idle timeout";
    DrainDeadline = "drain_deadline", "-", "the sidecar ended before the connection did";
    // relay, HTTP
    BadRequest = "bad_request", "DPE", "the client did not speak HTTP correctly";
    HeadTooLarge = "head_too_large", "DPE", "the request's head exceeds limits.headerBytes or limits.headers";
    HeadTimeout = "head_timeout", "DT", "the request's head did not arrive in time";
    RequestTimeout = "request_timeout", "UT", "the whole request took longer than the route allows";
    ClientClosed = "client_closed", "DC", "the client went away before the response was complete";
    UpstreamClosed = "upstream_closed", "UC", "the destination closed the connection before the response was complete";
    UpstreamProtocol = "upstream_protocol", "UPE", "the destination did not speak HTTP correctly";
    UpgradeFailed = "upgrade_failed", "UPE", "the protocol upgrade could not be completed";
    // record
    Abandoned = "abandoned", "-", "the connection's task ended before its outcome was known";
}

impl Reason {
    /// The reason for an I/O error while dialling.
    pub fn of_connect_error(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused | K::ConnectionReset => Self::ConnectRefused,
            K::TimedOut => Self::ConnectTimeout,
            K::HostUnreachable | K::NetworkUnreachable | K::AddrNotAvailable => {
                Self::ConnectUnreachable
            }
            _ => Self::ConnectFailed,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// What a relay (bytes or HTTP) hands back to `serve()` for the connection's record.
#[derive(Debug, Clone)]
pub struct Ended {
    pub outcome: Outcome,
    /// Bytes from the client towards the destination.
    pub client_bytes: u64,
    /// Bytes from the destination towards the client.
    pub upstream_bytes: u64,
    /// The operating system's or library's own words, if they add anything.
    pub detail: Option<String>,
}

impl Direction {
    /// `inbound` or `outbound`, as in labels and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_snake_case() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert!(!codes.contains(Outcome::Success.code()));
        for code in codes {
            assert!(
                code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{code}"
            );
        }
    }
}

//! Answers that the proxy makes itself, in words that say what to do.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, framing::Violation};
use crate::connection::{Reason, connect::ConnectError};

/// Why a request got no response from upstream.
#[derive(Debug)]
pub(super) struct Refusal {
    pub reason: Reason,
    pub status: StatusCode,
    /// Follows the reason's words, in the body and in the log.
    pub detail: Option<String>,
}

impl Refusal {
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            status: status_of(reason),
            detail: None,
        }
    }

    pub fn with(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..Self::new(reason)
        }
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let prefix = match self.reason {
            Reason::ConnectRefused
            | Reason::ConnectTimeout
            | Reason::ConnectUnreachable
            | Reason::ConnectFailed
            | Reason::NameResolution => "upstream connect error: ",
            Reason::UpstreamReset | Reason::UpstreamClosed | Reason::UpstreamProtocol => {
                "upstream error: "
            }
            _ => "",
        };
        match &self.detail {
            Some(detail) => format!("{prefix}{}: {detail}\n", self.reason),
            None => format!("{prefix}{}\n", self.reason),
        }
    }

    /// The response. gRPC clients get theirs as trailers-only, which is what their libraries understand.
    pub fn response(&self, grpc: bool) -> Response<ResponseBody> {
        let text = self.text();
        let mut response = Response::new(ResponseBody::empty());
        let headers = response.headers_mut();
        if self.reason == Reason::TokenRefused {
            // RFC 6750, 3.
            let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if grpc {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            headers.insert(
                "grpc-status",
                HeaderValue::from_static(grpc_status(self.status)),
            );
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(text.trim_end())) {
                headers.insert("grpc-message", message);
            }
            return response;
        }
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
        *response.status_mut() = self.status;
        *response.body_mut() = ResponseBody::full(Bytes::from(text));
        response
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        let reason = match violation {
            Violation::HeadTooLarge | Violation::TooManyFields => Reason::HeadTooLarge,
            Violation::Slow => Reason::HeadTimeout,
            _ => Reason::BadRequest,
        };
        Self {
            reason,
            status: StatusCode::from_u16(violation.status()).unwrap_or(StatusCode::BAD_REQUEST),
            detail: Some(violation.words().into()),
        }
    }
}

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        let detail = match (error.address, error.detail) {
            (Some(address), Some(detail)) => Some(format!("{address}: {detail}")),
            (Some(address), None) => Some(address.to_string()),
            (None, detail) => detail,
        };
        Self {
            detail,
            ..Self::new(error.reason)
        }
    }
}

/// As Envoy and nginx answer, so that clients' retry rules fit.
fn status_of(reason: Reason) -> StatusCode {
    match reason {
        // Whoever went away hears it only if it half-closed in the middle of its request.
        Reason::BadRequest | Reason::PathRefused | Reason::ClientClosed | Reason::ClientReset => {
            StatusCode::BAD_REQUEST
        }
        Reason::TokenRefused => StatusCode::UNAUTHORIZED,
        Reason::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::DestinationRefused | Reason::EgressDenied | Reason::PolicyDenied => {
            StatusCode::FORBIDDEN
        }
        Reason::NoRoute | Reason::OriginUnknown => StatusCode::NOT_FOUND,
        Reason::LoopDetected => StatusCode::LOOP_DETECTED,
        Reason::RequestTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::UpstreamReset
        | Reason::UpstreamClosed
        | Reason::UpstreamProtocol
        | Reason::UpgradeFailed => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// gRPC's own mapping from HTTP, with DEADLINE_EXCEEDED for the time limit that we know to be one.
fn grpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 | 408 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        431 => "8",
        504 => "4",
        _ => "14",
    }
}

/// `grpc-message` as the gRPC protocol wants it.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
        encoded
    })
}

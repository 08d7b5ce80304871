//! What the endpoints answer: plain text, JSON, metrics.

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::Full;

pub type Answer = Response<Full<Bytes>>;

/// Metrics as Prometheus wants them.
pub fn exposed(exposition: Result<impl Into<Bytes>, prometheus::Error>) -> Answer {
    let mut answer = match exposition {
        Ok(exposition) => text(StatusCode::OK, exposition),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    let format = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, format);
    answer
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

pub fn json_answer(value: &serde_json::Value) -> Answer {
    answer(
        StatusCode::OK,
        "application/json",
        format!("{value:#}\n").into(),
    )
}

pub fn only(method: Method) -> Answer {
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {method}\n"));
    if let Ok(method) = method.as_str().parse() {
        refused.headers_mut().insert(header::ALLOW, method);
    }
    refused
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    answer
}

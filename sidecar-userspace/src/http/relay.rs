//! Relay: one request up, its response down.

use std::{convert::Infallible, pin::Pin, rc::Rc};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{
    authorise,
    body::{RequestBody, ResponseBody},
    client::{self, Sent},
    exchange::Exchange,
    expect::{self, Gate},
    headers,
    refusal::Refusal,
    route::{self, Way},
    session::Session,
    tunnel::{self, Tunnel},
};
use crate::{
    connection::{Reason, origin::without_scope},
    model::Protocol,
};

/// Answers one request: with upstream's response, or with a refusal that says why there is none.
pub(super) async fn relay(
    session: Rc<Session>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let exchange = Exchange::begin(&session, &request);
    let undecided = *request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
    let old_keep_alive = headers::asks_keep_alive(&request);
    let result = respond(&session, &exchange, request).await;
    let mut response = result.unwrap_or_else(|refusal| refuse(&exchange, &refusal));
    if undecided {
        session.wire.decide(session.tunnel.borrow().is_some());
    }
    if old_keep_alive && response.body().size_hint().exact().is_some() {
        let keep_alive = HeaderValue::from_static("keep-alive");
        response.headers_mut().insert(CONNECTION, keep_alive);
    }
    // hyper speaks to the client in the client's version.
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

async fn respond(
    session: &Rc<Session>,
    exchange: &Rc<Exchange>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Refusal> {
    if let Some(violation) = session.wire.refusal(request.method()) {
        exchange.note(|record| {
            record.method = Method::from_bytes(b"-").unwrap_or_default();
            record.authority = None;
            record.path = None;
        });
        return Err(violation.into());
    }
    let claims = authorise::authenticate(session, exchange, &mut request)?;
    authorise::normalise(session, &mut request)?;
    let way = route::route(session, exchange, &request).await?;
    exchange.note(|record| {
        record.service = way
            .target
            .service
            .as_ref()
            .map(|service| service.name.clone());
        record.route = way.route.clone();
    });
    authorise::authorise(session, exchange, &request, &way, claims.as_ref())?;
    drop(claims);
    let connect = *request.method() == Method::CONNECT;
    let to_http2 = session.http2 || way.target.protocol == Protocol::Http2;
    if connect && to_http2 {
        return Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            ..Refusal::with(Reason::UpgradeFailed, "CONNECT is for HTTP/1.1")
        });
    }
    if connect && session.target.is_none() {
        return Box::pin(tunnel::connect(session, exchange, &way.target)).await;
    }
    let upgrade = !to_http2 && headers::asks_upgrade(request.headers());
    let request = prepare(session, exchange, request, &way, to_http2, upgrade)?;
    let mut deadline = way.timeout.map(|timeout| {
        Box::pin(tokio::time::sleep(
            timeout.saturating_sub(exchange.started().elapsed()),
        ))
    });
    let sending = client::send(session, &way.target, to_http2, request);
    let sent = tokio::select! {
        biased;
        sent = sending => sent.map_err(|error| failure(session, exchange, error.into()))?,
        () = expire(&mut deadline) => return Err(Refusal::new(Reason::RequestTimeout)),
    };
    exchange.note(|record| {
        record.upstream = Some(sent.address);
        record.upstream_tls = sent.lease.tls().cloned();
    });
    deliver(session, exchange, sent, connect, upgrade, deadline)
}

/// The request as upstream gets it.
fn prepare(
    session: &Session,
    exchange: &Rc<Exchange>,
    request: Request<Incoming>,
    way: &Way,
    to_http2: bool,
    upgrade: bool,
) -> Result<Request<RequestBody>, Refusal> {
    let (parts, incoming) = request.into_parts();
    let body = RequestBody::new(incoming, exchange);
    let uri = target(session, exchange, &parts, way, to_http2)?;
    let mut request = Request::new(body);
    let rewritten = way.rewrite.as_ref().map(|rewrite| rewrite.1.clone());
    // RFC 9112, 3.2.2: the target's authority counts, and `Host` has to agree.
    let host = rewritten.or_else(|| parts.uri.authority().cloned());
    *request.headers_mut() = parts.headers;
    let fields = request.headers_mut();
    let hop = headers::Hop {
        from_http2: session.http2,
        to_http2,
    };
    headers::of_request(fields, hop, upgrade);
    exchange.note(|record| record.request_id = fields.get(headers::REQUEST_ID).cloned());
    if to_http2 {
        // Answered here: the client is told to go on when upstream takes the body.
        fields.remove(EXPECT);
        *request.version_mut() = Version::HTTP_2;
    } else {
        set_host(session, fields, host);
    }
    let has_body = !request.body().is_end_stream();
    if !to_http2 && has_body {
        if session.http2 && !request.headers().contains_key(CONTENT_LENGTH) {
            // Without this hyper sends no body with GET.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        if expect::is_wanted(request.headers()) {
            let gate = Gate::before(&mut request);
            request.body_mut().wait_for(gate);
        }
    }
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    Ok(request)
}

/// The request's target in the form that upstream's version has it.
fn target(
    session: &Session,
    exchange: &Exchange,
    parts: &Parts,
    way: &Way,
    to_http2: bool,
) -> Result<Uri, Refusal> {
    let uri = way
        .rewrite
        .as_ref()
        .map_or(&parts.uri, |rewrite| &rewrite.0);
    let mut new = http::uri::Parts::default();
    new.path_and_query = uri.path_and_query().cloned();
    if to_http2 {
        let rewritten = way.rewrite.as_ref().map(|rewrite| rewrite.1.clone());
        new.authority = rewritten.or_else(|| exchange.authority()).or_else(|| {
            Authority::try_from(without_scope(session.context.original?).to_string()).ok()
        });
        new.scheme = Some(parts.uri.scheme().cloned().unwrap_or(Scheme::HTTP));
        new.path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
    } else if uri.authority().is_some() {
        // CONNECT, or a request to another proxy, which must see what it is asked for.
        let to_proxy = session.target.is_some() && way.target.service.is_none();
        if parts.method == Method::CONNECT || (to_proxy && !session.http2) {
            return Ok(uri.clone());
        }
    } else {
        return Ok(uri.clone());
    }
    Uri::from_parts(new).map_err(|error| Refusal::with(Reason::BadRequest, error.to_string()))
}

fn set_host(session: &Session, fields: &mut HeaderMap, host: Option<Authority>) {
    let text = match (&host, session.context.original) {
        (Some(host), _) => host.as_str().to_owned(),
        (None, Some(original)) if !fields.contains_key(HOST) => without_scope(original).to_string(),
        (None, _) => return,
    };
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
        fields.insert(HOST, value);
    }
}

/// The response as the client gets it.
fn deliver(
    session: &Session,
    exchange: &Rc<Exchange>,
    sent: Sent,
    connect: bool,
    upgrade: bool,
    deadline: Option<Pin<Box<Sleep>>>,
) -> Result<Response<ResponseBody>, Refusal> {
    let Sent {
        mut response,
        lease,
        address,
    } = sent;
    let status = response.status();
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    if switches && !upgrade {
        let detail = format!("{address}: 101 without a request to upgrade");
        return Err(Refusal::with(Reason::UpstreamProtocol, detail));
    }
    let keep_upgrade = switches || status == StatusCode::UPGRADE_REQUIRED;
    if !headers::of_response(response.headers_mut(), keep_upgrade) {
        let detail = format!("{address}: ambiguous framing of the response");
        return Err(Refusal::with(Reason::UpstreamProtocol, detail));
    }
    exchange.head(status);
    if switches || (connect && status.is_success()) {
        let upgrade = hyper::upgrade::on(&mut response);
        let tunnel = Tunnel::upgraded(upgrade, exchange, lease);
        *session.tunnel.borrow_mut() = Some(tunnel);
        return Ok(response.map(|_| ResponseBody::empty()));
    }
    Ok(response.map(|incoming| ResponseBody::relayed(incoming, exchange.clone(), lease, deadline)))
}

/// An error of upstream's side, or what the client did to cause it.
fn failure(session: &Session, exchange: &Exchange, refusal: Refusal) -> Refusal {
    let reason = exchange.cause(refusal.reason);
    match session.wire.violation() {
        _ if reason == refusal.reason => refusal,
        Some(violation) => violation.into(),
        None => Refusal::new(reason),
    }
}

fn refuse(exchange: &Exchange, refusal: &Refusal) -> Response<ResponseBody> {
    let response = refusal.response(exchange.grpc);
    exchange.head(response.status());
    exchange.count_response(response.body().own_bytes());
    exchange.end(refusal.reason, refusal.detail.clone());
    response
}

/// Never, if there is no deadline.
async fn expire(deadline: &mut Option<Pin<Box<Sleep>>>) {
    match deadline {
        Some(deadline) => deadline.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    fn size<A, B, R>(_: impl Fn(A, B) -> R) -> usize {
        size_of::<R>()
    }

    /// hyper moves it for every request.
    #[test]
    fn a_request_is_small() {
        let bytes = size(super::relay);
        assert!(bytes <= 3200, "{bytes} bytes");
    }
}

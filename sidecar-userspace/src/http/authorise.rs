//! Authorise: whether one request may pass, and in which spelling.

use std::borrow::Cow;

use http::{
    HeaderMap, Method, Request, Uri,
    uri::{Authority, PathAndQuery},
};

use super::{exchange::Exchange, refusal::Refusal, route::Way, session::Session};
use crate::{
    connection::{
        Direction, Reason, authorise,
        route::{Pick, Target},
    },
    policy::{self, Claims, Facts, normalize},
};

/// Who the user is whose token the request carries. Takes the token away where the application is not to see it.
pub(super) fn authenticate<B>(
    session: &Session,
    exchange: &Exchange,
    request: &mut Request<B>,
) -> Result<Option<Claims>, Refusal> {
    let context = &session.context;
    if context.direction == Direction::Outbound {
        return Ok(None);
    }
    let authentication = &context.snapshot.request_authentication;
    if let Some(shown) = authentication.without_tokens(request.uri()) {
        // Whoever reads the log shall not be able to use it.
        exchange.note(|record| record.path = shown.path_and_query().cloned());
    }
    let claims = authentication.authenticate(request);
    claims.map_err(|why| Refusal::with(Reason::TokenRefused, why.to_string()))
}

/// Brings the request's path into the spelling that policies compare, if one does: it is routed by that, and the
/// application gets that.
pub(super) fn normalise<B>(session: &Session, request: &mut Request<B>) -> Result<(), Refusal> {
    let context = &session.context;
    if !authorise::policies(context).reads_paths() {
        return Ok(());
    }
    let how = context.snapshot.authorization.path_normalization;
    let uri = request.uri();
    let normal =
        normalize::path(how, uri.path()).map_err(|why| Refusal::with(Reason::PathRefused, why))?;
    let Cow::Owned(path) = normal.forward else {
        return Ok(());
    };
    let path = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    *request.uri_mut() = asks_for(uri, path)
        .map_err(|error| Refusal::with(Reason::PathRefused, error.to_string()))?;
    Ok(())
}

/// `uri` with another path (and query).
pub fn asks_for(uri: &Uri, path: String) -> Result<Uri, http::Error> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path)?);
    Ok(Uri::from_parts(parts)?)
}

/// Asks the policies, once it is known where the request goes.
pub(super) fn authorise<B>(
    session: &Session,
    exchange: &Exchange,
    request: &Request<B>,
    way: &Way,
    claims: Option<&Claims>,
) -> Result<(), Refusal> {
    let context = &session.context;
    let policies = authorise::policies(context);
    if policies.is_open() {
        return Ok(());
    }
    // What upstream gets counts.
    let (uri, authority) = match way.rewrite.as_deref() {
        Some((uri, authority)) => (uri, Some(authority.clone())),
        None => (request.uri(), exchange.authority()),
    };
    let asked = Asked::new(request.method(), uri, request.headers(), authority.as_ref());
    let asked = asked.map_err(|why| Refusal::with(Reason::PathRefused, why))?;
    let mut facts = authorise::facts(context);
    if context.original.is_none() {
        destination(&mut facts, &way.target);
    }
    facts.http = Some(asked.request(claims));
    let decision = policies.decide(&facts);
    if decision.denied_by.is_none() && decision.audited_by.is_empty() {
        return Ok(());
    }
    let denied = decision.denied_by.is_some();
    exchange.note(|record| {
        record.denied_by = decision.denied_by;
        record.audited_by = decision.audited_by;
    });
    if denied {
        return Err(Refusal::new(Reason::PolicyDenied));
    }
    Ok(())
}

/// For clients of the explicit proxy, which name it themselves.
fn destination(facts: &mut Facts<'_>, target: &Target) {
    match target.pick {
        Pick::Address(address) => {
            facts.destination_ip = Some(address.ip());
            facts.destination_port = Some(address.port());
        }
        Pick::Endpoint { port } => facts.destination_port = Some(port),
    }
}

/// The parts of a request that are compared.
pub struct Asked<'a> {
    method: &'a str,
    host: Cow<'a, str>,
    path: Cow<'a, str>,
    headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    /// `uri`: its path in the spelling that is passed on.
    ///
    /// # Errors
    ///
    /// Why the host cannot be compared.
    pub fn new(
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        authority: Option<&'a Authority>,
    ) -> Result<Self, &'static str> {
        let authority = authority.map_or("", |authority| authority.as_str());
        if authority.contains(['@', '%']) {
            return Err("a user or an escape in the host");
        }
        Ok(Self {
            method: method.as_str(),
            host: normalize::host(authority),
            path: normalize::canonical(uri.path()),
            headers,
        })
    }

    /// `claims`: of its token.
    pub fn request<'r>(&'r self, claims: Option<&'r Claims>) -> policy::Request<'r> {
        policy::Request {
            method: self.method,
            host: &self.host,
            path: &self.path,
            headers: self.headers,
            claims,
        }
    }
}

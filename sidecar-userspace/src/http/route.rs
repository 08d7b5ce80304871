//! Route: from a request to the service that answers it, or to the address that the client asked for.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, StatusCode, Uri, uri::Authority};

use super::{exchange::Exchange, refusal::Refusal, session::Session};
use crate::{
    connection::{
        Direction, Reason,
        route::{Pick, Target},
    },
    model::{Protocol, RouteRule, Service, Snapshot, UnknownDestination},
    policy::normalize,
};

/// Path under which the explicit proxy offers the services.
const PROXY_PATH: &str = "/proxy/";
const HTTP_PORT: u16 = 80;

/// Where one request goes.
#[derive(Debug)]
pub(super) struct Way {
    pub target: Target,
    /// Name of the route that decided.
    pub route: Option<Arc<str>>,
    /// Time for the whole request.
    pub timeout: Option<Duration>,
    /// Target and authority for upstream, where they are not the client's.
    pub rewrite: Option<Box<(Uri, Authority)>>,
}

impl Way {
    fn to(target: Target) -> Self {
        Self {
            target,
            route: None,
            timeout: None,
            rewrite: None,
        }
    }
}

/// The way of `request`. Resolves names only for clients of the explicit proxy.
pub(super) async fn route<B>(
    session: &Session,
    exchange: &Exchange,
    request: &Request<B>,
) -> Result<Way, Refusal> {
    let authority = exchange.authority();
    let way = match (&session.target, session.context.direction) {
        (Some(target), Direction::Inbound) => Way::to(target.clone()),
        (None, Direction::Inbound) => return Err(Refusal::new(Reason::OriginUnknown)),
        (Some(target), Direction::Outbound) => steered(session, target, authority, request.uri()),
        (None, Direction::Outbound) => Box::pin(explicit(session, authority, request)).await?,
    };
    authorise(session, way.target.service.is_some())?;
    Ok(way)
}

/// A steered connection: by host and path, else by the address, else by the host alone, else as asked.
fn steered(session: &Session, target: &Target, authority: Option<Authority>, uri: &Uri) -> Way {
    let snapshot = &session.context.snapshot;
    let port = session
        .context
        .original
        .map_or(HTTP_PORT, |original| original.port());
    let host = authority.as_ref().map(host);
    if let Some(way) = host
        .as_deref()
        .and_then(|host| by_rule(snapshot, host, port, uri))
    {
        return way;
    }
    if target.service.is_none()
        && let Some(service) = host
            .as_deref()
            .and_then(|host| snapshot.service_of_host(host))
    {
        return Way::to(of_service(service, port));
    }
    Way::to(target.clone())
}

/// A client that dialled the proxy itself: by the absolute target or CONNECT's authority, by
/// `/proxy/<service>/`, or by the `Host` field.
async fn explicit<B>(
    session: &Session,
    authority: Option<Authority>,
    request: &Request<B>,
) -> Result<Way, Refusal> {
    let snapshot = &session.context.snapshot;
    let (uri, method) = (request.uri(), request.method());
    // In HTTP/2 every request has an authority; only HTTP/1 says by it that a proxy is meant.
    let names_target = !session.http2 && uri.authority().is_some();
    if !names_target && let Some(rest) = uri.path().strip_prefix(PROXY_PATH) {
        return by_proxy_path(snapshot, uri, rest);
    }
    if uri.scheme().is_some_and(|scheme| scheme.as_str() != "http") && method != Method::CONNECT {
        return Err(bad_request("only http:// targets; use CONNECT for others"));
    }
    let authority = authority.ok_or_else(|| bad_request("the request names no host"))?;
    let host = host(&authority);
    let port = match (authority.port_u16(), names_target) {
        (Some(port), true) => port,
        (None, true) if method == Method::CONNECT => {
            return Err(bad_request("CONNECT names no port"));
        }
        // A `Host` field has the proxy's own port.
        _ => HTTP_PORT,
    };
    if method != Method::CONNECT
        && let Some(way) = by_rule(snapshot, &host, port, uri)
    {
        return Ok(way);
    }
    if let Some(service) = snapshot.service_of_host(&host) {
        let port = if names_target {
            port
        } else {
            http_port(service)
        };
        return Ok(Way::to(of_service(service, port)));
    }
    if !names_target {
        return Err(no_such(snapshot, &host));
    }
    let target = resolve(session, &host, port).await?;
    if let Pick::Address(address) = target.pick
        && let Some(rule) = snapshot.outbound.denied_by(address)
    {
        return Err(Refusal::with(Reason::EgressDenied, &*rule.name));
    }
    Ok(Way::to(target))
}

/// `/proxy/<service>/<path>`.
fn by_proxy_path(snapshot: &Snapshot, uri: &Uri, rest: &str) -> Result<Way, Refusal> {
    let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
    let service = snapshot
        .service_named(name)
        .ok_or_else(|| no_such(snapshot, name))?;
    let query = uri
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    let target = Uri::try_from(format!("/{path}{query}"))
        .map_err(|_| bad_request("the path behind the service's name is malformed"))?;
    let host = service.hosts.first().map_or(&*service.name, String::as_str);
    let authority =
        Authority::try_from(host).map_err(|_| bad_request("the service's name is no host name"))?;
    let mut way = Way::to(Target::of_service(service, http_port(service)));
    way.rewrite = Some(Box::new((target, authority)));
    Ok(way)
}

fn by_rule(snapshot: &Snapshot, host: &str, port: u16, uri: &Uri) -> Option<Way> {
    let (route, rule) = snapshot.route(host, uri.path())?;
    let (service, port) = backend(rule, port)?;
    Some(Way {
        target: of_service(service, port),
        route: Some(route.name.clone()),
        timeout: rule.request_timeout,
        rewrite: None,
    })
}

/// One of the rule's backends, by weight.
fn backend(rule: &RouteRule, port: u16) -> Option<(&Arc<Service>, u16)> {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    let mut point = match rule.backends.len() {
        0 | 1 => 0,
        _ => fastrand::u64(..total.max(1)),
    };
    let chosen = rule.backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let hit = point < weight;
        point = point.saturating_sub(weight);
        hit
    })?;
    Some((&chosen.service, chosen.port.unwrap_or(port)))
}

/// An address that no service claims, for a client that named it.
async fn resolve(session: &Session, host: &str, port: u16) -> Result<Target, Refusal> {
    let context = &session.context;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = match bare.parse() {
        Ok(address) => address,
        Err(_) => {
            // Refused names are not even looked up.
            authorise(session, false)?;
            let found = context.worker.resolver.lookup(bare).await;
            let found = found.map_err(|error| {
                Refusal::with(Reason::NameResolution, format!("{bare}: {error}"))
            })?;
            *found
                .first()
                .ok_or_else(|| Refusal::with(Reason::NameResolution, bare))?
        }
    };
    Ok(Target::of_destination(
        &context.snapshot,
        SocketAddr::new(address, port),
    ))
}

/// Whether a request may go where it goes; steered connections were asked before.
fn authorise(session: &Session, known: bool) -> Result<(), Refusal> {
    let context = &session.context;
    let refuse = context.snapshot.outbound.unknown == UnknownDestination::RegistryOnly;
    if context.direction == Direction::Outbound && refuse && !known {
        return Err(Refusal::new(Reason::DestinationRefused));
    }
    Ok(())
}

/// One of `service`'s endpoints. The client may have asked another address for a port that the service does not
/// list; what its endpoints speak is the same nevertheless.
fn of_service(service: &Arc<Service>, port: u16) -> Target {
    let mut target = Target::of_service(service, port);
    if service.ports.iter().all(|listed| listed.port != port) {
        target.protocol = service.protocol(http_port(service));
    }
    target
}

/// The port of a service that a request without one means.
fn http_port(service: &Service) -> u16 {
    let http = |protocol| matches!(protocol, Protocol::Http | Protocol::Http2);
    let port = service.ports.iter().find(|port| http(port.protocol));
    port.or(service.ports.first())
        .map_or(HTTP_PORT, |port| port.port)
}

/// The host of `authority` as services and routes have it: lower case, without port and trailing dots.
fn host(authority: &Authority) -> Cow<'_, str> {
    normalize::host(authority.host())
}

fn no_such(snapshot: &Snapshot, name: &str) -> Refusal {
    let names: Vec<&str> = snapshot.services().iter().map(|s| &*s.name).collect();
    let known = if names.is_empty() {
        "the configuration has no services".to_owned()
    } else {
        format!("services: {}", names.join(", "))
    };
    Refusal::with(
        Reason::NoRoute,
        format!("{name:?} is no service; {known}; ask for {PROXY_PATH}<service>/<path>"),
    )
}

fn bad_request(detail: &str) -> Refusal {
    Refusal {
        reason: Reason::BadRequest,
        status: StatusCode::BAD_REQUEST,
        detail: Some(detail.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Backend;
    use crate::model::PathMatch;

    #[test]
    fn hosts_are_normalised() {
        let of = |text: &'static str| host(&Authority::from_static(text)).into_owned();
        assert_eq!(of("API.Example.:8080"), "api.example");
        assert_eq!(of("[::1]:80"), "[::1]");
        assert_eq!(of("a"), "a");
    }

    fn service(name: &str) -> Arc<Service> {
        Arc::new(Service {
            name: name.into(),
            hosts: vec![],
            addresses: vec![],
            ports: vec![],
            endpoints: vec![],
            connect_timeout: Duration::from_secs(1),
            tls: None,
        })
    }

    #[test]
    fn backends_are_drawn_by_weight() {
        let backend_of = |name, weight| Backend {
            service: service(name),
            port: None,
            weight,
        };
        let rule = RouteRule {
            path: PathMatch::Prefix("/".into()),
            backends: vec![backend_of("a", 3), backend_of("b", 0), backend_of("c", 1)],
            request_timeout: None,
        };
        let mut counts = [0; 3];
        for _ in 0..4000 {
            let (service, port) = backend(&rule, 81).unwrap();
            assert_eq!(port, 81);
            counts[usize::from(service.name.as_bytes()[0] - b'a')] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((2700..3300).contains(&counts[0]), "{counts:?}");
    }
}

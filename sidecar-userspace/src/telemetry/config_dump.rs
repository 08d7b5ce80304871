//! The configuration in force, as JSON for people and tools.

use serde_json::{Value, json};

use crate::{
    connection::accept::Places,
    lifecycle::memory::MemoryPlan,
    model::{
        Cidr, EgressRule, Endpoint, EndpointAddress, HostMatch, PathMatch, Protocol, Route,
        Service, Snapshot, Timeouts,
    },
    policy::{Policy, PolicySet},
};

/// Everything in `snapshot`; names follow the model, durations are in seconds.
pub fn config_dump(snapshot: &Snapshot, memory: &MemoryPlan, places: &Places) -> Value {
    let Snapshot {
        generation,
        workload,
        outbound,
        inbound,
        redirect,
        fail_rule,
        listeners,
        limits,
        authorization,
        ..
    } = snapshot;
    json!({
        "generation": generation,
        "workload": {
            "name": workload.name,
            "namespace": workload.namespace,
            "exclude_cgroups": workload.exclude_cgroups.iter().map(ToString::to_string).collect::<Value>(),
        },
        "outbound": {
            "unknown": format!("{:?}", outbound.unknown),
            "deny": egress_rules(&outbound.egress.deny),
            "allow": egress_rules(&outbound.egress.allow),
            "exclude_cidrs": texts(&outbound.exclude_cidrs),
            "exclude_ports": outbound.exclude_ports,
            "ports": outbound.ports.iter()
                .map(|(port, declared)| (port.to_string(), protocol(*declared).into()))
                .collect::<serde_json::Map<_, _>>(),
        },
        "inbound": {
            "capture": format!("{:?}", inbound.capture),
            "exclude_ports": inbound.exclude_ports,
            "ports": inbound.ports.iter()
                .map(|(port, declared)| (port.to_string(), protocol(declared.protocol).into()))
                .collect::<serde_json::Map<_, _>>(),
            "mtls": format!("{:?}", inbound.mtls),
            "mtls_of_ports": inbound.ports.iter()
                .filter_map(|(port, declared)| Some((port.to_string(), format!("{:?}", declared.mtls?).into())))
                .collect::<serde_json::Map<_, _>>(),
        },
        "identity": snapshot.identity.as_ref().map(|identity| format!("{identity:?}")),
        "redirect": {
            "enabled": redirect.enabled,
            "level": redirect.level,
            "adaptive": redirect.adaptive,
            "credit_bytes": redirect.credit_bytes,
            "exclude_ports": redirect.exclude_ports,
        },
        "fail_rule": format!("{fail_rule:?}"),
        "listeners": {
            "outbound": listeners.outbound,
            "inbound": listeners.inbound,
            "admin": listeners.admin,
            "metrics": listeners.metrics,
            "health": listeners.health,
        },
        "limits": {
            "connections": places.limit(limits.connections),
            "header_bytes": limits.header_bytes,
            "headers": limits.headers,
            "buffer_bytes": limits.buffer_bytes,
            "idle_connections_per_endpoint": limits.idle_connections_per_endpoint,
        },
        "memory": {
            "limit_bytes": memory.limit.as_ref().map(|limit| limit.bytes),
            "limit_from": memory.limit.as_ref().map(|limit| &limit.source),
            "backlog_bytes": memory.backlog_bytes,
            "connections": memory.connections,
        },
        "timeouts_s": timeouts(&snapshot.timeouts),
        "lifecycle": {
            "exit_when_alone": snapshot.lifecycle.exit_when_alone,
            "alone_for_s": snapshot.lifecycle.alone_for.as_secs_f64(),
            "wait_for_application_s": snapshot.lifecycle.wait_for_application.as_secs_f64(),
        },
        "access_log": {
            "format": format!("{:?}", snapshot.access_log.format),
            "path": snapshot.access_log.path,
        },
        "workers": snapshot.workers,
        "authorization": {
            "path_normalization": format!("{:?}", authorization.path_normalization),
            "inbound": policies(&authorization.inbound),
            "outbound": policies(&authorization.outbound),
        },
        "services": clusters(snapshot),
        "routes": snapshot.routes().iter().map(route).collect::<Value>(),
    })
}

fn policies(set: &PolicySet) -> Value {
    let policy = |policy: &Policy| {
        json!({
            "name": policy.name.as_ref(),
            "action": policy.action.name(),
            "rules": policy.rules.iter().map(|rule| format!("{rule:?}")).collect::<Value>(),
        })
    };
    json!({
        "default": format!("{:?}", set.posture()),
        "policies": set.policies().iter().map(policy).collect::<Value>(),
    })
}

/// The services and their endpoints.
pub fn clusters(snapshot: &Snapshot) -> Value {
    snapshot
        .services()
        .iter()
        .map(|each| service(each))
        .collect()
}

fn timeouts(timeouts: &Timeouts) -> Value {
    let Timeouts {
        connect,
        idle,
        request_head,
        http_idle,
        tls_handshake,
        keepalive,
        user,
        drain,
    } = timeouts;
    json!({
        "connect": connect.as_secs_f64(),
        "idle": idle.as_secs_f64(),
        "request_head": request_head.as_secs_f64(),
        "http_idle": http_idle.as_secs_f64(),
        "tls_handshake": tls_handshake.as_secs_f64(),
        "keepalive": keepalive.as_secs_f64(),
        "user": user.as_secs_f64(),
        "drain": drain.as_secs_f64(),
    })
}

fn service(service: &Service) -> Value {
    json!({
        "name": service.name.as_ref(),
        "hosts": service.hosts,
        "addresses": texts(&service.addresses),
        "ports": service.ports.iter()
            .map(|port| json!({ "port": port.port, "protocol": protocol(port.protocol) }))
            .collect::<Value>(),
        "endpoints": service.endpoints.iter().map(endpoint).collect::<Value>(),
        "tls": service.tls.as_ref().map(|tls| format!("{tls:?}")),
        "connect_timeout_s": service.connect_timeout.as_secs_f64(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let address = match &endpoint.address {
        EndpointAddress::Ip(ip) => ip.to_string(),
        EndpointAddress::Name(name) => name.clone(),
    };
    json!({ "address": address, "port": endpoint.port, "weight": endpoint.weight })
}

fn route(route: &Route) -> Value {
    let host = |host: &HostMatch| match host {
        HostMatch::Exact(name) => name.clone(),
        HostMatch::Suffix(suffix) => format!("*{suffix}"),
    };
    let path = |path: &PathMatch| match path {
        PathMatch::Exact(exact) => json!({ "exact": exact }),
        PathMatch::Prefix(prefix) => json!({ "prefix": prefix }),
    };
    json!({
        "name": route.name.as_ref(),
        "hosts": route.hosts.iter().map(host).collect::<Value>(),
        "rules": route.rules.iter().map(|rule| json!({
            "path": path(&rule.path),
            "request_timeout_s": rule.request_timeout.map(|timeout| timeout.as_secs_f64()),
            "backends": rule.backends.iter().map(|backend| json!({
                "service": backend.service.name.as_ref(),
                "port": backend.port,
                "weight": backend.weight,
            })).collect::<Value>(),
        })).collect::<Value>(),
    })
}

fn egress_rules(rules: &[EgressRule]) -> Value {
    let rule = |rule: &EgressRule| {
        let protocols = rule.protocols.iter().map(ToString::to_string);
        json!({
            "name": rule.name.as_ref(), "cidrs": texts(&rule.cidrs), "ports": rule.ports,
            "protocols": protocols.collect::<Vec<_>>(),
        })
    };
    rules.iter().map(rule).collect()
}

fn texts(ranges: &[Cidr]) -> Vec<String> {
    ranges.iter().map(Cidr::to_string).collect()
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Auto => "auto",
        Protocol::Tcp => "tcp",
        Protocol::Http => "http",
        Protocol::Http2 => "http2",
    }
}

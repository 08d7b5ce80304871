//! What the proxy answers about itself.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use super::world::{PATIENCE, World, echo, ping, snapshot, wait_until};

/// Status and body.
fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

#[test]
fn metrics_health_and_admin() {
    let mut snapshot = snapshot();
    // The admin endpoints answer until it is over.
    snapshot.timeouts.drain = PATIENCE;
    let world = World::with(snapshot, echo());
    let ports = world.handle.ports();
    let mut client = world.connect();
    ping(&mut client, b"\x01four");
    let (status, stats) = ask(ports.metrics, "GET", "/stats/prometheus");
    assert_eq!(status, 200);
    assert!(
        stats.contains("sidecar_connections_open{direction=\"outbound\"} 1"),
        "{stats}"
    );
    assert!(stats.contains("sidecar_config_generation 1"), "{stats}");
    drop(client);
    wait_until("the connection is recorded", || world.recorded() == 1);
    let (_, stats) = ask(ports.admin, "GET", "/stats");
    let bytes = "sidecar_connection_bytes_total{destination=\"passthrough\",direction=\"outbound\",flow=\"from_client\"} 5";
    assert!(stats.contains(bytes), "{stats}");

    assert_eq!(ask(ports.health, "GET", "/healthz/live").0, 200);
    assert_eq!(
        ask(ports.health, "GET", "/healthz/ready"),
        (200, "ready\n".to_owned())
    );
    let token = world.handle.readiness().token("steering");
    assert_eq!(
        ask(ports.health, "GET", "/healthz/ready"),
        (503, "not ready: steering\n".to_owned())
    );
    token.done();
    assert_eq!(ask(ports.admin, "GET", "/ready").0, 200);

    assert_eq!(
        ask(ports.metrics, "GET", "/config_dump").0,
        404,
        "only metrics there"
    );
    assert_eq!(
        ask(ports.health, "POST", "/quitquitquit").0,
        404,
        "only health there"
    );
    let (_, dump) = ask(ports.admin, "GET", "/config_dump");
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["generation"], 1);
    let (_, info) = ask(ports.admin, "GET", "/server_info");
    assert!(info.contains("\"LIVE\""), "{info}");
    assert_eq!(
        ask(ports.admin, "GET", "/clusters"),
        (200, "[]\n".to_owned())
    );
    assert_eq!(ask(ports.admin, "GET", "/nothing").0, 404);
    assert!(ask(ports.admin, "GET", "/help").1.contains("quitquitquit"));
    assert_eq!(ask(ports.admin, "GET", "/quitquitquit").0, 405);

    let mut client = world.connect();
    ping(&mut client, b"\x01held");
    assert_eq!(ask(ports.admin, "POST", "/quitquitquit").0, 200);
    wait_until("the drain shows", || {
        ask(ports.health, "GET", "/healthz/ready").0 == 503
    });
    drop(client);
    assert_eq!(world.finish().len(), 2);
}

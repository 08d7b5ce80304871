//! gRPC, by Python's `grpcio` on both sides.

use super::programs::{python_client, python_server};
use crate::proxy::world::World;

#[test]
fn unary_streaming_and_errors() {
    let server = python_server("grpc_echo.py", "grpc");
    let world = World::new(server.address);
    let port = world.handle.ports().outbound.to_string();
    python_client("grpc_echo.py", "grpc", &[&port, "calls"]);
    drop(server);
    let lines = world.finish();
    let requests = |path: &str| lines.iter().filter(|line| line["path"] == path).count();
    assert_eq!(requests("/test.Echo/Unary"), 101, "{lines:#?}");
    assert_eq!(requests("/test.Echo/Both"), 1);
    assert_eq!(requests("/test.Echo/Fail"), 1);
}

#[test]
fn a_dead_server_is_unavailable() {
    let address = crate::proxy::world::refusing();
    let mut snapshot = crate::proxy::world::snapshot();
    let http2 = sidecar_userspace::model::Protocol::Http2;
    snapshot.outbound.ports.insert(address.port(), http2);
    let world = World::with(snapshot, address);
    let port = world.handle.ports().outbound.to_string();
    python_client("grpc_echo.py", "grpc", &[&port, "unavailable"]);
}

//! WebSocket, by Python's `websockets` on both sides.

use super::programs::{python_client, python_server};
use crate::proxy::world::World;

#[test]
fn messages_both_ways_and_an_orderly_close() {
    let server = python_server("websocket.py", "websockets");
    let world = World::new(server.address);
    let port = world.handle.ports().outbound.to_string();
    python_client("websocket.py", "websockets", &[&port]);
    let lines = world.finish();
    let upgraded = lines.iter().find(|line| line["status"] == 101);
    let upgraded = upgraded.unwrap_or_else(|| panic!("no record of the upgrade: {lines:#?}"));
    assert_eq!(upgraded["reason"], "ok", "{upgraded:#}");
    assert!(
        upgraded["response_bytes"].as_u64().unwrap() > 1 << 20,
        "{upgraded:#}"
    );
}

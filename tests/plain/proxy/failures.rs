//! What fails on one side is seen on the other for what it is, and the log says why.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use sidecar_userspace::model::UnknownDestination;

use super::world::{
    PATIENCE, SOON, World, echo, expect_reset, ping, refusing, reset, server, snapshot, wait_until,
};

#[test]
fn a_reset_of_the_server_reaches_the_client() {
    let address = server(|mut socket| {
        let mut first = [0; 4];
        socket.read_exact(&mut first).unwrap();
        socket.write_all(b"part").unwrap();
        // Not before the part has arrived: a reset overtakes what is unsent.
        socket.read_exact(&mut [0]).unwrap();
        reset(socket);
    });
    let world = World::new(address);
    let mut client = world.connect();
    client.write_all(b"\x01abc").unwrap();
    let mut part = [0; 4];
    client.read_exact(&mut part).unwrap();
    client.write_all(b"!").unwrap();
    expect_reset(&mut client);
    assert_eq!(world.finish_with_one()["reason"], "upstream_reset");
}

#[test]
fn a_reset_of_the_client_reaches_the_server() {
    let (saw, seen) = mpsc::channel();
    let address = server(move |mut socket| {
        let mut all = vec![0; 4];
        socket.read_exact(&mut all).unwrap();
        socket.write_all(b"!").unwrap();
        saw.send(socket.read_to_end(&mut all).map_err(|error| error.kind()))
            .unwrap();
    });
    let world = World::new(address);
    let mut client = world.connect();
    client.write_all(b"\x01abc").unwrap();
    // Not before the server is there to see it.
    client.read_exact(&mut [0]).unwrap();
    reset(client);
    let seen = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(world.finish_with_one()["reason"], "client_reset");
}

#[test]
fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    let (hold, held) = mpsc::channel();
    let address = server(move |socket| hold.send(socket).unwrap());
    let world = World::new(address);
    let mut client = world.connect();
    client
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    while client.write(&[7; 64 * 1024]).is_ok() {}
    let server_side = held.recv_timeout(PATIENCE).unwrap();
    reset(client);
    wait_until("the stalled connection is ended", || world.recorded() == 1);
    drop(server_side);
    assert_eq!(world.finish_with_one()["reason"], "client_reset");
}

#[test]
fn a_refused_destination_is_a_reset_with_a_reason() {
    let free = refusing();
    let world = World::new(free);
    world.expect_refusal();
    let line = world.finish_with_one();
    assert_eq!(line["reason"], "connect_refused");
    assert_eq!(line["upstream"], free.to_string());
    assert!(line["message"].as_str().unwrap().contains("refused"));
}

#[test]
fn a_silent_destination_is_a_reset_within_the_connect_timeout() {
    // A listener whose backlog is full does not answer.
    let (full, _queued) = full_listener();
    let mut snapshot = snapshot();
    snapshot.timeouts.connect = Duration::from_millis(500);
    let world = World::with(snapshot, full);
    let start = Instant::now();
    world.expect_refusal();
    let waited = start.elapsed();
    // The kernel itself would try for two minutes.
    assert!(
        waited >= Duration::from_millis(450) && waited < SOON,
        "{waited:?}"
    );
    assert_eq!(world.finish_with_one()["reason"], "connect_timeout");
}

fn full_listener() -> (SocketAddr, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Kept open until the process ends.
    std::mem::forget(socket);
    let (mut queued, mut refused) = (Vec::new(), 0);
    // One that waits in vain may have met a machine that is busy.
    while refused < 2 {
        match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            Ok(stream) => queued.push(stream),
            Err(_) => refused += 1,
        }
    }
    (address, queued)
}

#[test]
fn an_unknown_destination_is_refused_where_configured() {
    let mut snapshot = snapshot();
    snapshot.outbound.unknown = UnknownDestination::RegistryOnly;
    let world = World::with(snapshot, echo());
    world.expect_refusal();
    ping(&mut world.connect_inbound(), b"\x01inbound is not meant");
    let lines = world.finish();
    let outbound = lines
        .iter()
        .find(|line| line["direction"] == "outbound")
        .unwrap();
    assert_eq!(outbound["reason"], "destination_refused");
}

#[test]
fn the_proxy_does_not_call_itself() {
    let world = World::new(echo());
    world.retarget(SocketAddr::from((
        [127, 0, 0, 1],
        world.handle.ports().outbound,
    )));
    world.expect_refusal();
    assert_eq!(world.finish_with_one()["reason"], "loop_detected");
}

#[test]
fn an_idle_connection_is_ended() {
    let mut snapshot = snapshot();
    snapshot.timeouts.idle = Duration::from_secs(2);
    let world = World::with(snapshot, echo());
    let mut client = world.connect();
    // Together longer than the idle time.
    for _ in 0..6 {
        ping(&mut client, b"\x01alive");
        thread::sleep(Duration::from_millis(400));
    }
    let start = Instant::now();
    expect_reset(&mut client);
    assert!(start.elapsed() < SOON);
    assert_eq!(world.finish_with_one()["reason"], "idle_timeout");
}

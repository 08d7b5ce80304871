//! Bytes come through as they were sent, both ways, and ends are carried over one by one.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use sidecar_tests::{
    random::Random,
    stream::{Direction, Stream},
};
use sidecar_userspace::model::Protocol;

use super::world::{PATIENCE, World, echo, ping, server, snapshot};

const CONNECTIONS: u64 = 120;
const MAX_BYTES: u64 = 1024 * 1024;

/// Sends `total` bytes of the stream in random pieces with random pauses, and ends this direction.
fn send(mut socket: TcpStream, stream: Stream, total: u64, mut random: Random) {
    let mut sent = 0;
    while sent < total {
        let size = random.size(total - sent).min(total - sent);
        let mut piece = vec![0; size as usize];
        stream.fill(sent, &mut piece);
        socket.write_all(&piece).unwrap();
        sent += size;
        if random.one_in(8) {
            thread::sleep(random.pause(Duration::from_millis(5)));
        }
    }
    socket.shutdown(Shutdown::Write).unwrap();
}

/// Reads to the end: exactly the first `total` bytes of the stream.
fn receive(mut socket: TcpStream, stream: Stream, total: u64, mut random: Random) {
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let size = random.size(buffer.len() as u64) as usize;
        let read = socket.read(&mut buffer[..size]).unwrap();
        if read == 0 {
            break;
        }
        let wrong = stream.first_difference(received, &buffer[..read]);
        assert_eq!(wrong, None, "wrong byte after {received}");
        received += read as u64;
        if random.one_in(64) {
            thread::sleep(random.pause(Duration::from_millis(5)));
        }
    }
    assert_eq!(received, total, "truncated");
}

/// Both directions of one end of a connection at once; sizes follow from the seed, so that both ends agree.
fn converse(socket: TcpStream, seed: u64, sends: Direction) {
    let random = move |salt| Random::new(seed.wrapping_mul(31).wrapping_add(salt));
    let total = move |direction| match direction {
        Direction::Up => random(1).size(MAX_BYTES),
        Direction::Down => random(2).size(MAX_BYTES),
    };
    let receives = sends.opposite();
    let reader = socket.try_clone().unwrap();
    let reading = thread::spawn(move || {
        receive(
            reader,
            Stream::new(seed, receives),
            total(receives),
            random(3),
        );
    });
    send(socket, Stream::new(seed, sends), total(sends), random(4));
    reading.join().unwrap();
}

fn byte_exact(protocol: Protocol) {
    let (seeds, seeds_of_servers) = mpsc::channel();
    let address = server(move |mut socket| {
        let mut preamble = [0; 8];
        socket.read_exact(&mut preamble).unwrap();
        let seed = u64::from_be_bytes(preamble);
        converse(socket, seed, Direction::Down);
        seeds.send(seed).unwrap();
    });
    let mut snapshot = snapshot();
    snapshot.outbound.ports.insert(address.port(), protocol);
    snapshot.limits.buffer_bytes = 64 * 1024;
    let world = World::with(snapshot, address);
    let base = Random::fresh_seed();
    eprintln!("seed {base}");
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let mut socket = world.connect();
            let seed = base + number;
            thread::spawn(move || {
                socket.write_all(&seed.to_be_bytes()).unwrap();
                converse(socket, seed, Direction::Up);
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    for _ in 0..CONNECTIONS {
        seeds_of_servers
            .recv_timeout(PATIENCE)
            .expect("a server saw something else");
    }
    let lines = world.finish();
    assert_eq!(lines.len() as u64, CONNECTIONS);
    assert!(
        lines.iter().all(|line| line["reason"] == "ok"),
        "{lines:#?}"
    );
}

#[test]
fn byte_exact_full_duplex_declared() {
    byte_exact(Protocol::Tcp);
}

#[test]
fn byte_exact_full_duplex_detected() {
    byte_exact(Protocol::Auto);
}

#[test]
fn a_half_closed_connection_still_answers() {
    let address = server(|mut socket| {
        let mut question = Vec::new();
        socket.read_to_end(&mut question).unwrap();
        thread::sleep(Duration::from_millis(300));
        socket.write_all(&question).unwrap();
    });
    let world = World::new(address);
    let mut client = world.connect();
    client.write_all(b"\x01question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"\x01question");
    let line = world.finish_with_one();
    assert_eq!(line["reason"], "ok");
    assert_eq!(
        (&line["client_bytes"], &line["upstream_bytes"]),
        (&9.into(), &9.into())
    );
}

#[test]
fn inbound_and_ipv6_are_served() {
    let world = World::new(echo());
    ping(&mut world.connect_inbound(), b"\x01inbound");
    let outbound = world.handle.ports().outbound;
    ping(
        &mut TcpStream::connect(("::1", outbound)).unwrap(),
        b"\x01six",
    );
    let lines = world.finish();
    let has = |direction: &str, client: &str| {
        lines.iter().any(|line| {
            line["direction"] == direction && line["client"].as_str().unwrap().starts_with(client)
        })
    };
    assert!(
        has("inbound", "127.0.0.1:") && has("outbound", "[::1]:"),
        "{lines:#?}"
    );
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let address = server(move |mut socket| {
        released.lock().unwrap().recv().unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        socket.write_all(&(all.len() as u64).to_be_bytes()).unwrap();
    });
    let world = World::new(address);
    let mut client = world.connect();
    client
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let piece = vec![7; 64 * 1024];
    let mut sent = 0;
    // Socket buffers of both hops and one relay buffer: far below the bound, if something pushes back.
    while let Ok(written) = client.write(&piece) {
        sent += written as u64;
        assert!(sent < 256 * 1024 * 1024, "nothing stops the sender");
    }
    release.send(()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut count = [0; 8];
    client.read_exact(&mut count).unwrap();
    assert_eq!(u64::from_be_bytes(count), sent);
}

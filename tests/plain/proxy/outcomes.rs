//! Exactly one outcome for every connection, whatever its ends do.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use sidecar_tests::random::Random;

use super::world::{World, reset, server, snapshot, wait_until};

const CONNECTIONS: u64 = 600;
const THREADS: u64 = 12;

#[test]
fn one_outcome_each_under_random_aborts() {
    let address = server(|mut socket| {
        let mut random = Random::new(Random::fresh_seed());
        let mut buffer = [0; 512];
        for _ in 0..random.below(4) {
            if random.one_in(3) {
                let _ = socket.write_all(&[1; 300]);
            }
            let _ = socket.read(&mut buffer);
        }
        if random.one_in(3) {
            reset(socket);
        }
    });
    let mut snapshot = snapshot();
    snapshot.limits.connections = Some(10);
    snapshot.timeouts.idle = Duration::from_millis(200);
    let world = World::with(snapshot, address);
    let seed = Random::fresh_seed();
    eprintln!("seed {seed}");
    thread::scope(|scope| {
        for number in 0..THREADS {
            let world = &world;
            scope.spawn(move || {
                let mut random = Random::new(seed + number);
                for _ in 0..CONNECTIONS / THREADS {
                    abuse(world, &mut random);
                }
            });
        }
    });
    wait_until("all are gone", || world.handle.connections() == 0);
    wait_until("each is recorded", || {
        world.recorded() as u64 >= CONNECTIONS
    });
    assert_eq!(world.recorded() as u64, CONNECTIONS);
    assert_eq!(world.metric("sidecar_connections_open", &[]), 0.0);
    let lines = world.finish();
    let of = |reason: &str| lines.iter().filter(|line| line["reason"] == reason).count();
    assert_eq!(lines.len() as u64, CONNECTIONS);
    assert_eq!(of("abandoned"), 0);
    // The dice did throw different ends.
    assert!(
        of("ok") > 0 && of("client_reset") > 0 && of("upstream_reset") > 0,
        "{lines:#?}"
    );
}

fn abuse(world: &World, random: &mut Random) {
    // Refused before it could begin: that has its record as well.
    let Ok(mut client) = world.try_connect() else {
        return;
    };
    client
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let first: &[u8] = match random.below(3) {
        0 => b"\x01opaque",
        1 => b"GE",
        _ => b"",
    };
    let _ = client.write_all(first);
    match random.below(5) {
        0 => reset(client),
        1 => {
            let _ = client.shutdown(Shutdown::Write);
            let _ = client.read(&mut [0; 64]);
        }
        2 => {
            let _ = client.write_all(&[2; 4000]);
            let _ = client.read(&mut [0; 64]);
        }
        3 => {
            thread::sleep(random.pause(Duration::from_millis(20)));
            reset(client);
        }
        _ => {}
    }
}

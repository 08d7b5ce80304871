//! `cargo xtask demo`: two programs that know nothing of a proxy talk through two sidecars, and what came of it is shown.

mod capture;
mod figures;
mod kernel_objects;
mod mutual_tls;
mod requests;
mod sidecars;
mod world;

use crate::{apt, build, leftovers::Before, process, setup, signals, step};
use anyhow::{Context as _, Result, bail};
use figures::Figures;
use kernel_objects::KernelObjects;
use mutual_tls::Act;
use requests::Requests;
use sidecars::Sidecar;
use std::{net::IpAddr, path::Path, process::Command};
use world::World;

/// Commands that the demo uses, as Debian packages.
const PACKAGES: [&str; 5] = ["iproute2", "curl", "python3", "util-linux", "tcpdump"];
/// Where the demo's server listens.
const PORT: u16 = 8080;

const HOW_TO_GO_ON: &str = "How to go on
   cargo xtask run -- check                     what works on this machine, and what to do about the rest
   cargo xtask run -- run -- CMD                put a program of yours behind a sidecar
   cargo xtask run -- run -c deploy/sidecar.yaml -- CMD
                                                the same with a configuration; that file explains every setting
   cargo xtask test                             everything that CI runs";

/// Sets up, builds, shows, and cleans up, also when it is interrupted.
///
/// # Errors
/// If anything of what is shown did not come true, or something was left behind.
pub fn verb() -> Result<()> {
    if !process::is_root() {
        bail!(
            "the demo loads kernel programs and makes network namespaces, which needs root. Run it as root"
        );
    }
    setup::ensure(setup::Needs::Build)?;
    apt::ensure("for the demo", &PACKAGES.map(str::to_owned))?;
    perform(&build::both_halves(build::TEST_PROFILE)?)?;
    println!("\n{HOW_TO_GO_ON}");
    Ok(())
}

/// The demo itself, with a binary that is built.
///
/// # Errors
/// As [`verb`].
pub fn perform(sidecar: &Path) -> Result<()> {
    let run = format!("demo-{}", std::process::id());
    world::sweep();
    let before = Before::look()?;
    let mut objects = KernelObjects::default();
    let shown = show(sidecar, &run, &mut objects);
    // Here all that was made is dropped, and thereby undone. A sidecar that had no time to leave in order leaves the rest to this:
    let detached = match shown {
        Ok(()) => Ok(()),
        Err(_) => process::output(Command::new(sidecar).arg("detach")).map(drop),
    };
    let clean = nothing_left(&before, &run, &objects);
    if signals::interrupted().is_some() {
        detached.and(clean)?;
        bail!("cleaned up, nothing is left");
    }
    shown.and(detached).and(clean)?;
    println!("      gone: {objects}, and every control group, namespace and process");
    Ok(())
}

fn show(sidecar: &Path, run: &str, objects: &mut KernelObjects) -> Result<()> {
    println!("Two programs that know nothing of a proxy, and a sidecar beside each\n");
    let world = World::make(run)?;
    println!(
        "1. A network namespace for each, joined by a veth pair\n      {}\n      {}",
        world.client, world.server
    );

    let server = Sidecar::beside_server(&world, sidecar, PORT)?;
    objects.hold(server.pid());
    let ready = step::seconds(server.ready_after);
    println!(
        "2. The server, started by its sidecar; ready after {ready}\n      {}",
        server.command
    );
    let client = Sidecar::beside_client(&world, sidecar)?;
    objects.hold(client.pid());
    let ready = step::seconds(client.ready_after);
    println!(
        "3. A sidecar for whatever runs in the client's control group; ready after {ready}\n      {}",
        client.command
    );

    let act = Act {
        world: &world,
        sidecar,
        client: &client,
        server: &server,
    };
    converse(&world, &client, &server)
        .and_then(|()| act.play())
        .with_context(|| format!("{}\n{}\n", client.last_words(), server.last_words()))?;

    println!("11. The end: SIGTERM to both");
    client.end()?;
    server.end()
}

/// Requests, and the proof that they went through both sidecars without either program's knowing.
fn converse(world: &World, client: &Sidecar, server: &Sidecar) -> Result<()> {
    println!("4. Requests");
    let mut requests = Requests::new(world, PORT);
    for address in [world.server.v4, world.server.v6] {
        requests.one_connection_each(address, 3)?;
    }
    requests.one_connection_for_all(world.server.v4, 200)?;

    println!("5. Both programs saw the addresses that they would see without a proxy");
    requests.client_saw_the_server()?;
    for address in [world.client.v4, world.client.v6] {
        server_saw(server, address)?;
    }

    println!("6. What the kernel half counted, and what the proxies served");
    let figures = Figures::read(client, server)?;
    figures.print();
    figures.prove_steering()?;

    println!("7. What was recorded of the last request");
    for sidecar in [client, server] {
        // What the server logs of it has dashes for the user that nobody gave.
        let line = sidecar.record(&["GET /hello.txt ", " ok "])?;
        println!("      {}'s sidecar: {line}", sidecar.name);
    }
    Ok(())
}

fn server_saw(server: &Sidecar, client: IpAddr) -> Result<()> {
    let log = server.output();
    let written = match client {
        // The server listens on [::], where IPv4 shows as mapped.
        IpAddr::V4(address) => format!("::ffff:{address}"),
        IpAddr::V6(address) => address.to_string(),
    };
    let start = format!("{written} - - ");
    let Some(line) = log.lines().find(|line| line.starts_with(&start)) else {
        bail!("the server's log has no request from {written}");
    };
    println!("      the server's own log: {line}");
    Ok(())
}

fn nothing_left(before: &Before, run: &str, objects: &KernelObjects) -> Result<()> {
    let mut left = before.left(run)?;
    left.extend(objects.still_there()?);
    if !left.is_empty() {
        bail!("left behind:\n  {}", left.join("\n  "));
    }
    Ok(())
}

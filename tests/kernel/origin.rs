//! What unmodified programs see of each other's addresses.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sidecar_tests::world::{Settings, Workload, World, programs, wait, workload::LIMIT};
use std::time::Duration;

use crate::peers;

#[derive(Debug, Deserialize)]
struct Called {
    peer: SocketAddr,
    local: SocketAddr,
    received: String,
}

#[derive(Debug, Deserialize)]
struct Accepted {
    peer: SocketAddr,
    accepted_from: SocketAddr,
    local: SocketAddr,
    original_destination: Option<SocketAddr>,
}

fn pods(world: &World) -> Result<(Workload<'_>, Workload<'_>)> {
    let a = world.workload("a")?.with_sidecar(&Settings::default())?;
    let b = world.workload("b")?.with_sidecar(&Settings::default())?;
    Ok((a, b))
}

/// Calls `to` from `client`: what the server there has seen. Both ends see the address that was asked for.
fn accepted_of_call(client: &Workload<'_>, to: SocketAddr) -> Result<Accepted> {
    let called: Called = client
        .run_traffic("call", &["call", "--to", &to.to_string()])?
        .account()?;
    ensure!(
        called.peer == to,
        "the client sees {} for {to}",
        called.peer
    );
    ensure!(
        called.local.ip() == client.address(to.ip()),
        "the client's own address is {}",
        called.local
    );
    let accepted: Accepted =
        serde_json::from_str(&called.received).context("no account came back")?;
    ensure!(
        accepted.local == to,
        "the server sees its own address as {accepted:?}"
    );
    Ok(accepted)
}

/// The client sees the address that it asked for, the server the client's and its own.
#[test]
fn both_ends_see_the_original_addresses() {
    World::play(|world| {
        let (a, b) = pods(world)?;
        for to in [b.v4(7000), b.v6(7000)] {
            let server = b.serving("names", &["names", "--listen", &to.to_string()])?;
            let accepted = accepted_of_call(&a, to)?;
            ensure!(
                accepted.peer.ip() == a.address(to.ip()),
                "the server sees the client as {accepted:?}"
            );
            ensure!(
                accepted.accepted_from == accepted.peer,
                "accept and getpeername differ: {accepted:?}"
            );
            server.stop(LIMIT)?;
        }
        Ok(())
    });
}

/// A pod that calls its own address meets itself.
#[test]
fn a_pod_calls_its_own_address() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        for to in [a.v4(7000), a.v6(7000)] {
            let server = a.serving("names", &["names", "--listen", &to.to_string()])?;
            accepted_of_call(&a, to)?;
            server.stop(LIMIT)?;
        }
        Ok(())
    });
}

#[test]
fn curl_python_and_nginx_see_the_original_addresses() {
    World::play(|world| {
        let (a, b) = pods(world)?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("page"), "hello")?;
        for (nginx_at, python_at) in [(b.v4(8080), b.v4(8081)), (b.v6(8080), b.v6(8081))] {
            let client = a.address(nginx_at.ip());
            let nginx = peers::nginx(&b, nginx_at, directory.path(), "")?;
            let python = peers::python(
                &b,
                "names.py",
                &[&python_at.ip().to_string(), &python_at.port().to_string()],
            )?;
            peers::listens(&b, python_at)?;

            for to in [nginx_at, python_at] {
                let shown = "%{remote_ip} %{remote_port} %{http_code}";
                let page = format!("http://{to}/page");
                let finished =
                    peers::curl(&a, &["-o", "/dev/null", "-w", shown, &page])?.success()?;
                let expected = format!("{} {} 200", to.ip(), to.port());
                ensure!(
                    finished.stdout == expected,
                    "curl sees «{}», not «{expected}»",
                    finished.stdout
                );
            }
            let line = format!("{client} {} {} 200 /page", nginx_at.ip(), nginx_at.port());
            logged(&nginx, &line)?;
            logged(
                &python,
                &format!("{client} {} {}", python_at.ip(), python_at.port()),
            )?;
            for running in [nginx, python] {
                running.stop(LIMIT)?;
            }
        }
        Ok(())
    });
}

fn logged(running: &sidecar_tests::world::Running, line: &str) -> Result<()> {
    wait::until_true(
        &format!("the line «{line}» in: {running}"),
        Duration::from_secs(30),
        || Ok(running.stdout()?.lines().any(|logged| logged == line)),
    )
}

/// A proxy that knows nothing of us, beside ours on the steered port: it learns the original destination as after
/// iptables' REDIRECT.
#[test]
fn an_unmodified_proxy_learns_the_original_destination() {
    World::play(|world| {
        let (a, b) = pods(world)?;
        // Where proxies are: what they do is not steered.
        let group = a.app_cgroup().with_file_name("proxy");
        for (listen, to) in [("127.0.0.1:15002", b.v4(7000)), ("[::1]:15002", b.v6(7000))] {
            let _server = b.serving("names", &["names", "--listen", &to.to_string()])?;
            let arguments = ["names", "--listen", listen, "--reuse-port"];
            let proxy = a.start_in(&group, "proxy", programs::traffic()?, &arguments)?;
            let mut proxy = proxy.listening()?;
            // The kernel spreads connections over those that share the port.
            wait::until_true(
                "a connection to reach the foreign proxy",
                Duration::from_secs(60),
                || {
                    a.run_traffic("call", &["call", "--to", &to.to_string()])?;
                    Ok(proxy.stdout()?.lines().any(|line| line.starts_with('{')))
                },
            )?;
            let accepted: Accepted = serde_json::from_str(&proxy.line("{")?)?;
            ensure!(
                accepted.original_destination == Some(to),
                "{accepted:?} instead of {to}"
            );
        }
        Ok(())
    });
}

//! Mutual TLS through real steering: what is on the link between two workloads is not what their programs say.

use std::{fs, io::Write, net::TcpStream, time::Duration};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Finished, Running, Workload, World, programs::packaged, wait};

use crate::{mesh, peers};

/// Seconds are plenty for what runs at once.
const LIMIT: Duration = Duration::from_secs(20);

/// Two workloads with identities of one authority; `b` takes mutual TLS only.
fn pods(world: &World) -> Result<(Workload<'_>, Workload<'_>)> {
    let (mut a, mut b) = (world.workload("a")?, world.workload("b")?);
    let authority = mesh::authority(&a)?;
    let (web, shop) = ("ns/default/sa/a", "ns/default/sa/b");
    let service = mesh::service(&b, shop, &[8080]);
    a.start_sidecar(&mesh::identity(&authority, web).push("services", service))?;
    b.start_sidecar(&mesh::identity(&authority, shop).set("inbound.mtls", "strict"))?;
    Ok((a, b))
}

/// tcpdump of what comes to and from `workload`, with the bytes of the packets as text.
fn tcpdump(workload: &Workload<'_>, ports: &str) -> Result<Running> {
    let tcpdump = workload.start_in(
        workload.cgroup(),
        "tcpdump",
        packaged("tcpdump", "tcpdump")?,
        &["-l", "-n", "-A", "-s", "0", "-i", "eth0", ports],
    )?;
    wait::until_true("tcpdump to listen", LIMIT, || {
        Ok(tcpdump.stderr()?.contains("listening on"))
    })?;
    Ok(tcpdump)
}

/// What tcpdump saw, once it has seen `what`.
fn captured(tcpdump: Running, what: &str) -> Result<String> {
    wait::until_true(&format!("{what:?} on the link"), LIMIT, || {
        Ok(tcpdump.stdout()?.contains(what))
    })?;
    let seen = tcpdump.stdout()?;
    tcpdump.stop(Duration::from_secs(5))?;
    Ok(seen)
}

#[test]
fn the_link_carries_tls_and_not_the_payload() {
    World::play(|world| {
        let (a, b) = pods(world)?;
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("page"), "a-secret-of-the-page")?;
        let nginx = peers::nginx(&b, b.v4(8080), directory.path(), "")?;
        let dump = tcpdump(&b, "tcp port 8080")?;
        let url = format!("http://{}/page", b.v4(8080));
        let fetched =
            peers::curl(&a, &["-H", "x-note: a-secret-of-the-request", &url])?.success()?;
        ensure!(fetched.stdout == "a-secret-of-the-page", "{fetched:?}");
        // Plaintext from where no sidecar steers: what tcpdump shows of it, it would show of the others, and they came first.
        let marked = a.namespace().enter(|| -> std::io::Result<()> {
            TcpStream::connect(b.v4(8080))?.write_all(b"the-end-of-the-capture")
        })?;
        marked.context("marking the end")?;
        let seen = captured(dump, "the-end-of-the-capture")?;
        // The ClientHello, which is not encrypted, says that it is the mesh's.
        ensure!(
            seen.contains("sidecar"),
            "no ClientHello of the mesh:\n{seen}"
        );
        ensure!(
            !seen.contains("a-secret"),
            "the payload is on the link:\n{seen}"
        );
        ensure!(
            !seen.contains("HTTP/1.1"),
            "plaintext is on the link:\n{seen}"
        );
        let handshakes = |workload: &Workload<'_>| -> Result<f64> {
            let good = ["result=\"ok\"", "version=\"TLSv1.3\""];
            Ok(workload
                .metrics()?
                .sum("sidecar_tls_handshakes_total", &good))
        };
        ensure!(handshakes(&a)? >= 1.0 && handshakes(&b)? >= 1.0);
        // The application sees its client's address still.
        let line = format!("{} {} 8080 200 /page", a.v4(0).ip(), b.v4(0).ip());
        wait::until_true("the request in nginx's log", LIMIT, || {
            Ok(nginx.stdout()?.lines().any(|logged| logged == line))
        })?;
        nginx.stop(Duration::from_secs(5))?;
        Ok(())
    });
}

/// Whatever part of a body is found in which queue, it is found at once: nobody waits for an edge that has passed.
#[test]
fn bodies_of_all_sizes_pass_both_ways() {
    World::play(|world| {
        let (a, b) = pods(world)?;
        let directory = tempfile::tempdir()?;
        let _nginx = peers::nginx(&b, b.v4(8080), directory.path(), "dav_methods PUT;")?;
        for bytes in [1_usize, 1000, 16_000, 70_000, 1 << 20, 8 << 20] {
            let body: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            let (file, copy) = (directory.path().join("file"), directory.path().join("copy"));
            fs::write(&file, &body)?;
            let (from, to) = (peers::text(&file)?, peers::text(&copy)?);
            let url = |name: &str| format!("http://{}/{name}", b.v4(8080));
            let put = ["-f", "--max-time", "20", "-T", from, &url("put")];
            peers::curl(&a, &put)?.success()?;
            ensure!(
                fs::read(directory.path().join("put"))? == body,
                "{bytes} bytes up"
            );
            // Twenty on one connection.
            let (mut get, url) = (vec!["-f", "--max-time", "20"], url("file"));
            for _ in 0..20 {
                get.extend(["-o", to, &url]);
            }
            peers::curl(&a, &get)?.success()?;
            ensure!(fs::read(&copy)? == body, "{bytes} bytes down");
        }
        Ok(())
    });
}

#[test]
fn whoever_has_no_identity_does_not_get_in() {
    World::play(|world| {
        let (_a, b) = pods(world)?;
        let stranger = world.workload("c")?;
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("page"), "a-secret-of-the-page")?;
        let nginx = peers::nginx(&b, b.v4(8080), directory.path(), "")?;
        let url = format!("http://{}/page", b.v4(8080));
        let refused: Finished = peers::curl(&stranger, &[&url])?;
        ensure!(refused.success().is_err(), "plaintext was served");
        let counted = b.metrics()?.sum(
            "sidecar_tls_handshakes_total",
            &["result=\"tls_plaintext_refused\""],
        );
        ensure!(counted == 1.0, "{counted} refusals");
        ensure!(
            !nginx.stdout()?.contains("/page"),
            "the application was called"
        );
        nginx.stop(Duration::from_secs(5))?;
        Ok(())
    });
}

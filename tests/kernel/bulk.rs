//! Which large messages are redirected: those that answer something are, a stream is not.

use std::fs;

use anyhow::{Result, ensure};
use sidecar_tests::world::{Settings, World};

use crate::peers;

/// Bytes by redirect and by TCP, on all hops, while `a` gets a body of `bytes` from `b` for `times` times on one connection.
fn downloads(world: &World, bytes: usize, times: usize) -> Result<(u64, u64)> {
    let a = world.workload("a")?.with_sidecar(&Settings::default())?;
    let b = world.workload("b")?.with_sidecar(&Settings::default())?;
    let directory = tempfile::tempdir()?;
    let _nginx = peers::nginx(&b, b.v4(8080), directory.path(), "")?;
    fs::write(directory.path().join("file"), vec![b'x'; bytes])?;
    let url = format!("http://{}/file", b.v4(8080));
    let mut get = vec!["-f", "--max-time", "60"];
    for _ in 0..times {
        get.extend(["-o", "/dev/null", &url]);
    }
    peers::curl(&a, &get)?.success()?;
    let (client, server) = (a.metrics()?, b.metrics()?);
    let by = |path| client.kernel_bytes(path) + server.kernel_bytes(path);
    let (redirected, by_tcp) = (by("redirect"), by("tcp"));
    println!("{bytes} bytes {times} times: {redirected} redirected, {by_tcp} by TCP");
    Ok((redirected, by_tcp))
}

#[test]
fn large_answers_are_redirected() {
    World::play(|world| {
        let (bytes, times) = (32 * 1024, 500);
        let (redirected, by_tcp) = downloads(world, bytes, times)?;
        // Three hops.
        let all = 3 * bytes as u64 * times as u64;
        ensure!(redirected + by_tcp >= all, "not all was seen");
        ensure!(redirected >= all / 4 * 3, "{redirected} of {all}");
        Ok(())
    });
}

#[test]
fn a_stream_takes_tcp() {
    World::play(|world| {
        let bytes = 256 << 20;
        let (_, by_tcp) = downloads(world, bytes, 1)?;
        // Towards the application all goes one way; it may be the other one.
        ensure!(by_tcp >= bytes as u64, "{by_tcp} of {bytes} a hop");
        Ok(())
    });
}

//! An agent that cannot start: it says why in a few lines, and leaves nothing.

use std::{fs, net::TcpListener};

use anyhow::{Result, ensure};
use sidecar_tests::world::{Agent, Finished, Running, World, programs};

use super::SOON;

/// Nothing pinned, so that nothing lives on without the process.
fn nothing_is_left(world: &World) -> Result<()> {
    let bpffs = world.bpffs();
    let left = fs::read_dir(&bpffs).into_iter().flatten().flatten();
    // Two files of the kernel's own list all programs and maps.
    let left: Vec<_> = left
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none_or(|end| end != "debug"))
        .collect();
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(())
}

/// A text for people, not the verifier's log.
fn is_short(said: &str) -> bool {
    said.lines().count() < 15 && said.len() < 4000
}

#[test]
fn a_port_that_is_taken_leaves_nothing() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        agent.stop()?;
        nothing_is_left(world)?;
        let taken = world.enter(|| TcpListener::bind("127.0.0.1:15098"))??;
        let said = agent.launch_expecting_failure(&programs::sidecar()?)?;
        ensure!(said.contains("cannot listen on 127.0.0.1:15098"), "{said}");
        ensure!(is_short(&said), "{said}");
        nothing_is_left(world)?;
        drop(taken);
        agent.restart(&programs::sidecar()?)
    });
}

/// Without two capabilities: maps can be made and pinned, and then the kernel refuses the programs.
fn refused(world: &World, arguments: &[&str]) -> Result<Finished> {
    let setpriv = programs::packaged("setpriv", "util-linux")?;
    let mut command = world.command_beside("refused", &setpriv)?;
    command
        .args(["--bounding-set", "-perfmon,-sys_admin"])
        .arg(programs::sidecar()?)
        .args(arguments)
        .arg("--bpffs")
        .arg(world.bpffs());
    Running::start("refused", world.directory(), &mut command)?.finish(SOON)
}

#[test]
fn programs_that_are_refused_leave_nothing() {
    World::play(|world| {
        let socket = world.directory().join("agent.sock").display().to_string();
        let finished = refused(world, &["agent", "--socket", &socket])?;
        ensure!(finished.code() == 1, "it started: {finished:?}");
        ensure!(
            finished.stderr.contains("the kernel refused"),
            "{finished:?}"
        );
        ensure!(is_short(&finished.stderr), "{finished:?}");
        nothing_is_left(world)
    });
}

//! `guest`: what `cargo xtask vm` runs inside a virtual machine, to see what the sidecar makes of that kernel.
//!
//! It goes through its steps one by one, and tells of each in one line of JSON on standard output: `step`, `ok`, `seconds`,
//! and `found`, or `error`. It exits 0 if all were as they should be. Nothing else may run on the machine, as the last step
//! wants the kernel to have not one program, map or link more than at the beginning.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sidecar_tests::{leaks::Held, output::tell, world::World};

mod capability;
mod egress;
mod enrolment;
mod integrity;
mod refusal;
mod steering;
mod teardown;

/// Everything is emulated here, and ten times slower than elsewhere.
const LIMIT: Duration = Duration::from_secs(240);

/// The oldest kernel that is supported.
const FLOOR: (u32, u32) = (5, 15);

fn main() -> ExitCode {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut all = true;
    let supported = version(&release).is_some_and(|version| version >= FLOOR);
    if supported {
        let before = Held::everywhere();
        let mut level = None;
        all &= step("check", || {
            let found = capability::check()?;
            level = capability::level(&found);
            Ok(found)
        });
        let world = World::alone();
        let play = |name: &str, work: &dyn Fn(&World) -> Result<Value>| {
            let ok = step(name, || work(shared(&world)?));
            if !ok && let Ok(world) = &world {
                world.show();
            }
            ok
        };
        all &= play("steering", &steering::both_ways);
        all &= play("integrity", &|world| {
            integrity::exact(world, level.as_deref().context("check has failed")?)
        });
        all &= play("egress", &egress::all_but_dns);
        all &= play("agent", &enrolment::one_pod);
        drop(world);
        all &= step("teardown", || teardown::nothing_left(&before?));
    } else {
        all &= step("refusal", refusal::in_words);
    }
    let end = json!({"step": "end", "ok": all, "kernel": release, "supported": supported});
    // Nobody who could be told would be there.
    let _ = tell(&end);
    match all {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Does `work` and tells what came of it.
fn step(name: &str, work: impl FnOnce() -> Result<Value>) -> bool {
    let started = Instant::now();
    let result = work();
    let ok = result.is_ok();
    let seconds = started.elapsed().as_secs_f64();
    let line = match result {
        Ok(found) => json!({"step": name, "ok": true, "seconds": seconds, "found": found}),
        Err(error) => {
            json!({"step": name, "ok": false, "seconds": seconds, "error": format!("{error:#}")})
        }
    };
    tell(&line).is_ok() && ok
}

fn shared(world: &Result<World>) -> Result<&World> {
    world
        .as_ref()
        .map_err(|error| anyhow::anyhow!("no world to play in: {error:#}"))
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(version("6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert!(version("5.10.0-46-cloud-amd64").is_some_and(|version| version < FLOOR));
        assert!(version("7.3.4+deb13-cloud-amd64").is_some_and(|version| version > FLOOR));
        assert_eq!(version("unknown"), None);
    }
}

//! The order of start and end in a pod.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use sidecar_tests::world::{Agent, Pod, Settings, World};

use super::{SOON, connects, load::said};

/// A Job: when its application has ended the sidecar does, too.
#[test]
fn alone_it_ends() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let mut job = Pod::enrolled(&agent, "job", &Settings::default())?;
        // Alone before the application has started is no reason.
        std::thread::sleep(Duration::from_secs(3));
        ensure!(job.is_ready()?, "it left before the application came");
        let application = job
            .workload
            .start_in(&job.app(), "job", "/bin/sleep", &["3"])?;
        application.finish(SOON)?.success()?;
        let finished = job.take_proxy()?.finish(SOON)?;
        ensure!(finished.code() == 0, "{finished:?}");
        ensure!(
            finished.stderr.contains("the application has gone"),
            "{finished:?}"
        );

        let settings = Settings::default().set("lifecycle.exitWhenAlone", false);
        let service = Pod::enrolled(&agent, "service", &settings)?;
        let application = service
            .workload
            .start_in(&service.app(), "app", "/bin/sleep", &["3"])?;
        application.finish(SOON)?.success()?;
        std::thread::sleep(Duration::from_secs(4));
        ensure!(service.is_ready()?, "it left although it was told not to");
        Ok(())
    });
}

/// Told to end, the sidecar serves on while the application still works, and no longer than it may.
#[test]
fn outbound_stays_open_until_the_application_has_gone() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let settings = Settings::default().set("lifecycle.waitForApplication", "1m");
        let mut a = Pod::enrolled(&agent, "a", &settings)?;
        let application = a
            .workload
            .start_in(&a.app(), "app", "/bin/sleep", &["600"])?;
        // The agent looks once a second.
        std::thread::sleep(Duration::from_secs(3));
        a.proxy()?.signal(Signal::TERM)?;
        said(a.proxy()?, "serving on until the application has gone", 1)?;
        ensure!(
            connects(&a, &to)?,
            "outbound is closed while the application lives"
        );
        let started = Instant::now();
        application.signal(Signal::TERM)?;
        application.finish(SOON)?;
        let finished = a.take_proxy()?.finish(SOON)?;
        ensure!(finished.code() == 0, "{finished:?}");
        ensure!(
            started.elapsed() < Duration::from_secs(40),
            "it waited for nothing"
        );

        let settings = Settings::default().set("lifecycle.waitForApplication", "2s");
        let mut b = Pod::enrolled(&agent, "b", &settings)?;
        let _application = b
            .workload
            .start_in(&b.app(), "app", "/bin/sleep", &["600"])?;
        std::thread::sleep(Duration::from_secs(3));
        let started = Instant::now();
        let finished = b.take_proxy()?.stop(SOON)?;
        ensure!(finished.code() == 0, "{finished:?}");
        let took = started.elapsed();
        ensure!(took >= Duration::from_secs(2), "it did not wait: {took:?}");
        Ok(())
    });
}

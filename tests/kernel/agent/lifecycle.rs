//! The order of start and end in a pod.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use sidecar_tests::world::{Agent, Pod, Settings, World, programs};

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

/// A Job that the agent, which looks once a second, never sees: its cgroup is gone as well before the next look.
#[test]
fn a_job_of_a_moment_counts() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let mut job = Pod::enrolled(&agent, "job", &Settings::default())?;
        let cgroup = job.workload.cgroup().join("container");
        fs::create_dir(&cgroup)?;
        let started = Instant::now();
        let application = job.workload.start_in(&cgroup, "job", "/bin/true", &[])?;
        application.finish(SOON)?.success()?;
        fs::remove_dir(&cgroup)?;
        ensure!(
            started.elapsed() < Duration::from_millis(900),
            "too slow to test anything"
        );
        let finished = job.take_proxy()?.finish(SOON)?;
        ensure!(finished.code() == 0, "{finished:?}");
        ensure!(
            finished.stderr.contains("the application has gone"),
            "{finished:?}"
        );
        Ok(())
    });
}

/// An application that fails again and again: the sidecar stays the same one, whether the kubelet ends it, as it does native ones, or
/// it ends by itself when the application has not come back.
#[test]
fn an_application_that_comes_back_keeps_its_sidecar() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let native = Settings::default().set("lifecycle.exitWhenAlone", false);
        let patient = Settings::default().set("lifecycle.aloneFor", "6s");
        let native = Pod::enrolled(&agent, "native", &native)?;
        let mut patient = Pod::enrolled(&agent, "patient", &patient)?;
        let once = ["ping-pong", "--to", &to, "--rounds", "1"];
        for time in 0..3 {
            for pod in [&native, &patient] {
                let crash = ["-c", "sleep 2; exit 1"];
                let application = pod
                    .workload
                    .start_in(&pod.app(), "app", "/bin/sh", &crash)?;
                pod.run_traffic("once", &once)?;
                ensure!(application.finish(SOON)?.code() == 1, "it did not fail");
            }
            // The kubelet's back-off; the agent looks once a second.
            std::thread::sleep(Duration::from_secs(2));
            for pod in [&native, &patient] {
                ensure!(pod.is_ready()?, "it left with failure {time}");
            }
        }
        for name in ["native", "patient"] {
            let steered = agent.kernel_events(name, "steered")?;
            ensure!(steered == 3, "{name}: {steered} connections were steered");
        }
        said(patient.proxy()?, "ending if it does not come back", 1)?;
        let finished = patient.take_proxy()?.finish(SOON)?;
        ensure!(finished.code() == 0, "{finished:?}");
        ensure!(native.is_ready()?, "it left although it was told not to");
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

/// An init container that is listed before the sidecar runs before there is anything to steer to: it bypasses. One that
/// comes after is as the application.
#[test]
fn what_runs_before_the_sidecar_bypasses_it() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let mut pod = Pod::new(world, "a", &Settings::default())?;
        let once = ["ping-pong", "--to", &to, "--rounds", "1"];
        let init = |pod: &Pod<'_>, name: &str| -> Result<()> {
            let cgroup = pod.workload.cgroup().join(name);
            fs::create_dir(&cgroup)?;
            let traffic = programs::traffic()?;
            let container = pod.workload.start_in(&cgroup, name, traffic, &once)?;
            container.finish(SOON)?.success()?;
            Ok(fs::remove_dir(&cgroup)?)
        };
        init(&pod, "init-1")?;
        pod.enrol(&agent)?;
        ensure!(agent.kernel_events("a", "steered")? == 0, "it was steered");
        init(&pod, "init-2")?;
        ensure!(
            agent.kernel_events("a", "steered")? == 1,
            "it was not steered"
        );
        pod.run_traffic("app", &once)?;
        ensure!(
            agent.kernel_events("a", "steered")? == 2,
            "it was not steered"
        );
        Ok(())
    });
}

//! A sidecar is replaced while connections go through it.

use std::{thread, time::Duration};

use anyhow::ensure;
use serde::Deserialize;
use sidecar_tests::world::{Agent, Pod, Settings, World, agent::PROXY_UID, programs, wait};

use super::{
    SOON,
    load::{Load, said},
    rounds,
};
use crate::peers;

/// Sidecars replaced: SIDECAR_UPGRADES. The whole is 10.
const UPGRADES: usize = 10;

#[test]
fn a_new_sidecar_takes_over_and_nothing_fails() {
    World::play(|world| {
        let upgrades = rounds("SIDECAR_UPGRADES", UPGRADES)?;
        let agent = Agent::start(world)?;
        // Connections that stay open may take their time.
        let settings = Settings::default().set("timeouts.drain", "5m");
        let mut a = Pod::enrolled(&agent, "a", &settings)?;
        let mut b = Pod::enrolled(&agent, "b", &settings)?;
        let load = Load::start(&a, &b)?;
        let mut old = Vec::new();
        for upgrade in 0..upgrades {
            let pod = if upgrade % 2 == 0 { &mut a } else { &mut b };
            let new = pod.another(&agent, "proxy", PROXY_UID)?;
            said(&new, "enrolled: steering", 1)?;
            let former = pod.take_proxy()?;
            said(&former, "ending when the connections have", 1)?;
            old.push(former);
            pod.set_proxy(new);
            pod.wait()?;
        }
        load.expect_unharmed()?;
        for former in old {
            // With nothing left to do they end by themselves.
            let finished = former.finish(SOON)?;
            ensure!(finished.code() == 0, "{finished:?}");
        }
        ensure!(agent.workloads()?.len() == 2, "{:?}", agent.workloads()?);
        println!("{upgrades} sidecars replaced");
        Ok(())
    });
}

/// Clients that keep their connections, some busy and some mostly idle, and try nothing twice.
const KEEPING: &str = r#"
import http.client, json, sys, threading, time
host, port = sys.argv[1].rsplit(":", 1)
over, done, failures = threading.Event(), [], []
def work(pause):
    connection, number = http.client.HTTPConnection(host, int(port), timeout=20), 0
    while not over.is_set():
        try:
            # One that a proxy may repeat, and one that it may not.
            connection.request("GET", "/") if number % 2 else connection.request("POST", "/", b"order")
            answer = connection.getresponse()
            assert answer.read() == b"fine", answer.status
            number += 1
        except Exception as error:
            failures.append(f"after {number} with pauses of {pause} s: {error!r}")
            connection.close()
        over.wait(pause)
    done.append(number)
threads = [threading.Thread(target=work, args=(pause,)) for pause in (0.002, 0.05, 0.5, 1.5) for _ in range(4)]
for thread in threads: thread.start()
print("under way", flush=True)
sys.stdin.read()
over.set()
for thread in threads: thread.join()
print(json.dumps({"requests": sum(done), "failures": failures}), flush=True)
"#;

#[derive(Debug, Deserialize)]
struct Kept {
    requests: usize,
    failures: Vec<String>,
}

/// The old sidecar has connections on which nothing is under way at the moment: it must not close them under a request that is.
#[test]
fn requests_on_kept_connections_do_not_fail() {
    World::play(|world| {
        let upgrades = rounds("SIDECAR_UPGRADES", UPGRADES)?;
        let agent = Agent::start(world)?;
        let settings = Settings::default().protocol(8080, "http");
        let mut a = Pod::enrolled(&agent, "a", &settings)?;
        let mut b = Pod::enrolled(&agent, "b", &settings)?;
        let files = tempfile::tempdir()?;
        let location = "location / { return 200 fine; }";
        let _nginx = peers::nginx(&b.workload, b.v4(8080), files.path(), location)?;
        let python = programs::packaged("python3", "python3")?;
        let arguments = ["-c", KEEPING, &b.v4(8080).to_string()];
        let mut clients = a
            .workload
            .start_in(&a.app(), "clients", python, &arguments)?;
        clients.line_within("under way", SOON)?;
        for upgrade in 0..upgrades {
            thread::sleep(Duration::from_millis(700));
            let pod = if upgrade % 2 == 0 { &mut a } else { &mut b };
            let new = pod.another(&agent, "proxy", PROXY_UID)?;
            said(&new, "enrolled: steering", 1)?;
            let former = pod.take_proxy()?;
            pod.set_proxy(new);
            pod.wait()?;
            let finished = former.finish(SOON)?;
            ensure!(finished.code() == 0, "{finished:?}");
        }
        let kept: Kept = clients.finish(SOON)?.success()?.account()?;
        println!("{} requests over {upgrades} upgrades", kept.requests);
        ensure!(kept.requests > 1_000, "that is no load: {kept:?}");
        ensure!(kept.failures.is_empty(), "{kept:?}");
        Ok(())
    });
}

/// Only the pod's own sidecar can be taken over from.
#[test]
fn a_stranger_in_the_pod_gets_no_listeners() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let mut a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let stranger = a.another(&agent, "app", PROXY_UID)?.finish(SOON)?;
        ensure!(
            stranger.code() == 1 && stranger.stderr.contains("does not hand them over"),
            "{stranger:?}"
        );
        ensure!(a.is_ready()?, "the sidecar suffered");
        wait::until_true("the sidecar to stay", SOON, || {
            Ok(agent.workloads()?.len() == 1)
        })
    });
}

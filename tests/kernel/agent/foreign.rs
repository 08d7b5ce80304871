//! A real Envoy, unmodified, that knows nothing of us: it gets the connections of its workload and learns where they were
//! meant to go from `SO_ORIGINAL_DST`, as it would behind iptables.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::Path,
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use sidecar_tests::world::{Agent, Pod, Running, Settings, World, programs, wait};

use super::{SOON, connects};

/// A listener that relays to the original destination.
fn listener(name: &str, address: &str, port: u16) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": "original",
    });
    let original = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    });
    json!({
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "listener_filters": [
            {"name": "envoy.filters.listener.original_dst", "typed_config": original},
        ],
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]},
        ],
    })
}

fn envoy(pod: &Pod<'_>, name: &str, directory: &Path) -> Result<Running> {
    let configuration = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 15000}}},
        "static_resources": {
            "listeners": [listener("outbound", "127.0.0.1", 15001), listener("inbound", "0.0.0.0", 15006)],
            "clusters": [{
                "name": "original",
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "5s",
            }],
        },
    });
    let path = directory.join(format!("envoy-{}.json", pod.workload.name()));
    fs::write(&path, configuration.to_string())?;
    let arguments = [
        "--config-path",
        &path.display().to_string(),
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "--log-level",
        "warning",
    ];
    let cgroup = pod.workload.cgroup().join("proxy");
    pod.workload
        .start_in(&cgroup, name, programs::envoy()?, &arguments)
}

/// Connections that Envoy has taken on a listener.
fn taken(pod: &Pod<'_>, listener: &str) -> Result<u64> {
    let ask = || -> Result<String> {
        let mut admin = TcpStream::connect((Ipv4Addr::LOCALHOST, 15000))?;
        admin.set_read_timeout(Some(SOON))?;
        // Envoy wants no HTTP/1.0.
        let path = "/stats?filter=downstream_cx_total";
        write!(
            admin,
            "GET {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        admin.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let stats = pod.workload.namespace().enter(ask)??;
    let name = format!("tcp.{listener}.downstream_cx_total: ");
    let found = stats.lines().find_map(|line| line.strip_prefix(&name));
    Ok(found.map_or(Ok(0), str::parse)?)
}

#[test]
fn a_real_envoy_is_steered_to() {
    World::play(|world| {
        let pods = [
            Pod::new(world, "a", &Settings::default())?,
            Pod::new(world, "b", &Settings::default())?,
        ];
        let workload = |pod: &Pod<'_>| {
            json!({
                "cgroup": pod.workload.cgroup(),
                "proxy": pod.workload.cgroup().join("proxy"),
                "outboundPort": 15001,
                "inboundPort": 15006,
                "steering": {"name": pod.workload.name(), "failRule": "closed"},
            })
        };
        let file = world.directory().join("foreign.yaml");
        let workloads: Vec<_> = pods.iter().map(workload).collect();
        fs::write(&file, json!({"workloads": workloads}).to_string())?;
        let file = file.display().to_string();
        let agent = Agent::start_with(world, &["--byo-proxy", &file])?;
        let [a, b] = &pods;
        let first = envoy(a, "envoy", world.directory())?;
        let _second = envoy(b, "envoy", world.directory())?;
        wait::until_true("both to be found", SOON, || {
            let listed = agent.workloads()?;
            Ok(listed
                .iter()
                .filter(|pod| !pod["sidecar"].is_null())
                .count()
                == 2)
        })?;

        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to, "--rounds", "2000"])?;
        ensure!(taken(a, "outbound")? > 0, "a's Envoy got nothing outbound");
        ensure!(taken(b, "inbound")? > 0, "b's Envoy got nothing inbound");
        let redirected =
            agent.kernel_events("a", "redirected")? + agent.kernel_events("b", "redirected")?;
        println!("{redirected} messages redirected between two Envoys");
        ensure!(
            redirected > 0,
            "nothing was redirected: {}",
            agent.metrics()?
        );

        // Every byte, with the integrity programs: Envoy reads what is redirected and what is not.
        let listen = b.v4(7002).to_string();
        let ends = ["--connections", "100", "--mode", "nonblocking"];
        let serve = [&["serve", "--listen", &listen], ends.as_slice()].concat();
        let mut server = b.traffic("serve", &serve)?;
        server.line("listening ")?;
        let drive = [
            &["drive", "--to", &listen, "--style", "duplex"],
            ends.as_slice(),
        ]
        .concat();
        let client: sidecar_tests::report::Report = a.run_traffic("drive", &drive)?.account()?;
        client.expect_exact(100)?;
        let server: sidecar_tests::report::Report = server.finish(SOON)?.success()?.account()?;
        server.expect_exact(100)?;

        // It goes, and its workload is refused; another one is found.
        first.signal(Signal::KILL)?;
        first.finish(SOON)?;
        ensure!(!connects(a, &to)?, "it bypasses its proxy");
        let _third = envoy(a, "envoy-again", world.directory())?;
        wait::until_true("the new one to be found", SOON, || connects(a, &to))?;
        ensure!(taken(a, "outbound")? > 0, "it bypasses the new one");
        Ok(())
    });
}

//! Which addresses a steered socket shows and has: that of its route, those to which the application has bound it, and link-local
//! ones.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use sidecar_tests::world::{
    Agent, Pod, Running, Settings, Workload, World, namespace, wait, workload::LIMIT,
};

use crate::peers;

/// More than the time between two looks at the routes.
const SOON: Duration = Duration::from_secs(10);
/// A user without a capability.
const NOBODY: u32 = 1337;

/// What came of a connection.
#[derive(Debug, Deserialize)]
struct Asked {
    error: Option<String>,
    /// `getsockname` before it connects, as soon as it is connected, and when the server has spoken.
    bound: Option<Value>,
    before: Option<Value>,
    after: Option<Value>,
    peer: Option<Value>,
    told: Option<Told>,
    /// Name and index, as the socket says at the end.
    device: (String, u32),
}

/// What the server has seen.
#[derive(Debug, Deserialize)]
struct Told {
    peer: Value,
}

/// Address, and port, of what Python calls an address.
fn ip(address: Option<&Value>) -> String {
    let ip = address.and_then(|a| a[0].as_str()).unwrap_or("nothing");
    ip.trim_start_matches("::ffff:").to_owned()
}

fn port(address: Option<&Value>) -> u64 {
    address.and_then(|a| a[1].as_u64()).unwrap_or_default()
}

impl Asked {
    fn succeeded(self) -> Result<Self> {
        ensure!(self.error.is_none(), "it failed: {self:?}");
        Ok(self)
    }

    /// The client's address as the server has seen it.
    fn seen(&self) -> Option<&Value> {
        self.told.as_ref().map(|told| &told.peer)
    }

    /// The client has the address `ip`, whoever looks.
    fn expect_address(&self, expected: &str) -> Result<()> {
        for (who, address) in [
            ("the client, before a byte came", self.before.as_ref()),
            ("the client", self.after.as_ref()),
            ("the server", self.seen()),
        ] {
            let seen = ip(address);
            ensure!(
                seen == expected,
                "{who} sees {seen}, not {expected}: {self:?}"
            );
        }
        ensure!(
            port(self.before.as_ref()) == port(self.after.as_ref()),
            "another port: {self:?}"
        );
        Ok(())
    }
}

fn ask(workload: &Workload<'_>, how: &Value) -> Result<Asked> {
    let finished = peers::python(workload, "addresses.py", &["ask", &how.to_string()])?;
    let finished = finished.finish(LIMIT)?.success()?;
    serde_json::from_str(finished.stdout.trim()).context("no account came back")
}

/// A server for both families that says whom it sees.
fn serve(workload: &Workload<'_>, port: u16) -> Result<Running> {
    let server = peers::python(
        workload,
        "addresses.py",
        &["serve", "::", &port.to_string()],
    )?;
    peers::listens(workload, SocketAddr::new([0; 8].into(), port))?;
    Ok(server)
}

fn steered(client: &Workload<'_>) -> Result<u64> {
    Ok(client.metrics()?.kernel_events("steered"))
}

fn to(address: SocketAddr) -> Value {
    json!([address.ip().to_string(), address.port()])
}

#[test]
fn a_steered_socket_shows_the_address_of_its_route() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let _server = serve(&b, 7000)?;
        let (v4, v6) = (b.v4(7000), b.v6(7000));
        let mapped = json!([format!("::ffff:{}", v4.ip()), 7000]);
        let before = steered(&a)?;
        for (family, address, own) in [
            (false, to(v4), a.v4(0)),
            (true, to(v6), a.v6(0)),
            (true, mapped, a.v4(0)),
        ] {
            for (nonblocking, multipath) in [(false, false), (true, false), (false, true)] {
                let how = json!({ "v6": family, "to": address, "nonblocking": nonblocking, "multipath": multipath });
                let asked = ask(&a, &how)?.succeeded()?;
                asked.expect_address(&own.ip().to_string())?;
                let peer = asked.peer.as_ref();
                let asked_for = (ip(Some(&address)), port(Some(&address)));
                ensure!((ip(peer), port(peer)) == asked_for, "{asked:?}");
            }
        }
        ensure!(steered(&a)? == before + 9, "not steered: {}", a.metrics()?);
        // What stays in the workload shows what it is.
        let local = serve(&a, 7001)?;
        ask(&a, &json!({ "to": ["127.0.0.1", 7001] }))?.expect_address("127.0.0.1")?;
        local.stop(LIMIT)?;
        Ok(())
    });
}

/// Another address is the source towards a prefix, and then none of it is left.
#[test]
fn the_address_follows_the_routes() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let _server = serve(&b, 7000)?;
        let ip = |command: &str| namespace::ip(&[command]);
        let (a_net, b_net) = (a.namespace().name(), b.namespace().name());
        ip(&format!("-n {b_net} addr add 203.0.113.9/32 dev eth0"))?;
        ip(&format!("-n {b_net} route add 198.18.0.0/24 dev eth0"))?;
        ip(&format!("-n {a_net} addr add 198.18.0.7/32 dev eth0"))?;
        let how = json!({ "to": ["203.0.113.9", 7000] });
        for (change, expected) in [
            ("add 203.0.113.0/24 dev eth0", a.v4(0).ip().to_string()),
            (
                "add 203.0.113.9/32 dev eth0 src 198.18.0.7",
                "198.18.0.7".to_owned(),
            ),
            ("del 203.0.113.9/32 dev eth0", a.v4(0).ip().to_string()),
        ] {
            ip(&format!("-n {a_net} route {change}"))?;
            let what = format!("{expected} after {change}");
            wait::until_true(&what, SOON, || {
                Ok(ask(&a, &how)?
                    .succeeded()?
                    .expect_address(&expected)
                    .is_ok())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_bound_address_and_port_are_kept() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let _server = serve(&b, 7000)?;
        let (v4, v6) = (to(b.v4(7000)), to(b.v6(7000)));
        let (mut second4, mut second6) = (a.v4(0), a.v6(0));
        let more = |ip: std::net::IpAddr| -> Result<std::net::IpAddr> {
            let text = ip.to_string();
            let end = text.rfind(['.', ':']).context("no address")?;
            Ok(format!("{}{}", &text[..=end], 200).parse()?)
        };
        second4.set_ip(more(second4.ip())?);
        second6.set_ip(more(second6.ip())?);
        a.namespace().add_address(second4.ip())?;
        a.namespace().add_address(second6.ip())?;
        let (second4, second6) = (second4.ip().to_string(), second6.ip().to_string());
        let mapped = json!([format!("::ffff:{}", b.v4(0).ip()), 7000]);
        let before = steered(&a)?;
        for (v6, destination, address) in [
            (false, &v4, &second4),
            (true, &v6, &second6),
            (true, &mapped, &format!("::ffff:{second4}")),
        ] {
            // Any port, and a certain one: first by whom another may have it as well, then by whom not.
            for (bind_port, reuse) in [(0, false), (5100, true), (5101, false)] {
                let how = json!({ "v6": v6, "to": destination, "bind": [address, bind_port], "reuse": reuse });
                let asked = ask(&a, &how)?.succeeded()?;
                asked.expect_address(address.trim_start_matches("::ffff:"))?;
                let (bound, seen) = (port(asked.bound.as_ref()), port(asked.seen()));
                ensure!(bound == port(asked.before.as_ref()), "{asked:?}");
                ensure!(
                    bound == seen,
                    "the server sees port {seen}, not {bound}: {asked:?}"
                );
            }
        }
        // Without a sidecar it could not connect.
        let how = json!({ "to": v4, "bind": ["127.0.0.1", 0] });
        let asked = ask(&a, &how)?.succeeded()?;
        ensure!(ip(asked.after.as_ref()) == "127.0.0.1", "{asked:?}");
        let own = a.v4(0).ip().to_string();
        for bind_port in [5200, 777] {
            let how = json!({ "to": v4, "bind": ["0.0.0.0", bind_port] });
            let asked = ask(&a, &how)?.succeeded()?;
            asked.expect_address(&own)?;
            ensure!(port(asked.seen()) == bind_port, "{asked:?}");
        }
        ensure!(steered(&a)? == before + 12, "not steered: {}", a.metrics()?);
        let lost = a.metrics()?.sum("sidecar_source_ports_lost_total", &[]);
        ensure!(lost == 0.0, "{lost} ports lost");
        Ok(())
    });
}

/// In a namespace of the pod's own nothing that comes from an address of it is taken for inbound; and a sidecar without
/// privilege may not have every port.
#[test]
fn what_a_sidecar_may_not_have_is_counted() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "a", &Settings::default())?;
        let (a, b) = (&pod.workload, world.workload("b")?);
        let _server = serve(&b, 7000)?;
        let own = a.v4(0).ip().to_string();
        for (bind, kept) in [
            (json!([own, 5300]), true),
            (json!(["0.0.0.0", 5301]), true),
            (json!([own, 777]), false),
        ] {
            let how = json!({ "to": to(b.v4(7000)), "bind": bind });
            let asked = ask(a, &how)?.succeeded()?;
            asked.expect_address(&own)?;
            let same = port(asked.seen()) == port(asked.bound.as_ref());
            ensure!(same == kept, "{asked:?}");
        }
        let lost = a.metrics()?.sum("sidecar_source_ports_lost_total", &[]);
        ensure!(lost == 1.0, "{lost} ports lost");
        ensure!(agent.kernel_events("a", "steered")? == 3, "not steered");
        Ok(())
    });
}

/// Requests of sockets that are bound to different addresses share no connection.
#[test]
fn requests_keep_their_address() {
    World::play(|world| {
        let settings = Settings::default().protocol(8081, "http");
        let a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?;
        a.namespace().add_address("10.77.0.200".parse()?)?;
        let host = b.v4(0).ip().to_string();
        let server = peers::python(&b, "names.py", &[&host, "8081"])?;
        peers::listens(&b, b.v4(8081))?;
        let program = "import http.client, sys\n\
                       for source in (('10.77.0.200', 0), None, ('10.77.0.200', 5400)):\n\
                       \x20   client = http.client.HTTPConnection(sys.argv[1], 8081, 20, source)\n\
                       \x20   client.request('GET', '/'); client.getresponse().read(); client.close()";
        a.run("requests", "/usr/bin/python3", &["-c", program, &host])?;
        let own = a.v4(0).ip().to_string();
        let seen = server.stdout()?;
        let seen: Vec<_> = seen.lines().filter_map(|l| l.split(' ').next()).collect();
        let wanted = ["10.77.0.200", own.as_str(), "10.77.0.200"];
        ensure!(seen == wanted, "{seen:?}");
        let lost = a.metrics()?.sum("sidecar_source_ports_lost_total", &[]);
        ensure!(
            lost > 0.0,
            "a connection of several clients has the port of one"
        );
        Ok(())
    });
}

#[test]
fn ftp_in_active_mode_works() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let (host, at) = (b.v4(0).ip().to_string(), b.v4(2121));
        let _server = peers::python(&b, "addresses.py", &["ftp", &host, "2121"])?;
        peers::listens(&b, at)?;
        let program = "import ftplib, sys\n\
                       ftp = ftplib.FTP()\n\
                       ftp.connect(sys.argv[1], 2121, 20); ftp.login(); ftp.set_pasv(False)\n\
                       ftp.retrlines('RETR file', print); ftp.quit()";
        let finished = a.run("ftp", "/usr/bin/python3", &["-c", program, &host])?;
        ensure!(finished.stdout.trim() == "content", "{finished:?}");
        Ok(())
    });
}

/// Two links to the same destination: the socket's device decides, not the route.
#[test]
fn a_socket_bound_to_a_device_is_steered() {
    World::play(|world| {
        let settings = Settings::default()
            .push("outbound.exclude.ports", 7001)
            .set("outbound.deny", json!([{ "name": "no", "ports": [7002] }]));
        let a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?;
        let (a_net, b_net) = (a.namespace().name(), b.namespace().name());
        namespace::ip(&[
            &format!("-n {a_net} link add eth1 type veth peer name eth1 netns {b_net}"),
            &format!("-n {a_net} addr add 198.18.1.1/24 dev eth1"),
            &format!("-n {b_net} addr add 198.18.1.2/24 dev eth1"),
            &format!("-n {a_net} addr add fd18::1/64 dev eth1 nodad"),
            &format!("-n {b_net} addr add fd18::2/64 dev eth1 nodad"),
            &format!("-n {a_net} link set eth1 up"),
            &format!("-n {b_net} link set eth1 up"),
        ])?;
        let network = b.v6(0).ip().to_string();
        let network = network.trim_end_matches(|c| c != ':');
        namespace::ip(&[&format!(
            "-n {a_net} route add {network}/64 via fd18::2 dev eth1 metric 5000"
        )])?;
        let _servers = [serve(&b, 7000)?, serve(&b, 7001)?];
        let index = 1 + devices(&a)?
            .iter()
            .position(|name| name == "eth1")
            .context("no eth1")? as u32;
        let (v4, v6) = (b.v4(7000), b.v6(7000));
        let excluded = SocketAddr::new(v4.ip(), 7001);
        // Until the device is known.
        wait::until_true("eth1 to be known", SOON, || {
            let how = json!({ "to": to(v4), "device": "eth1", "uid": NOBODY });
            Ok(ask(&a, &how)?.error.is_none())
        })?;
        let before = steered(&a)?;
        for uid in [0, NOBODY] {
            for how in [json!({ "device": "eth1" }), json!({ "index": index })] {
                for (v6, destination, source) in [
                    (false, v4, "198.18.1.1"),
                    (true, v6, "fd18::1"),
                    (false, excluded, "198.18.1.1"),
                ] {
                    let mut how = how.clone();
                    how["to"] = to(destination);
                    how["v6"] = v6.into();
                    how["uid"] = uid.into();
                    let asked = ask(&a, &how)?.succeeded()?;
                    asked.expect_address(source)?;
                    ensure!(asked.device == ("eth1".to_owned(), index), "{asked:?}");
                }
            }
            for (destination, error) in [
                (SocketAddr::new(v4.ip(), 7002), "EPERM"),
                // Loopback is another device: as without a sidecar.
                (
                    "127.0.0.1:7000".parse()?,
                    without_sidecar(&a, "127.0.0.1", uid)?.as_str(),
                ),
            ] {
                let how = json!({ "to": to(destination), "device": "eth1", "uid": uid });
                let asked = ask(&a, &how)?;
                ensure!(
                    asked.error.as_deref() == Some(error),
                    "not {error}: {asked:?}"
                );
                ensure!(asked.device == ("eth1".to_owned(), index), "{asked:?}");
            }
        }
        // A connection that was refused has cost the socket nothing.
        let denied = json!([[v4.ip().to_string(), 7002]]);
        let how = json!({ "to": to(v4), "device": "eth1", "first": denied, "uid": NOBODY });
        ask(&a, &how)?.succeeded()?.expect_address("198.18.1.1")?;
        let now = steered(&a)?;
        ensure!(now == before + 9, "{} of 9 were steered", now - before);
        let missing = ask(
            &a,
            &json!({ "to": to(v4), "device": "eth7", "uid": NOBODY }),
        )?;
        ensure!(missing.error.as_deref() == Some("ENODEV"), "{missing:?}");
        Ok(())
    });
}

/// The error of a connection from eth1 to this address, by a process that is not steered.
fn without_sidecar(a: &Workload<'_>, to: &str, uid: u32) -> Result<String> {
    let how = json!({ "to": [to, 7000], "device": "eth1", "uid": uid }).to_string();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/addresses.py");
    let arguments = ["-u", peers::text(&script)?, "ask", &how];
    let outside = a.start_in(a.cgroup(), "outside", "/usr/bin/python3", &arguments)?;
    let asked: Asked = serde_json::from_str(&outside.finish(LIMIT)?.success()?.stdout)?;
    asked.error.context("it connects without a sidecar")
}

fn devices(workload: &Workload<'_>) -> Result<Vec<String>> {
    let program = "import socket\nfor index, name in sorted(socket.if_nameindex()): print(name)";
    let finished = workload.run("devices", "/usr/bin/python3", &["-c", program])?;
    Ok(finished.stdout.lines().map(str::to_owned).collect())
}

/// A listener is bound to its device, although connections are not.
#[test]
fn a_listener_bound_to_a_device_is() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let program = "import os, socket, time\n\
                       os.setgroups([]); os.setgid(1337); os.setuid(1337)\n\
                       s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')\n\
                       s.bind(('0.0.0.0', 7000)); s.listen()\n\
                       time.sleep(1000)";
        let _server = a.start("listener", "/usr/bin/python3", &["-c", program])?;
        peers::listens(&a, "0.0.0.0:7000".parse()?)?;
        let ss = a.run("ss", "/usr/bin/ss", &["-Htln", "sport = :7000"])?;
        ensure!(ss.stdout.contains("%eth0:7000"), "{}", ss.stdout);
        Ok(())
    });
}

fn link_local(workload: &Workload<'_>) -> Result<String> {
    let program = "import sys\n\
                   lines = [line.split() for line in open('/proc/net/if_inet6')]\n\
                   import ipaddress\n\
                   print([ipaddress.ip_address(int(w[0], 16)) for w in lines if w[3] == '20' and w[5] == 'eth0'][0])";
    let finished = workload.run("link-local", "/usr/bin/python3", &["-c", program])?;
    Ok(finished.stdout.trim().to_owned())
}

/// A client on the link reaches the application through the proxy, and both see each other's addresses.
#[test]
fn link_local_clients_are_captured_with_their_scope() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &Settings::default())?;
        let (b, c) = (&pod.workload, world.workload("c")?);
        let (own, client) = (link_local(b)?, link_local(&c)?);
        let _server = serve(b, 7000)?;
        let asked = ask(
            &c,
            &json!({ "v6": true, "to": [own, 7000], "scope": "eth0" }),
        )?;
        let asked = asked.succeeded()?;
        ensure!(ip(asked.peer.as_ref()) == own, "{asked:?}");
        ensure!(ip(asked.seen()) == client, "the server sees {asked:?}");
        ensure!(
            port(asked.seen()) == port(asked.after.as_ref()),
            "{asked:?}"
        );
        let scope = asked.seen().and_then(|seen| seen[3].as_u64());
        ensure!(
            scope.is_some_and(|scope| scope > 1),
            "without a scope: {asked:?}"
        );
        ensure!(agent.kernel_events("b", "inbound")? == 1, "not captured");
        Ok(())
    });
}

/// The kernel half is not told on which link a destination is: it is left alone where anything may be reached, and refused where
/// not.
#[test]
fn link_local_destinations_pass_only_where_all_do() {
    World::play(|world| {
        let server = world.workload("server")?;
        let at = link_local(&server)?;
        let _server = serve(&server, 7000)?;
        let anything = json!([{ "name": "all", "action": "ALLOW", "rules": [{}] }]);
        for (name, settings, passes) in [
            ("open", Settings::default(), true),
            (
                "registry",
                Settings::default().set("outbound.unknown", "registryOnly"),
                false,
            ),
            (
                "denied",
                Settings::default().set(
                    "outbound.deny",
                    json!([{ "name": "link", "cidrs": ["fe80::/10"] }]),
                ),
                false,
            ),
            (
                "judged",
                Settings::default().set(
                    "authorization.outbound",
                    json!({ "default": "deny", "policies": anything }),
                ),
                false,
            ),
        ] {
            let client = world.workload(name)?.with_sidecar(&settings)?;
            let how = json!({ "v6": true, "to": [at, 7000], "scope": "eth0" });
            let asked = ask(&client, &how)?;
            let (left, denied) = if passes {
                asked.succeeded()?.expect_address(&link_local(&client)?)?;
                (1, 0)
            } else {
                ensure!(asked.error.as_deref() == Some("EPERM"), "{name}: {asked:?}");
                (0, 1)
            };
            let metrics = client.metrics()?;
            let events = |event| metrics.kernel_events(event);
            ensure!(events("link_local") == left, "{name}: {metrics}");
            ensure!(events("denied") == denied, "{name}: {metrics}");
        }
        Ok(())
    });
}

/// Unlike IPv6's, IPv4's link-local addresses are steered like all others: metadata services are there.
#[test]
fn a_metadata_service_is_steered() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let (a_net, b_net) = (a.namespace().name(), b.namespace().name());
        namespace::ip(&[
            &format!("-n {b_net} addr add 169.254.169.254/32 dev eth0"),
            &format!("-n {a_net} route add 169.254.169.254/32 dev eth0"),
        ])?;
        let _server = serve(&b, 7000)?;
        let asked = ask(&a, &json!({ "to": ["169.254.169.254", 7000] }))?.succeeded()?;
        ensure!(ip(asked.seen()) == a.v4(0).ip().to_string(), "{asked:?}");
        ensure!(steered(&a)? == 1, "{}", a.metrics()?);
        Ok(())
    });
}

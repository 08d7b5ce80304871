//! All IP traffic is meant: datagrams, raw sockets, frames. What comes from outside is answered.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidecar_tests::world::{Running, Settings, Workload, World, programs, wait, workload::LIMIT};

use super::connect;

pub const SOON: Duration = Duration::from_secs(30);

/// Sends one thing and says what came of it: `answered`, `sent`, or the error. Arguments: what, address, port.
const SEND: &str = r#"
import errno, fcntl, socket, struct, sys
what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
own = "::" if family == socket.AF_INET6 else "0.0.0.0"

def udp(family=family):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    return s

def answered(s): return "answered" if s.recv(2000) else "nothing"

# Of IPv4 the kernel fills in the source.
def source(): return own

def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def packet(protocol, payload, extension=b""):
    if family == socket.AF_INET6:
        head = struct.pack("!IHBB", 6 << 28, len(extension + payload), 60 if extension else protocol, 64)
        return head + socket.inet_pton(family, source()) + socket.inet_pton(family, host) + extension + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0)
    return head + socket.inet_pton(family, source()) + socket.inet_pton(family, host) + payload

def raw(protocol, payload, extension=b""):
    # Whoever says this protocol brings the header.
    s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(packet(protocol, payload, extension), (host, 0))
    return "sent"

def segment(flags): return struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 0x50, flags, 1000, 0, 0)

DATAGRAM = struct.pack("!HHHH", 4000, port, 9, 0) + b"x"

def icmp():
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    s = socket.socket(family, socket.SOCK_RAW, protocol)
    s.settimeout(10)
    echo = struct.pack("!BBHHH", 128 if family == socket.AF_INET6 else 8, 0, 0, 7, 7)
    if family == socket.AF_INET: echo = echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:]
    s.sendto(echo, (host, 0))
    return answered(s)

def frame(bypass=False):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    if bypass: s.setsockopt(263, 20, 1)
    name = [name for _, name in socket.if_nameindex() if name != "lo"][0]
    kind = 0x86dd if family == socket.AF_INET6 else 0x800
    s.bind((name, 0))
    s.send(b"\xff" * 6 + b"\x02\0\0\0\0\x01" + struct.pack("!H", kind) + packet(17, DATAGRAM))
    return "sent"

def connected():
    s = udp(); s.connect((host, port)); s.send(b"x")
    return answered(s)

def unconnected():
    s = udp(); s.sendto(b"x", (host, port))
    return answered(s)

def mapped():
    s = udp(socket.AF_INET6); s.sendto(b"x", ("::ffff:" + host, port))
    return answered(s)

def fast_open():
    s = socket.socket(family, socket.SOCK_STREAM)
    s.sendto(b"x", socket.MSG_FASTOPEN, (host, port))
    return "sent"

kinds = {
    "udp": unconnected, "udp-connected": connected, "udp-mapped": mapped, "icmp": icmp, "fast-open": fast_open,
    "raw-udp": lambda: raw(17, DATAGRAM), "raw-syn": lambda: raw(6, segment(2)), "raw-ack": lambda: raw(6, segment(16)),
    "raw-sctp": lambda: raw(132, struct.pack("!HHIIBBH", 4000, port, 0, 0, 1, 0, 20)),
    "raw-hidden-syn": lambda: raw(6, segment(2), bytes([6, 0, 1, 4, 0, 0, 0, 0])),
    "frame": frame, "frame-past": lambda: frame(True), "xdp": lambda: socket.socket(44, socket.SOCK_RAW).setsockopt(283, 3, 64),
}
try: print("said", kinds[what]())
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)))
"#;

/// Answers datagrams on one port of every address. Argument: the port.
const ANSWER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
print("listening", flush=True)
while True:
    data, peer = s.recvfrom(2000)
    s.sendto(data, peer)
"#;

/// Greets whoever connects. Argument: the port.
const GREET: &str = r#"
import socket, sys
l = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind(("::", int(sys.argv[1]))); l.listen()
print("listening", flush=True)
while True:
    c, _ = l.accept()
    c.sendall(b"hello" * 10000); c.close()
"#;

const CALL: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
got = 0
while part := s.recv(65536): got += len(part)
print("said", got)
"#;

pub fn python(workload: &Workload<'_>, script: &str, arguments: &[&str]) -> Result<Running> {
    let python = programs::packaged("python3", "python3")?;
    workload.start("python", python, &[&["-c", script], arguments].concat())
}

/// Sends one thing from the application, and gives what came of it.
pub fn send(workload: &Workload<'_>, what: &str, to: IpAddr, port: u16) -> Result<String> {
    let arguments = [what, &to.to_string(), &port.to_string()];
    said(python(workload, SEND, &arguments)?)
}

pub fn said(running: Running) -> Result<String> {
    let finished = running.finish(LIMIT)?.success()?;
    let said = finished.stdout.trim().strip_prefix("said ");
    Ok(said.with_context(|| format!("{finished:?}"))?.to_owned())
}

/// Answers datagrams on `port`.
pub fn answering(workload: &Workload<'_>, port: u16) -> Result<Running> {
    let mut running = python(workload, ANSWER, &[&port.to_string()])?;
    running.line_within("listening", SOON)?;
    Ok(running)
}

fn expect(workload: &Workload<'_>, to: IpAddr, port: u16, sent: &[(&str, &str)]) -> Result<()> {
    for (what, wanted) in sent {
        let got = send(workload, what, to, port)?;
        ensure!(
            got == *wanted,
            "{what} to {to} port {port}: {got}, not {wanted}"
        );
    }
    Ok(())
}

#[test]
fn everything_is_denied_that_is_ip() {
    World::play(|world| {
        let (server, other) = (world.workload("server")?, world.workload("other")?);
        let (v4, v6) = (server.v4(0).ip(), server.v6(0).ip());
        let rules = json!([{ "name": "no-server", "cidrs": [v4, v6] }]);
        let client = world
            .workload("client")?
            .with_sidecar(&Settings::default().set("outbound.deny", rules))?;
        let _answering = [answering(&server, 7000)?, answering(&other, 7000)?];
        let denied = [
            "udp",
            "udp-connected",
            "icmp",
            "raw-udp",
            "raw-syn",
            "raw-ack",
            "raw-sctp",
            "fast-open",
        ];
        let denied = denied.map(|what| (what, "EPERM"));
        for to in [v4, v6] {
            expect(&client, to, 7000, &denied)?;
        }
        expect(&client, v4, 7000, &[("udp-mapped", "EPERM")])?;
        expect(&client, v6, 7000, &[("raw-hidden-syn", "EPERM")])?;
        let counted = client.metrics()?.kernel_events("denied");
        ensure!(counted == 18, "{counted}");
        // Nobody else is meant.
        let passes = [
            ("udp", "answered"),
            ("udp-connected", "answered"),
            ("icmp", "answered"),
            ("raw-udp", "sent"),
            ("raw-syn", "sent"),
        ];
        for to in [other.v4(0).ip(), other.v6(0).ip()] {
            expect(&client, to, 7000, &passes)?;
        }
        expect(
            &client,
            other.v4(0).ip(),
            7000,
            &[("udp-mapped", "answered")],
        )?;
        wait::until_true("the denials in the log", SOON, || {
            let log = client.sidecar()?.log()?;
            let line = |words: &[&str]| {
                let said = |line: &str| words.iter().all(|word| line.contains(word));
                log.lines().any(said)
            };
            let (v4, v6) = (v4.to_string(), v6.to_string());
            Ok(line(&["denied", &v4, "protocol=UDP", "no-server", "pid="])
                && line(&["denied", &v6, "protocol=UDP", "no-server"])
                && line(&["denied", &v4, "protocol=ICMP", "no-server"])
                && line(&["denied", &v6, "protocol=ICMPV6", "no-server"]))
        })
    });
}

/// They pass by all hooks of a control group.
#[test]
fn packet_sockets_send_nothing_where_there_are_rules() {
    World::play(|world| {
        let (server, other) = (world.workload("server")?, world.workload("other")?);
        let rules = json!([{ "name": "no-server", "cidrs": [server.v4(0).ip()] }]);
        let with = world
            .workload("with")?
            .with_sidecar(&Settings::default().set("outbound.deny", rules))?;
        let without = world
            .workload("without")?
            .with_sidecar(&Settings::default())?;
        let to = other.v4(0).ip();
        expect(
            &with,
            to,
            7000,
            &[
                ("frame", "ENOBUFS"),
                ("frame-past", "EPERM"),
                ("xdp", "EPERM"),
            ],
        )?;
        expect(&with, other.v6(0).ip(), 7000, &[("frame", "ENOBUFS")])?;
        expect(
            &without,
            to,
            7000,
            &[("frame", "sent"), ("frame-past", "sent"), ("xdp", "None")],
        )?;
        ensure!(
            with.metrics()?.kernel_events("denied") == 2,
            "{}",
            with.metrics()?
        );
        // An interface that comes later.
        let added = std::process::Command::new("ip")
            .args([
                "-n",
                with.namespace().name(),
                "link",
                "add",
                "a0",
                "type",
                "veth",
            ])
            .status()?;
        ensure!(added.success(), "no interface could be made");
        wait::until_true("the program on the new interface", SOON, || {
            let links = links(&with)?;
            Ok(links
                .iter()
                .filter(|link| link.contains("egress_frame"))
                .count()
                == 3)
        })
    });
}

#[test]
fn dns_passes_while_everything_else_is_denied() {
    World::play(|world| {
        let (dns, other) = (world.workload("dns")?, world.workload("other")?);
        let (v4, v6) = (dns.v4(0).ip(), dns.v6(0).ip());
        let settings = Settings::default()
            .set(
                "outbound.deny",
                json!([{ "name": "everything", "cidrs": ["0.0.0.0/0", "::/0"] }]),
            )
            .set(
                "outbound.allow",
                json!([{
                    "name": "dns", "cidrs": [v4, v6], "ports": [53], "protocols": ["TCP", "UDP"],
                }]),
            )
            .set("inbound.exclude.ports", json!([8081]));
        let client = world.workload("client")?.with_sidecar(&settings)?;
        let _answering = [
            answering(&dns, 53)?,
            answering(&dns, 54)?,
            answering(&other, 53)?,
        ];
        let mut greeting = Vec::new();
        for (workload, port) in [(&dns, "53"), (&client, "8080"), (&client, "8081")] {
            let mut running = python(workload, GREET, &[port])?;
            running.line_within("listening", SOON)?;
            greeting.push(running);
        }
        for to in [v4, v6] {
            expect(
                &client,
                to,
                53,
                &[
                    ("udp", "answered"),
                    ("udp-connected", "answered"),
                    ("raw-udp", "sent"),
                ],
            )?;
            let got = connect(&client, &to.to_string(), 53)?;
            ensure!(got == "connected", "TCP to {to}: {got}");
            expect(&client, to, 53, &[("raw-sctp", "EPERM"), ("icmp", "EPERM")])?;
            expect(
                &client,
                to,
                54,
                &[
                    ("udp", "EPERM"),
                    ("udp-connected", "EPERM"),
                    ("raw-udp", "EPERM"),
                    ("raw-syn", "EPERM"),
                ],
            )?;
            let got = connect(&client, &to.to_string(), 54)?;
            ensure!(got == "EPERM", "TCP to {to} port 54: {got}");
        }
        expect(&client, other.v4(0).ip(), 53, &[("udp", "EPERM")])?;
        expect(&client, "127.0.0.1".parse()?, 5, &[("raw-udp", "sent")])?;
        // Whoever calls is answered, through the sidecar and past it.
        for to in [
            client.v4(8080),
            client.v6(8080),
            client.v4(8081),
            client.v6(8081),
        ] {
            let (ip, port) = (to.ip().to_string(), to.port().to_string());
            let got = said(python(&other, CALL, &[&ip, &port])?)?;
            ensure!(got == "50000", "{to}: {got}");
        }
        Ok(())
    });
}

/// The links that a workload with fail rule `closed` has, as the kernel half's directory names them.
pub fn links(workload: &Workload<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for version in std::fs::read_dir(workload.world().bpffs())? {
        let Ok(workloads) = std::fs::read_dir(version?.path().join("workloads")) else {
            continue;
        };
        for directory in workloads.flatten() {
            let name = directory.file_name().to_string_lossy().into_owned();
            let name = name.split_once('-').map_or("", |(_, name)| name);
            if name.split('@').next() == Some(workload.name()) {
                for link in std::fs::read_dir(directory.path())? {
                    found.push(link?.file_name().to_string_lossy().into_owned());
                }
            }
        }
    }
    Ok(found)
}

//! Hostile neighbours at the enrolment socket: they get nothing, and harm nobody.

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::{TcpListener, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use sidecar_tests::world::{
    Agent, Pod, Running, Settings, World, agent::PROXY_UID, programs, wait,
};

use super::{SOON, connects};

/// Runs `work` as a process of its own would: in the network namespace and the cgroup of a pod. A thread will not do, a
/// cgroup is its process's.
fn script(pod: &Pod<'_>, name: &str, script: &str, agent: &Agent<'_>) -> Result<Running> {
    let python = programs::packaged("python3", "python3")?;
    let socket = agent.socket().display().to_string();
    pod.workload
        .start_in(&pod.app(), name, python, &["-c", script, &socket])
}

const GARBAGE: &str = r#"
import os, socket, sys
# What cannot be understood counts as a message, of which the pod has a bounded number in a time.
for n in range(60):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(10)
    try:
        kind = n % 5
        if kind == 0: s.sendall(os.urandom(1000))
        if kind == 1: s.sendall(b"GET / HTTP/1.1\r\n\r\n")
        if kind == 2: s.sendall(b"SCR\x01\xff\xff\xff\xff")
        if kind == 3: s.sendall(b"SCR\x01\x05\0\0\0hello")
        if kind == 4: s.sendall(b"SCR\x01\x20\0\0\0" + b'{"kind":"enrol","steering":null}')
        s.shutdown(socket.SHUT_WR)
        while s.recv(4096): pass
    except (BrokenPipeError, ConnectionResetError): pass
    s.close()
print("done", flush=True)
"#;

const FLOOD: &str = r#"
import socket, sys, time
end = time.time() + 5
held, refused = [], 0
while time.time() < end:
    s = socket.socket(socket.AF_UNIX); s.settimeout(10)
    try:
        s.connect(sys.argv[1])
        s.sendall(b"SCR\x01\xff\xff\0\0{")
    except OSError: refused += 1
    held.append(s)
    if len(held) > 500: held.pop(0).close()
print("done", refused, flush=True)
time.sleep(600)
"#;

/// Starts and never finishes, a byte at a time.
const SLOW: &str = r#"
import socket, sys, time
held = []
for _ in range(4):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)
started = time.time()
try:
    while time.time() - started < 60:
        for s in held: s.sendall(b"S" if time.time() - started < 1 else b"C")
        time.sleep(1)
except OSError: print("ended", time.time() - started, flush=True)
"#;

#[test]
fn garbage_floods_and_slow_senders_harm_nobody() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let evil = Pod::new(world, "evil", &Settings::default())?;
        let (before, memory) = (agent.descriptors()?, agent.memory_bytes()?);
        script(&evil, "garbage", GARBAGE, &agent)?.line_within("done", SOON)?;

        let mut flood = script(&evil, "flood", FLOOD, &agent)?;
        // Meanwhile others enrol, and are not made to wait for long.
        let started = Instant::now();
        // What connects from it is soon gone, as a Job is.
        let stays = Settings::default().set("lifecycle.exitWhenAlone", false);
        let b = Pod::enrolled(&agent, "b", &stays)?;
        let took = started.elapsed();
        println!("enrolled within {took:?} during a flood");
        ensure!(
            took < Duration::from_secs(20),
            "the flood held it up: {took:?}"
        );
        ensure!(connects(&b, &to)?, "it does not connect");
        flood.line_within("done", SOON)?;
        let most = agent.descriptors()?;
        ensure!(most < before + 40, "{most} descriptors, {before} before");
        drop(flood);

        let slow = script(&evil, "slow", SLOW, &agent)?.line_within("ended", SOON)?;
        println!("slow senders: {slow}");
        wait::until_true("the descriptors to be given back", SOON, || {
            // The other pod has a connection, and its network is watched.
            Ok(agent.descriptors()? <= before + 5)
        })?;
        let grown = agent.memory_bytes()?.saturating_sub(memory);
        ensure!(grown < 32 << 20, "the agent has grown by {grown} bytes");
        let log = agent.log()?;
        ensure!(
            log.lines().count() < 200,
            "it floods the log: {} lines",
            log.lines().count()
        );
        ensure!(connects(&a, &to)?, "the first pod suffered");
        ensure!(agent.workloads()?.len() == 2, "{:?}", agent.workloads()?);
        Ok(())
    });
}

/// Says what a sidecar says, with a descriptor, from the test's own process, and gives the answer.
fn enrol_from_here(agent: &Agent<'_>, handed: BorrowedFd<'_>) -> Result<String> {
    let steering = r#"{"name":"evil","failRule":"open","inboundCapture":"workload"}"#;
    let listeners = r#"{"workers":1,"outbound":1}"#;
    let text = format!(
        r#"{{"kind":"enrol","outboundPort":15001,"listeners":{listeners},"steering":{steering}}}"#
    );
    say(&agent.socket(), &text, Some(handed))
}

fn say(socket: &Path, text: &str, handed: Option<BorrowedFd<'_>>) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut frame = b"SCR\x01".to_vec();
    frame.extend_from_slice(&u32::try_from(text.len())?.to_le_bytes());
    frame.extend_from_slice(text.as_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if let Some(handed) = &handed {
        let handed = std::slice::from_ref(handed);
        ensure!(
            beside.push(SendAncillaryMessage::ScmRights(handed)),
            "no space"
        );
    }
    let sent = sendmsg(
        &stream,
        &[IoSlice::new(&frame)],
        &mut beside,
        SendFlags::empty(),
    );
    let sent = match sent {
        // Refused before it was asked: the answer is there.
        Err(Errno::PIPE | Errno::CONNRESET) => frame.len(),
        sent => sent?,
    };
    stream.write_all(frame.get(sent..).context("sent more than there is")?)?;
    let mut header = [0; 8];
    stream.read_exact(&mut header)?;
    let [_, _, _, _, length @ ..] = header;
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What python says for a pod of its own: each is refused for its own reason.
const PRETEND: &str = r#"
import array, json, socket, struct, sys
def ask(request, *fds):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(30)
    text = json.dumps(request).encode()
    frame = b"SCR\x01" + struct.pack("<I", len(text)) + text
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = s.sendmsg([frame], rights)
    if frame[sent:]: s.sendall(frame[sent:])
    try:
        head = s.recv(8, socket.MSG_WAITALL)
        if len(head) < 8: return "closed"
        return s.recv(struct.unpack("<I", head[4:])[0], socket.MSG_WAITALL).decode()
    except ConnectionResetError: return "closed"
steering = {"name": "evil", "failRule": "open", "inboundCapture": "workload"}
enrol = {"kind": "enrol", "outboundPort": 15001, "listeners": {"workers": 1, "outbound": 1}, "steering": steering}
def all(socket): return [socket.fileno()] * 5
tcp = socket.socket(); tcp.bind(("127.0.0.1", 0))
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
plain = open("/dev/null")
print("none:", ask(enrol))
print("file:", ask(enrol, *all(plain)))
print("udp:", ask(enrol, *all(udp)))
print("deaf:", ask(enrol, *all(tcp)))
print("two:", ask(enrol, listening.fileno(), listening.fileno()))
many = dict(enrol, steering=dict(steering, outboundExcludePorts=list(range(1, 60000))))
print("greedy:", ask(many, *all(listening)))
print("named:", ask(dict(enrol, steering=dict(steering, name="../../../etc")), *all(listening)))
print("take:", ask({"kind": "takeOver"}))
print("pass:", ask({"kind": "listeners", "workers": 1, "outbound": 1}, listening.fileno()))
print("done", flush=True)
"#;

#[test]
fn what_is_no_enrolment_is_refused_with_a_reason() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let evil = Pod::new(world, "evil", &Settings::default())?;
        let mut pretend = script(&evil, "pretend", PRETEND, &agent)?;
        pretend.line_within("done", SOON)?;
        let said = pretend.stdout()?;
        println!("{said}");
        for (ask, reason) in [
            ("none:", "0 descriptors"),
            ("file:", "no listening TCP socket"),
            ("udp:", "no listening TCP socket"),
            ("deaf:", "no listening TCP socket"),
            ("two:", "not as many"),
            ("greedy:", "port rules"),
            ("named:", "characters"),
            ("take:", "no other sidecar"),
            ("pass:", "nobody has asked"),
        ] {
            let line = said.lines().find(|line| line.starts_with(ask));
            let line = line.with_context(|| format!("no answer to {ask}"))?;
            ensure!(line.contains(reason), "{line}, not {reason}");
        }
        ensure!(agent.workloads()?.is_empty(), "something was attached");
        Ok(())
    });
}

#[test]
fn nobody_enrols_somebody_else() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let victim = Pod::enrolled(&agent, "victim", &Settings::default())?;
        // A process of the node itself, with a listener of the victim's namespace.
        let theirs = victim
            .workload
            .namespace()
            .enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let answer = enrol_from_here(&agent, theirs.as_fd())?;
        ensure!(answer.contains("refused"), "{answer}");
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        let answer = enrol_from_here(&agent, udp.as_fd())?;
        ensure!(answer.contains("refused"), "{answer}");

        // The victim's user, from another pod: it gets its own pod and no other.
        let mut same_user = Pod::new(world, "same-user", &Settings::default())?;
        same_user.launch(&agent)?;
        same_user.wait()?;
        let listed = agent.workloads()?;
        let cgroup_of = |name: &str| {
            let pod = listed.iter().find(|pod| pod["workload"] == name);
            pod.and_then(|pod| pod["cgroup"].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        ensure!(cgroup_of("same-user").ends_with("/same-user"), "{listed:?}");
        ensure!(cgroup_of("victim").ends_with("/victim"), "{listed:?}");

        // The application of the pod, with the sidecar's user: the sidecar is there, so it gets nothing.
        let mut victim = victim;
        let free = Settings::default()
            .set("listeners.outbound", 0)
            .set("listeners.inbound", 0)
            .set("listeners.admin", 0)
            .set("listeners.metrics", 0)
            .set("listeners.health", 0);
        victim.set_settings(&free);
        let usurper = victim.another(&agent, "app", PROXY_UID)?;
        wait::until_true("the refusal", SOON, || {
            Ok(usurper.stderr()?.contains("only one from the same cgroup"))
        })?;
        ensure!(victim.is_ready()?, "the sidecar suffered");

        // A cgroup within a pod is no pod of its own.
        let nested = victim.workload.cgroup().join("app").join("inner");
        std::fs::create_dir_all(nested.join("proxy"))?;
        let inner = victim.another(&agent, "app/inner/proxy", PROXY_UID)?;
        wait::until_true("the refusal", SOON, || {
            Ok(inner.stderr()?.contains("only one from the same cgroup"))
        })?;
        ensure!(agent.workloads()?.len() == 2, "{:?}", agent.workloads()?);
        Ok(())
    });
}

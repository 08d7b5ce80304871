//! Many clients that do not read: the sidecar stays within its memory limit, and others are served meanwhile.

use std::{fs, path::PathBuf, process, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::world::{Settings, World};

const CLIENTS: usize = 2500;
/// For its size they are as many as 10,000 are for the 512 MiB that the injector asks for.
const LIMIT_BYTES: u64 = 160 << 20;
const ROUNDS: u64 = 1000;

/// A control group of version 1's memory controller, as a container has one. Dropping it moves this process out of it and
/// removes it.
///
/// Version 2 would count the sockets' buffers of both ends, too, and its limit would be that of the applications.
struct MemoryLimit {
    path: PathBuf,
    /// Where this process was before.
    outside: PathBuf,
}

impl MemoryLimit {
    /// Moves this process, whose children stay in it when it leaves, into a control group with the limit.
    fn enter(name: &str, limit_bytes: u64) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let memory = right.starts_with("cgroup ") && right.contains("memory");
            memory.then(|| left.split(' ').nth(4))?
        });
        let mount = PathBuf::from(mount.context(
            "this test needs version 1 of the memory controller: mount -t cgroup -o memory none /sys/fs/cgroup/memory",
        )?);
        let memberships = fs::read_to_string("/proc/self/cgroup")?;
        let own = memberships
            .lines()
            .find_map(|line| line.split_once(":memory:"))
            .context("this process is in no memory control group")?
            .1;
        let outside = mount.join(own.trim_start_matches('/'));
        let made = Self {
            path: outside.join(name),
            outside,
        };
        fs::create_dir(&made.path).with_context(|| made.path.display().to_string())?;
        made.write("memory.limit_in_bytes", limit_bytes)?;
        made.write("cgroup.procs", process::id().into())?;
        Ok(made)
    }

    fn leave(&self) -> Result<()> {
        let procs = self.outside.join("cgroup.procs");
        Ok(fs::write(procs, process::id().to_string())?)
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        fs::write(self.path.join(file), value.to_string())
            .with_context(|| format!("writing {value} to {file}"))
    }

    /// How many processes were ended since the limit left nothing else.
    fn killed(&self) -> Result<u64> {
        let text = fs::read_to_string(self.path.join("memory.oom_control"))?;
        let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(killed.context("no count of kills")?.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let removed = self.leave().and_then(|()| Ok(fs::remove_dir(&self.path)?));
        if let Err(error) = removed {
            eprintln!("left behind: {}: {error:#}", self.path.display());
        }
    }
}

/// The server writes all that it can to clients of which none reads. Others ask another port meanwhile.
#[test]
fn clients_that_do_not_read_stay_within_the_memory_limit() -> Result<()> {
    let name = format!("sidecar-test-{}-memory", process::id());
    let limit = MemoryLimit::enter(&name, LIMIT_BYTES)?;
    World::play_alone(|world| {
        let settings = Settings::default()
            .protocol(7000, "tcp")
            .protocol(7001, "tcp");
        let b = world.workload("b")?.with_sidecar(&settings)?;
        limit.leave()?;
        let a = world.workload("a")?;
        for pod in [&a, &b] {
            // The machine's memory is not what is tested.
            pod.namespace()
                .sysctl("net.ipv4.tcp_wmem", "4096 16384 65536")?;
            pod.namespace()
                .sysctl("net.ipv4.tcp_rmem", "4096 65536 65536")?;
        }
        let dump: Value = b.get(15000, "/config_dump")?.body_if(200)?.parse()?;
        println!("{} {}", dump["memory"], dump["limits"]);
        ensure!(dump["memory"]["limit_bytes"] == LIMIT_BYTES, "{dump}");
        ensure!(
            dump["limits"]["connections"].as_u64() < Some(10_000),
            "{dump}"
        );
        let (to, echo) = (b.v4(7000).to_string(), b.v4(7001).to_string());
        let _serve = b.serving("serve", &["crowd-serve", "--listen", &to, "--write"])?;
        let _echo = b.serving("echo", &["echo", "--listen", &echo])?;
        let before = b.sidecar()?.memory_bytes()?.0;
        let number = CLIENTS.to_string();
        let arguments = ["crowd-join", "--to", &to, "--connections", &number];
        let mut clients = a.traffic("join", &arguments)?;
        clients.line_within("full", Duration::from_secs(120))?;
        let rounds = ROUNDS.to_string();
        let ask = ["ping-pong", "--to", &echo, "--rounds", &rounds];
        let served = a.run_traffic("ask", &ask)?.account::<Value>()?;
        // Until every client has been given all that it may have.
        std::thread::sleep(Duration::from_secs(5));
        let served_then = a.run_traffic("ask", &ask)?.account::<Value>()?;
        ensure!(limit.killed()? == 0, "the sidecar was ended for its memory");
        let (after, most) = b.sidecar()?.memory_bytes()?;
        let each = after.saturating_sub(before) / CLIENTS as u64 / 1024;
        println!(
            "{CLIENTS} clients: {each} KiB each, {} MiB at most; {served} {served_then}",
            most >> 20
        );
        ensure!(most < LIMIT_BYTES, "{most} bytes");
        ensure!(
            [&served, &served_then]
                .iter()
                .all(|asked| asked["rounds"] == ROUNDS),
            "{served} {served_then}"
        );
        let open = b.metrics()?.sum("sidecar_connections_open", &[]) as usize;
        ensure!(open >= CLIENTS, "{open} connections are left");
        b.sidecar()?.expect_no_panic()
    });
    drop(limit);
    Ok(())
}

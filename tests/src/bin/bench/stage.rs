//! One mode, set up: two workloads, servers beside one of them, and proxies beside both.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::world::{
    Running, Settings, Workload, World, cgroup::Cgroup, http, programs::packaged, wait,
};

use super::{
    identity::{CLIENT_ID, Identities, SERVER_ID},
    iptables,
    mode::Mode,
    nginx,
    peers::{envoy, script},
    ports::{self, PORTS, Server},
    programs::Programs,
    row::Bytes,
    settings,
};

/// Loading and verifying on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// Drains and some.
const END_LIMIT: Duration = Duration::from_secs(30);

/// The two workloads of one mode; their namespaces last for the whole run, what runs in them for a stage.
pub struct Pair<'w> {
    pub mode: Mode,
    pub client: Side<'w>,
    pub server: Side<'w>,
}

/// A workload, and where its programs run if no `sidecar run` arranges that.
pub struct Side<'w> {
    pub name: &'static str,
    pub workload: Workload<'w>,
    app: Cgroup,
    proxy: Cgroup,
}

/// What all stages of a run have in common.
pub struct Common<'a> {
    pub world: &'a World,
    pub programs: &'a Programs,
    pub identities: Identities,
    pub workers: Option<u32>,
    /// Sizes that nginx serves.
    pub bodies: Vec<Bytes>,
}

/// While it lives, the mode is in force.
pub struct Stage<'p, 'w> {
    pub pair: &'p mut Pair<'w>,
    pub proxies: Vec<Proxy>,
    // Ended in this order: see `end`.
    _servers: Vec<Running>,
}

/// A running proxy.
pub struct Proxy {
    pub side: &'static str,
    pub cgroup: PathBuf,
    /// None for one that the workload owns.
    running: Option<Running>,
}

impl<'w> Pair<'w> {
    pub fn new(world: &'w World, mode: &Mode) -> Result<Self> {
        let (client, server) = world.pair(&format!("{mode}-client"), &format!("{mode}-server"))?;
        let pair = Self {
            mode: mode.clone(),
            client: Side::new("client", client)?,
            server: Side::new("server", server)?,
        };
        for workload in [&pair.client.workload, &pair.server.workload] {
            // One connection per request needs many ports, and those of the last seconds again.
            workload
                .namespace()
                .sysctl("net.ipv4.ip_local_port_range", "16000 65535")?;
            workload.namespace().sysctl("net.ipv4.tcp_tw_reuse", "1")?;
            if mode.uses_iptables() {
                iptables::load(workload)?;
            }
        }
        Ok(pair)
    }

    pub fn server_address(&self) -> IpAddr {
        self.server.workload.v4(0).ip()
    }
}

impl<'w> Side<'w> {
    fn new(name: &'static str, workload: Workload<'w>) -> Result<Self> {
        let below = |group: &str| Cgroup::new(workload.cgroup().join(group));
        Ok(Self {
            name,
            app: below("app")?,
            proxy: below("proxy")?,
            workload,
        })
    }

    /// The control group of everything in this benchmark.
    pub fn world_cgroup(&self) -> &Path {
        self.workload.world().cgroup()
    }

    /// Where the application's processes run.
    pub fn app_cgroup(&self) -> PathBuf {
        match self.workload.sidecar() {
            Ok(sidecar) => sidecar.app_cgroup().to_owned(),
            Err(_) => self.app.path().to_owned(),
        }
    }

    /// Starts a proxy to which iptables bring the connections: its group is how they tell its own.
    fn start_behind_iptables(&self, program: &Path, arguments: &[&str]) -> Result<Proxy> {
        let setpriv = packaged("setpriv", "util-linux")?;
        let group = format!("--regid={}", iptables::PROXY_ID);
        let program = program.to_str().context("a path that is not text")?;
        let own = ["--clear-groups", &group, program];
        let running = self.workload.start_in(
            self.proxy.path(),
            "proxy",
            setpriv,
            &[&own, arguments].concat(),
        )?;
        Ok(Proxy {
            side: self.name,
            cgroup: self.proxy.path().to_owned(),
            running: Some(running),
        })
    }

    fn sidecar_run(&mut self, settings: &Settings) -> Result<Proxy> {
        self.workload.start_sidecar(settings)?;
        let sidecar = self.workload.sidecar()?;
        let group = sidecar.app_cgroup().parent().context("a control group")?;
        Ok(Proxy {
            side: self.name,
            cgroup: group.join("proxy"),
            running: None,
        })
    }

    fn sidecar_proxy(&self, common: &Common<'_>, settings: &Settings) -> Result<Proxy> {
        let text = settings.text(self.workload.name());
        let path = self.write(common, "yaml", &text)?;
        let proxy =
            self.start_behind_iptables(&common.programs.sidecar, &["proxy", "-c", &path])?;
        self.until_ready(proxy, 15021, "/healthz/ready")
    }

    fn envoy(&self, common: &Common<'_>, bootstrap: &Value) -> Result<Proxy> {
        let path = self.write(common, "json", &bootstrap.to_string())?;
        let program = common.programs.envoy.as_deref();
        let program = program.context("where Envoy is has to be said with --envoy")?;
        let arguments = [
            "-c",
            &path,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ];
        let proxy = self.start_behind_iptables(program, &arguments)?;
        self.until_ready(proxy, envoy::ADMIN_PORT, "/ready")
    }

    fn script(&self, common: &Common<'_>, script: &Path, facts: &Value) -> Result<Proxy> {
        let path = self.write(common, "facts.json", &facts.to_string())?;
        let mut proxy = self.start_behind_iptables(script, &[self.name, &path])?;
        if let Some(running) = &mut proxy.running {
            running.line("ready")?;
        }
        Ok(proxy)
    }

    /// A file of this side's own, as an argument.
    fn write(&self, common: &Common<'_>, kind: &str, text: &str) -> Result<String> {
        let name = format!("{}.{kind}", self.workload.name());
        let path = common.world.directory().join(name);
        fs::write(&path, text)?;
        let path = path.to_str().context("a path that is not text")?;
        Ok(path.to_owned())
    }

    /// The proxy, once it says on that port that it is ready.
    fn until_ready(&self, mut proxy: Proxy, port: u16, path: &str) -> Result<Proxy> {
        wait::until_true("the proxy to be ready", READY_LIMIT, || {
            proxy.expect_alive()?;
            let address = (Ipv4Addr::LOCALHOST, port).into();
            let namespace = self.workload.namespace();
            // Refused until it listens.
            let status = namespace.enter(|| http::status(address, path))?;
            Ok(status.is_ok_and(|status| status == 200))
        })?;
        Ok(proxy)
    }
}

impl Proxy {
    fn expect_alive(&mut self) -> Result<()> {
        if let Some(running) = &mut self.running {
            let ended = running.ended()?;
            ensure!(ended.is_none(), "the proxy ended ({ended:?}): {running}");
        }
        Ok(())
    }

    /// Its proportional set: its own pages, and its share of those that it shares.
    pub fn pss_kib(&self) -> Result<u64> {
        self.pids()?.iter().map(|pid| pss_kib(*pid)).sum()
    }

    /// The status of each of its threads.
    pub fn thread_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for pid in self.pids()? {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("a proxy is gone")?;
            files.extend(tasks.filter_map(|task| Some(task.ok()?.path().join("status"))));
        }
        Ok(files)
    }

    /// Its processes: all that are in its control group.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let listed = fs::read_to_string(self.cgroup.join("cgroup.procs"))?;
        listed
            .lines()
            .map(|pid| pid.parse().context("a pid"))
            .collect()
    }
}

fn pss_kib(pid: u32) -> Result<u64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading smaps_rollup")?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let pss = pss.context("no Pss in smaps_rollup")?;
    Ok(pss.trim().trim_end_matches(" kB").trim().parse()?)
}

impl<'p, 'w> Stage<'p, 'w> {
    /// Starts proxies, then servers: these are steered from the first.
    pub fn start(pair: &'p mut Pair<'w>, common: &Common<'_>) -> Result<Self> {
        let proxies = start_proxies(pair, common)
            .with_context(|| format!("setting up the mode {}", pair.mode))?;
        let servers = start_servers(pair, common)?;
        Ok(Self {
            pair,
            proxies,
            _servers: servers,
        })
    }

    /// Ends everything in order.
    pub fn end(mut self) -> Result<()> {
        for proxy in &mut self.proxies {
            proxy.expect_alive()?;
            if let Some(running) = proxy.running.take() {
                running.stop(END_LIMIT)?;
            }
        }
        // Processes of the application first: `sidecar run` ends what is left of it, but takes its time.
        self._servers.clear();
        for side in [&mut self.pair.client, &mut self.pair.server] {
            if let Ok(sidecar) = side.workload.take_sidecar() {
                sidecar.expect_no_panic()?;
                sidecar.stop()?.success()?;
            }
        }
        Ok(())
    }
}

fn start_proxies(pair: &mut Pair<'_>, common: &Common<'_>) -> Result<Vec<Proxy>> {
    let mode = pair.mode.clone();
    let binary = &common.programs.sidecar;
    let address = pair.server_address();
    let client = settings::client(&mode, address, &common.identities, common.workers);
    let server = settings::server(&mode, &common.identities, common.workers);
    match &mode {
        Mode::Direct => Ok(Vec::new()),
        Mode::Iptables => Ok(vec![
            pair.server.sidecar_proxy(common, &server)?,
            pair.client.sidecar_proxy(common, &client)?,
        ]),
        Mode::Steer | Mode::Redirect => {
            let proxies = vec![
                pair.server.sidecar_run(&server.binary(binary))?,
                pair.client.sidecar_run(&client.binary(binary))?,
            ];
            if mode == Mode::Redirect {
                redirects(&pair.client.workload)?;
            }
            Ok(proxies)
        }
        Mode::Envoy => Ok(vec![
            pair.server
                .envoy(common, &envoy::server(&common.identities.server))?,
            pair.client
                .envoy(common, &envoy::client(&common.identities.client))?,
        ]),
        Mode::Script(script) => {
            let facts =
                |identity, peer| script::facts(address, identity, peer, common.world.directory());
            let server = facts(&common.identities.server, CLIENT_ID);
            let client = facts(&common.identities.client, SERVER_ID);
            Ok(vec![
                pair.server.script(common, script, &server)?,
                pair.client.script(common, script, &client)?,
            ])
        }
    }
}

/// Without redirect the mode would measure steering once more.
fn redirects(workload: &Workload<'_>) -> Result<()> {
    let log = workload.sidecar()?.log()?;
    ensure!(
        !log.contains("\"redirect\":\"off\"") && !log.contains("redirect=\"off\""),
        "redirect does not work on this kernel; `sidecar check` says why:\n{log}"
    );
    Ok(())
}

fn start_servers(pair: &Pair<'_>, common: &Common<'_>) -> Result<Vec<Running>> {
    let workload = &pair.server.workload;
    let cgroup = pair.server.app_cgroup();
    let directory = common.world.directory();
    let load = &common.programs.load;
    let start = |name: &str, program: &str, server: Server| -> Result<Running> {
        let addresses: Vec<String> = ports::served_by(server)
            .map(|port| workload.v4(port.number).to_string())
            .collect();
        let mut arguments = vec![program];
        for address in &addresses {
            arguments.extend(["--listen", address]);
        }
        workload.start_in(&cgroup, name, load, &arguments)
    };
    let servers = vec![
        nginx::start(workload, &cgroup, directory, &common.bodies)?,
        start("sink", "sink", Server::Sink)?,
        start("unary", "unary", Server::Unary)?,
    ];
    let all = PORTS.map(|port| format!(":{:04X} ", port.number));
    wait::until_true("the servers to listen", READY_LIMIT, || {
        let table = workload.namespace().proc_net("tcp")?;
        // State 0A is LISTEN, its remote address all zero.
        let listening: Vec<&str> = table
            .lines()
            .filter(|line| line.contains(":0000 0A "))
            .collect();
        Ok(all
            .iter()
            .all(|port| listening.iter().any(|line| line.contains(port.as_str()))))
    })?;
    Ok(servers)
}

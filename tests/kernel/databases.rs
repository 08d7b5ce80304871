//! Databases, whose clients negotiate TLS inside their own protocol: it passes through both sidecars, inside the mutual TLS
//! between them, and through a permissive port.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{
    Running, Settings, Workload, World, programs::packaged, workload::LIMIT,
};

use crate::{mesh, peers};

/// A server that speaks first must not wait for a client that does not: who waits for the client's first bytes does so for
/// 10 s or more.
const STALL_LIMIT: Duration = Duration::from_secs(8);
const MARIADB: u16 = 3306;
const POSTGRES: u16 = 5432;
/// The account that Debian's package makes; the server refuses to run as root.
const POSTGRES_USER: &str = "postgres";

/// `a` calls databases of `b`: with mutual TLS between their sidecars, or without sidecar through a permissive port.
fn pods(world: &World, mutual: bool) -> Result<(Workload<'_>, Workload<'_>)> {
    let (mut a, mut b) = (world.workload("a")?, world.workload("b")?);
    let authority = mesh::authority(&a)?;
    let database = "ns/data/sa/database";
    let settings = mesh::identity(&authority, database);
    if !mutual {
        b.start_sidecar(&settings.set("inbound.mtls", "permissive"))?;
        return Ok((a, b));
    }
    let service = mesh::service(&b, database, &[MARIADB, POSTGRES]);
    a.start_sidecar(&mesh::identity(&authority, "ns/shop/sa/web").push("services", service))?;
    b.start_sidecar(&settings.set("inbound.mtls", "strict"))?;
    Ok((a, b))
}

/// All connections to `b` were what they are meant to be.
fn expect_security(b: &Workload<'_>, mutual: bool) -> Result<()> {
    let metrics = b.metrics()?;
    let of = |kind: &str| {
        let label = format!("security=\"{kind}\"");
        metrics.sum("sidecar_inbound_security_total", &[&label])
    };
    let (tls, none) = (of("mutual_tls"), of("none"));
    match mutual {
        true => ensure!(tls >= 1.0 && none == 0.0, "{tls} and {none}"),
        false => ensure!(tls == 0.0 && none >= 1.0, "{tls} and {none}"),
    }
    b.sidecar()?.expect_no_panic()
}

/// The database's own certificate, which signed itself.
struct Papers {
    certificate: PathBuf,
    key: PathBuf,
}

impl Papers {
    fn new(directory: &Path, server: &Workload<'_>) -> Result<Self> {
        let name = server.v4(0).ip().to_string();
        let signed = rcgen::generate_simple_self_signed(vec![name])?;
        let papers = Self {
            certificate: directory.join("database.crt"),
            key: directory.join("database.key"),
        };
        fs::write(&papers.certificate, signed.cert.pem())?;
        fs::write(&papers.key, signed.signing_key.serialize_pem())?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&papers.key, private)?;
        Ok(papers)
    }
}

/// MariaDB, ready; `more` are further options.
fn mariadbd(b: &Workload<'_>, directory: &Path, more: &[&str]) -> Result<Running> {
    let data = format!("--datadir={}", directory.join("data").display());
    let install = packaged("mariadb-install-db", "mariadb-server")?;
    let arguments = [
        "--no-defaults",
        "--user=root",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        &data,
    ];
    b.run("install", install, &arguments)?;
    let socket = format!("--socket={}", directory.join("socket").display());
    let to = b.v4(MARIADB);
    let bind = format!("--bind-address={}", to.ip());
    let server = packaged("mariadbd", "mariadb-server")?;
    let arguments = [
        "--no-defaults",
        "--user=root",
        "--skip-grant-tables",
        "--skip-name-resolve",
        &data,
        &socket,
        &bind,
        "--port=3306",
    ];
    let server = b.start("mariadbd", server, &[&arguments, more].concat())?;
    peers::listens(b, to)?;
    Ok(server)
}

/// What MariaDB's client is answered.
fn mariadb_asks(
    a: &Workload<'_>,
    b: &Workload<'_>,
    options: &[&str],
    statement: &str,
) -> Result<String> {
    let host = format!("--host={}", b.v4(0).ip());
    let arguments = [
        "--no-defaults",
        &host,
        "--port=3306",
        "--user=root",
        "--batch",
        "--skip-column-names",
    ];
    let client = packaged("mariadb", "mariadb-client")?;
    let arguments = [&arguments, options, &["-e", statement]].concat();
    Ok(a.run("mariadb", client, &arguments)?.stdout)
}

/// It greets before the client says a word.
#[test]
fn mariadb() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        let directory = tempfile::tempdir()?;
        let server = mariadbd(&b, directory.path(), &[])?;
        let started = Instant::now();
        let asked = mariadb_asks(&a, &b, &[], "select 6 * 7")?;
        ensure!(asked == "42\n", "{asked:?}");
        ensure!(
            started.elapsed() < STALL_LIMIT,
            "the greeting stalled: {:?}",
            started.elapsed()
        );
        let statement = "create database d; use d; create table d.t as select seq, repeat('x', 1000) as x from seq_1_to_5000; \
                         select count(*), sum(length(x)), sum(seq) from d.t";
        let asked = mariadb_asks(&a, &b, &[], statement)?;
        ensure!(asked == "5000\t5000000\t12502500\n", "{asked:?}");
        // A large answer.
        let asked = mariadb_asks(&a, &b, &[], "select x from d.t")?;
        ensure!(asked.len() == 5000 * 1001, "{} bytes", asked.len());
        server.stop(LIMIT)?;
        a.sidecar()?.expect_no_panic()?;
        b.sidecar()?.expect_no_panic()
    });
}

fn mariadb_tls(mutual: bool) {
    World::play(|world| {
        let (a, b) = pods(world, mutual)?;
        let directory = tempfile::tempdir()?;
        let papers = Papers::new(directory.path(), &b)?;
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let certificate = option("ssl-cert", &papers.certificate);
        let server = mariadbd(
            &b,
            directory.path(),
            &[&certificate, &option("ssl-key", &papers.key)],
        )?;
        let roots = option("ssl-ca", &papers.certificate);
        let options = ["--ssl", roots.as_str()];
        let version = mariadb_asks(&a, &b, &options, "show status like 'Ssl_version'")?;
        ensure!(version == "Ssl_version\tTLSv1.3\n", "{version:?}");
        let bulk = "use mysql; select repeat('x', 1000) from seq_1_to_5000";
        let asked = mariadb_asks(&a, &b, &options, bulk)?;
        ensure!(asked.len() == 5000 * 1001, "{} bytes", asked.len());
        let plain = mariadb_asks(&a, &b, &["--skip-ssl"], "show status like 'Ssl_version'")?;
        ensure!(plain == "Ssl_version\t\n", "{plain:?}");
        server.stop(LIMIT)?;
        expect_security(&b, mutual)
    });
}

#[test]
fn mariadbs_own_tls_inside_mutual_tls() {
    mariadb_tls(true);
}

#[test]
fn mariadbs_own_tls_through_a_permissive_port() {
    mariadb_tls(false);
}

/// A program of the one version of PostgreSQL that is installed.
fn postgres_program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut programs: Vec<PathBuf> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(name)))
        .filter(|program| program.is_file())
        .collect();
    programs.sort();
    programs
        .pop()
        .with_context(|| format!("{name} is missing: apt-get install postgresql"))
}

fn id(option: &str) -> Result<u32> {
    let output = Command::new("id").args([option, POSTGRES_USER]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    said.parse()
        .with_context(|| format!("there is no user {POSTGRES_USER}: apt-get install postgresql"))
}

/// PostgreSQL, ready, which takes nothing but TLS.
fn postgres(b: &Workload<'_>, directory: &Path, papers: &Papers) -> Result<Running> {
    let (user, group) = (id("-u")?, id("-g")?);
    for path in [directory, &papers.certificate, &papers.key] {
        chown(path, Some(user), Some(group))?;
    }
    let text = |path: &Path| path.display().to_string();
    let data = directory.join("data");
    let (initdb, server) = (postgres_program("initdb")?, postgres_program("postgres")?);
    let privileges = [
        "--reuid",
        POSTGRES_USER,
        "--regid",
        POSTGRES_USER,
        "--clear-groups",
    ];
    let setpriv = packaged("setpriv", "util-linux")?;
    let (initdb, server, place) = (text(&initdb), text(&server), text(&data));
    let arguments = [
        initdb.as_str(),
        "-D",
        &place,
        "-U",
        "test",
        "-A",
        "trust",
        "--no-sync",
        "--no-locale",
    ];
    b.run(
        "initdb",
        &setpriv,
        &[&privileges, arguments.as_slice()].concat(),
    )?;
    fs::write(data.join("pg_hba.conf"), "hostssl all all all trust\n")?;
    let to = b.v4(POSTGRES);
    let settings = [
        format!("listen_addresses={}", to.ip()),
        format!("port={}", to.port()),
        format!("unix_socket_directories={}", directory.display()),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", papers.certificate.display()),
        format!("ssl_key_file={}", papers.key.display()),
        "fsync=off".to_owned(),
    ];
    let settings = settings.iter().flat_map(|setting| ["-c", setting]);
    let arguments: Vec<&str> = [server.as_str(), "-D", &place]
        .into_iter()
        .chain(settings)
        .collect();
    let running = b.start(
        "postgres",
        &setpriv,
        &[&privileges, arguments.as_slice()].concat(),
    )?;
    peers::listens(b, to)?;
    Ok(running)
}

fn postgres_tls(mutual: bool) {
    World::play(|world| {
        let (a, b) = pods(world, mutual)?;
        let directory = tempfile::tempdir()?;
        let papers = Papers::new(directory.path(), &b)?;
        let server = postgres(&b, directory.path(), &papers)?;
        // The client has no need of the server's directory, which is closed to others.
        let connection = |mode: &str| {
            let (ip, roots) = (b.v4(0).ip(), papers.certificate.display());
            format!(
                "host={ip} port={POSTGRES} user=test dbname=postgres sslmode={mode} sslrootcert={roots}"
            )
        };
        let psql = postgres_program("psql")?;
        let asks = |mode: &str, statement: &str| {
            let arguments = ["-X", "-A", "-t", "-c", statement, &connection(mode)];
            a.start("psql", &psql, &arguments)?.finish(LIMIT)
        };
        let own = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
        for mode in ["require", "verify-full"] {
            let asked = asks(mode, own)?.success()?;
            ensure!(asked.stdout == "t|TLSv1.3\n", "{mode}: {asked:?}");
        }
        let bulk = "select repeat('x', 1000) from generate_series(1, 5000)";
        let asked = asks("require", bulk)?.success()?;
        ensure!(
            asked.stdout.len() == 5000 * 1001,
            "{} bytes",
            asked.stdout.len()
        );
        // It is the server that refuses plaintext, in its own words.
        let plain = asks("disable", own)?;
        ensure!(
            !plain.status.success() && plain.stderr.contains("pg_hba.conf"),
            "{plain:?}"
        );
        // Its fast shutdown; SIGTERM would wait for clients.
        server.signal(rustix::process::Signal::INT)?;
        server.finish(LIMIT)?;
        expect_security(&b, mutual)
    });
}

#[test]
fn postgresqls_own_tls_inside_mutual_tls() {
    postgres_tls(true);
}

#[test]
fn postgresqls_own_tls_through_a_permissive_port() {
    postgres_tls(false);
}

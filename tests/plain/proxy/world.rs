//! A running proxy, its clients and its servers, all on loopback.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use sidecar_userspace::{
    config::watch::SnapshotHandle,
    connection::{Direction, listen::Listeners, origin::OriginSource},
    model::{AccessLog, AccessLogFormat, Snapshot},
    proxy::{Proxy, ProxyHandle},
    telemetry::metrics::Metrics,
    tls::mesh::MeshHandle,
};

/// Longer than anything that the tests wait for, on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What is meant to happen at once does so within this: far longer than it takes, far shorter than [`PATIENCE`].
pub const SOON: Duration = Duration::from_secs(10);

/// The destination of every connection, in both directions.
#[derive(Debug)]
struct Fixed(Mutex<Option<SocketAddr>>);

impl OriginSource for Fixed {
    fn original(
        &self,
        _: Direction,
        _: &tokio::net::TcpStream,
        _: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        Ok(*self.0.lock().unwrap())
    }
}

/// A proxy whose connections all go to one destination.
pub struct World {
    pub handle: ProxyHandle,
    origin: Arc<Fixed>,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

/// The built-in configuration on free ports.
pub fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::builtin();
    snapshot.workers = NonZeroUsize::new(2).unwrap();
    snapshot.listeners.outbound = 0;
    snapshot.listeners.steered = 0;
    snapshot.listeners.inbound = 0;
    snapshot.listeners.admin = 0;
    snapshot.listeners.metrics.set_port(0);
    snapshot.listeners.health.set_port(0);
    snapshot.timeouts.drain = Duration::from_secs(2);
    snapshot
}

impl World {
    pub fn new(destination: SocketAddr) -> Self {
        Self::with(snapshot(), destination)
    }

    pub fn with(snapshot: Snapshot, destination: SocketAddr) -> Self {
        Self::start(snapshot, Some(destination), None)
    }

    /// With an identity.
    pub fn secured(snapshot: Snapshot, destination: SocketAddr, mesh: Arc<MeshHandle>) -> Self {
        Self::start(snapshot, Some(destination), Some(mesh))
    }

    /// Clients dial the proxy itself.
    pub fn explicit(snapshot: Snapshot) -> Self {
        Self::start(snapshot, None, None)
    }

    fn start(
        mut snapshot: Snapshot,
        destination: Option<SocketAddr>,
        mesh: Option<Arc<MeshHandle>>,
    ) -> Self {
        // Both ends and the proxy are this process.
        sidecar_userspace::lifecycle::descriptors::raise_limit();
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("access.log");
        snapshot.access_log = AccessLog {
            format: AccessLogFormat::Json,
            path: log.clone(),
        };
        let listeners =
            Listeners::bind(&snapshot.listeners, &snapshot.timeouts, snapshot.workers).unwrap();
        let origin = Arc::new(Fixed(Mutex::new(destination)));
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut proxy = Proxy::new(SnapshotHandle::new(snapshot, None), listeners, metrics);
        proxy.origin = origin.clone();
        proxy.mesh = mesh;
        let handle = proxy.start().unwrap();
        wait_until("the proxy is ready", || handle.readiness().is_ready());
        Self {
            handle,
            origin,
            log,
            _directory: directory,
        }
    }

    pub fn retarget(&self, destination: SocketAddr) {
        *self.origin.0.lock().unwrap() = Some(destination);
    }

    /// A client's connection, as if steered to the outbound listener.
    pub fn connect(&self) -> TcpStream {
        self.try_connect().unwrap()
    }

    /// As [`Self::connect`], where the proxy may refuse: its reset can come before `connect` has returned.
    pub fn try_connect(&self) -> io::Result<TcpStream> {
        client(SocketAddr::from((
            [127, 0, 0, 1],
            self.handle.ports().outbound,
        )))
    }

    pub fn connect_inbound(&self) -> TcpStream {
        let inbound = SocketAddr::from(([127, 0, 0, 1], self.handle.ports().inbound));
        client(inbound).unwrap()
    }

    /// Connects and expects a reset, be it before `connect` has returned or after.
    pub fn expect_refusal(&self) {
        match self.try_connect() {
            Ok(mut stream) => expect_reset(&mut stream),
            Err(error) => assert!(is_reset(&error), "expected a reset, got {error}"),
        }
    }

    /// A metric's value, summed over the label sets that contain all of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.handle.metrics().exposition().unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name));
        let matching = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        matching
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Connections that have a record, of whatever outcome.
    pub fn recorded(&self) -> usize {
        self.metric("sidecar_connections_total{", &[]) as usize
    }

    /// Drains, and returns the lines of the access log.
    pub fn finish(self) -> Vec<Value> {
        self.handle.drain();
        self.handle.join();
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// As [`Self::finish`], where there must be one line only.
    pub fn finish_with_one(self) -> Value {
        let mut lines = self.finish();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        lines.remove(0)
    }
}

fn client(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An address that refuses, and goes on doing so: the port stays taken.
pub fn refusing() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Until the process ends.
    std::mem::forget(socket);
    address
}

/// A server that runs `serve` on a thread for each connection, for as long as the test runs.
pub fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                serve(stream);
            });
        }
    });
    address
}

/// Sends back what it gets, and ends when the client does.
pub fn echo() -> SocketAddr {
    server(|mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let _ = io::copy(&mut stream, &mut writer);
    })
}

/// Sends `line` and expects it back.
pub fn ping(stream: &mut TcpStream, line: &[u8]) {
    stream.write_all(line).unwrap();
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, line);
}

/// Closes with RST.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Reads until the connection ends, which must be by a reset.
pub fn expect_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(error) if is_reset(&error) => {}
        other => panic!("expected a reset, got {other:?} after {} bytes", rest.len()),
    }
}

/// `ECONNABORTED` is what `connect` says where somebody else has been told of the reset.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
    )
}

pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

//! The HTTP relay over real sockets: raw clients, raw upstreams, and this module between them.

mod framing;
mod http2;
mod lifecycle;
mod messages;
mod routing;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use crate::{
    connection::{ConnectionContext, Direction, Recorder, Worker, route},
    lifecycle::drain::Drain,
    model::{Endpoint, EndpointAddress, Protocol, Service, ServicePort, Snapshot},
    telemetry::metrics::Metrics,
};

/// Longer than anything takes, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// One worker that serves HTTP on a port of its own, until the test's process ends.
struct Proxy {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    /// Starts the drain with this deadline.
    drain: std::sync::mpsc::Sender<Duration>,
}

impl Proxy {
    /// Outbound; every connection was on its way to `original`.
    fn to(original: SocketAddr) -> Self {
        Self::start(Snapshot::builtin(), Direction::Outbound, Some(original))
    }

    fn start(snapshot: Snapshot, direction: Direction, original: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let (drain, drained) = std::sync::mpsc::channel();
        let (snapshot, shared) = (Arc::new(snapshot), metrics.clone());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let drain = Drain::default();
            let signal = drain.signal();
            thread::spawn(move || {
                if let Ok(deadline) = drained.recv() {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build();
                    runtime.unwrap().block_on(drain.run(deadline));
                } else {
                    thread::park();
                }
            });
            let mut worker = Worker::for_tests();
            worker.recorder = Recorder::for_tests(&shared);
            worker.drain = signal;
            let worker = Rc::new(worker);
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (tcp, peer) = listener.accept().await.unwrap();
                    let context = Rc::new(ConnectionContext {
                        snapshot: snapshot.clone(),
                        direction,
                        peer,
                        original,
                        source: crate::connection::Source::default(),
                        peer_identity: None,
                        tls: None,
                        recorder: worker.recorder.clone(),
                        drain: worker.drain.clone(),
                        worker: worker.clone(),
                        guard: worker.drain.guard(),
                    });
                    let target = route::route(&context);
                    tokio::task::spawn_local(async move {
                        super::serve(tcp.into(), None, target, context).await;
                    });
                }
            });
        });
        Self {
            address,
            metrics,
            drain,
        }
    }

    fn connect(&self) -> Client {
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        Client {
            tcp,
            read: Vec::new(),
        }
    }

    /// Sends one request on a connection of its own and gives all that comes back.
    fn exchange(&self, request: &str) -> String {
        let mut client = self.connect();
        client.send(request);
        client.rest()
    }

    /// Requests recorded so far with this reason.
    fn recorded(&self, reason: &str) -> u64 {
        let exposition = self.metrics.exposition().unwrap();
        let wanted = format!("reason=\"{reason}\"");
        let lines = exposition.lines();
        lines
            .filter(|line| line.starts_with("sidecar_requests_total") && line.contains(&wanted))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Waits for a record; they are written when a connection's task comes to it.
    fn await_recorded(&self, reason: &str, count: u64) {
        let end = std::time::Instant::now() + PATIENCE;
        while self.recorded(reason) != count {
            assert!(
                std::time::Instant::now() < end,
                "no {count} records of {reason}:\n{}",
                self.metrics.exposition().unwrap()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Client {
    tcp: TcpStream,
    /// Read and not yet looked at.
    read: Vec<u8>,
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.tcp.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads until the end of `needle` and gives what came up to it.
    fn until(&mut self, needle: &str) -> String {
        loop {
            let found = self
                .read
                .windows(needle.len())
                .position(|window| window == needle.as_bytes());
            if let Some(at) = found {
                let rest = self.read.split_off(at + needle.len());
                let taken = std::mem::replace(&mut self.read, rest);
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let mut buffer = [0; 65536];
            let count = self.tcp.read(&mut buffer).unwrap_or_else(|error| {
                panic!(
                    "no {needle:?} in {:?}: {error}",
                    String::from_utf8_lossy(&self.read)
                )
            });
            assert!(
                count > 0,
                "no {needle:?} in {:?}",
                String::from_utf8_lossy(&self.read)
            );
            self.read.extend_from_slice(&buffer[..count]);
        }
    }

    /// Everything up to the end of the stream.
    fn rest(&mut self) -> String {
        self.try_rest().unwrap()
    }

    fn try_rest(&mut self) -> std::io::Result<String> {
        self.tcp.read_to_end(&mut self.read)?;
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned())
    }

    fn shut(&self) {
        self.tcp.shutdown(Shutdown::Write).unwrap();
    }
}

/// A server whose connections are each given to `serve` on a thread of its own, with their number from 0.
fn upstream(serve: impl Fn(usize, Client) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, tcp) in listener.incoming().enumerate() {
            let (tcp, serve) = (tcp.unwrap(), serve.clone());
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            thread::spawn(move || {
                let client = Client {
                    tcp,
                    read: Vec::new(),
                };
                serve(number, client);
            });
        }
    });
    address
}

/// A server that answers each request without body with its own head, and counts in `x-connection`.
fn echo() -> SocketAddr {
    upstream(|number, mut client| {
        while let Some(head) = client.try_until_head() {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nx-connection: {number}\r\ncontent-length: {}\r\n\r\n{head}",
                head.len()
            );
            client.send(answer);
        }
    })
}

impl Client {
    /// The next head; `None` at the end of the stream.
    fn try_until_head(&mut self) -> Option<String> {
        let mut first = [0];
        if self.read.is_empty() && self.tcp.peek(&mut first).ok()? == 0 {
            return None;
        }
        Some(self.until("\r\n\r\n"))
    }
}

fn service(name: &str, endpoint: SocketAddr, protocol: Protocol) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        hosts: vec![format!("{name}.example")],
        addresses: vec![],
        ports: vec![ServicePort { port: 80, protocol }],
        endpoints: vec![Endpoint {
            address: EndpointAddress::Ip(endpoint.ip()),
            port: Some(endpoint.port()),
            weight: 1,
        }],
        connect_timeout: PATIENCE,
        tls: None,
    })
}

/// An address on which nobody listens, and nobody will: the port stays taken.
fn nobody() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Until the process ends.
    std::mem::forget(socket);
    address
}

/// What a test and its upstream wait for, one after the other.
fn signal() -> (
    std::sync::mpsc::Sender<()>,
    std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
) {
    let (sender, receiver) = std::sync::mpsc::channel();
    (sender, receiver.into())
}

fn await_signal(signal: &std::sync::Mutex<std::sync::mpsc::Receiver<()>>) {
    signal.lock().unwrap().recv_timeout(PATIENCE).unwrap();
}

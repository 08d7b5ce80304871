//! Certificates and roots are replaced under load, and nobody notices.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sidecar_userspace::{
    identity::{
        ca::{self, Ca},
        source::Source,
    },
    lifecycle::readiness::Readiness,
    model::{Identity, IdentitySource, Workload},
    telemetry::metrics::Metrics,
    tls::{MinVersion, mesh::MeshHandle},
};

use super::{
    authority::{Authority, Says},
    pair::{CLIENT, Pair, SERVER},
};
use crate::proxy::world::{ping, server, wait_until};

/// Requests a second, all threads together.
const RATE: u32 = 500;
const THREADS: u32 = 5;

/// Answers requests, and sends back what is none.
fn application() -> std::net::SocketAddr {
    server(|mut socket| {
        let mut said = [0; 1024];
        while let Ok(read @ 1..) = socket.read(&mut said) {
            let answer = match said.starts_with(b"GET ") {
                true => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                false => &said[..read],
            };
            if socket.write_all(answer).is_err() {
                return;
            }
        }
    })
}

/// One request on a connection that is kept; whether it was answered.
fn ask(client: &mut TcpStream) -> std::io::Result<bool> {
    client.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 512];
    while !answer.ends_with(b"hi") {
        match client.read(&mut part)? {
            0 => return Ok(false),
            read => answer.extend_from_slice(&part[..read]),
        }
    }
    Ok(answer.starts_with(b"HTTP/1.1 200 OK\r\n"))
}

#[test]
fn leaf_and_root_are_replaced_under_500_requests_a_second() {
    let (old, new) = (Authority::new(), Authority::new());
    let pair = Arc::new(Pair::with(&old, application(), SERVER, |snapshot| {
        // So that new connections are needed all the time.
        snapshot.timeouts.http_idle = Duration::from_millis(300);
    }));
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut threads = Vec::new();
    for _ in 0..THREADS {
        let (pair, stop, asked, failed) =
            (pair.clone(), stop.clone(), asked.clone(), failed.clone());
        threads.push(thread::spawn(move || {
            let mut client = pair.client.connect();
            let start = Instant::now();
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let due = Duration::from_secs(turn) * THREADS / RATE;
                thread::sleep(due.saturating_sub(start.elapsed()));
                asked.fetch_add(1, Ordering::Relaxed);
                if !matches!(ask(&mut client), Ok(true)) {
                    failed.fetch_add(1, Ordering::Relaxed);
                    client = pair.client.connect();
                }
            }
        }));
    }
    // One opaque connection lives through it all.
    let mut long = pair.client.connect();
    ping(&mut long, b"\x01still there?");
    let steps: [(&Authority, &[&Authority]); 5] = [
        (&old, &[&old]),
        (&old, &[&old, &new]),
        (&new, &[&old, &new]),
        (&new, &[&new]),
        (&new, &[&new]),
    ];
    let start = Instant::now();
    for (signer, roots) in steps {
        // Not at the same time: sidecars renew when they please.
        pair.client_mesh
            .replace(signer.material(CLIENT, roots), MinVersion::Tls13)
            .unwrap();
        thread::sleep(Duration::from_millis(300));
        ping(&mut pair.client.connect(), b"\x01fresh");
        pair.server_mesh
            .replace(signer.material(SERVER, roots), MinVersion::Tls13)
            .unwrap();
        thread::sleep(Duration::from_millis(500));
        ping(&mut pair.client.connect(), b"\x01fresh");
    }
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    ping(&mut long, b"\x01still there!");
    let (asked, failed) = (
        asked.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed),
    );
    let rate = asked as f64 / took.as_secs_f64();
    println!("{asked} requests, {rate:.0}/s, {failed} failed");
    assert_eq!(failed, 0, "of {asked}");
    assert!(rate > 0.8 * f64::from(RATE), "{rate:.0} requests a second");
    let handshakes = pair
        .client
        .metric("sidecar_tls_handshakes_total", &["\"ok\""]);
    assert!(handshakes >= 15.0, "{handshakes} handshakes");
    assert_eq!(
        handshakes,
        pair.client.metric("sidecar_tls_handshakes_total", &[])
    );
}

#[test]
fn files_are_watched_and_a_bad_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let authority = Authority::new();
    std::fs::write(at("root.crt"), &authority.root_pem).unwrap();
    let (certificate, private_key) = authority
        .sign(&Says::id(CLIENT))
        .write(directory.path(), "a");
    let identity = Identity {
        source: IdentitySource::Files {
            certificate,
            private_key: private_key.clone(),
            trust_bundle: at("root.crt"),
            owner_only: true,
        },
        federation: vec![],
        min_version: MinVersion::Tls13,
    };
    let handle = MeshHandle::new();
    let metrics = Arc::new(Metrics::new().unwrap());
    let readiness = Readiness::default();
    let ready = || readiness.token("identity");
    let start = || Source::start(&identity, &Workload::default(), &handle, &metrics, ready());
    let chmod = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&private_key, PermissionsExt::from_mode(mode)).unwrap();
    };
    chmod(0o644);
    let refused = start().unwrap_err().to_string();
    assert!(
        refused.contains("mode 0644") && refused.contains("chmod 600"),
        "{refused}"
    );
    chmod(0o600);
    let _source = start().unwrap();
    let serial = || handle.load().unwrap().material.svid.facts.serial.clone();
    let first = serial();
    authority
        .sign(&Says::id(CLIENT))
        .write(directory.path(), "a");
    wait_until("the new certificate is in force", || serial() != first);
    let second = serial();
    std::fs::write(at("root.crt"), "nothing").unwrap();
    let failures = || metrics.tls.renewals.with_label_values(&["failure"]).get();
    wait_until("the bad roots were read", || failures() > 0);
    assert_eq!(serial(), second);
    let debug = format!("{:?}", handle);
    assert!(
        debug.contains(CLIENT) && !debug.contains("PRIVATE"),
        "{debug}"
    );
}

#[test]
fn the_embedded_authority_renews_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca");
    Ca::init(&ca, &"td".parse().unwrap(), Duration::from_secs(3600)).unwrap();
    let identity = Identity {
        source: IdentitySource::Ca {
            directory: ca.clone(),
            id: None,
            lifetime: Duration::from_secs(3),
        },
        federation: vec![],
        min_version: MinVersion::Tls13,
    };
    let workload = Workload {
        name: "shop".to_owned(),
        namespace: "prod".to_owned(),
        ..Workload::default()
    };
    let handle = MeshHandle::new();
    let metrics = Arc::new(Metrics::new().unwrap());
    let ready = Readiness::default().token("identity");
    let source = Source::start(&identity, &workload, &handle, &metrics, ready).unwrap();
    let svid = || handle.load().unwrap().material.svid.clone();
    assert_eq!(svid().id.as_str(), "spiffe://td/ns/prod/sa/shop");
    let (first, start) = (svid().facts.serial, Instant::now());
    wait_until("the certificate is renewed", || {
        svid().facts.serial != first
    });
    let waited = start.elapsed();
    // Whole seconds are what a certificate can say.
    let bounds = Duration::from_millis(700)..Duration::from_millis(2800);
    assert!(bounds.contains(&waited), "{waited:?}");
    // A new root beside the old one is believed at once.
    let other = directory.path().join("other");
    Ca::init(&other, &"td".parse().unwrap(), Duration::from_secs(3600)).unwrap();
    let both = [&other, &ca].map(|ca| std::fs::read_to_string(ca.join(ca::CERTIFICATE)).unwrap());
    let roots = || {
        handle
            .load()
            .unwrap()
            .material
            .bundles
            .of("td")
            .unwrap()
            .certificates
            .len()
    };
    assert_eq!(roots(), 1);
    std::fs::write(
        ca.join(ca::CERTIFICATE),
        both.iter().rev().cloned().collect::<String>(),
    )
    .unwrap();
    wait_until("both roots are believed", || roots() == 2);
    drop(source);
}

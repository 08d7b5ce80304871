//! Whoever must not come in: refused with the right alert or in time, named in the log, and the application hears
//! nothing of it.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use sidecar_userspace::model::{Mtls, Snapshot};

use super::{
    authority::{Authority, HOUR, Leaf, Says},
    pair::{CLIENT, SERVER},
    programs::{Papers, curl, s_client, text, workload},
};
use crate::proxy::world::{World, expect_reset, server, snapshot};

/// A strict port, and how often the application behind it was called.
struct Guarded {
    world: World,
    calls: Arc<AtomicUsize>,
    authority: Authority,
}

impl Guarded {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Snapshot)) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let application: SocketAddr = server(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let authority = Authority::new();
        let mut snapshot = snapshot();
        snapshot.inbound.mtls = Mtls::Strict;
        change(&mut snapshot);
        Self {
            world: World::secured(snapshot, application, authority.mesh(SERVER)),
            calls,
            authority,
        }
    }

    /// The log has one line, with `reason`; the application none.
    #[track_caller]
    fn expect(self, reason: &str) {
        let line = self.world.finish_with_one();
        assert_eq!(line["reason"], reason, "{line}");
        assert!(line.get("client_identity").is_none(), "{line}");
        assert_eq!(
            self.calls.load(Ordering::SeqCst),
            0,
            "the application was called"
        );
    }

    /// openssl with `options` is refused with the alert of this number.
    #[track_caller]
    fn refuses(self, options: &[String], alert: u8, reason: &str) {
        let port = self.world.handle.ports().inbound;
        let refused = s_client(port, options, "GET / HTTP/1.1\r\n\r\n");
        let said = text(&refused.stderr);
        assert!(said.contains(&format!("alert number {alert}\n")), "{said}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
        self.expect(reason);
    }
}

#[track_caller]
fn refused(leaf: impl FnOnce(&Authority) -> Leaf, alert: u8, reason: &str) {
    let guarded = Guarded::new();
    let papers = Papers::of(&leaf(&guarded.authority));
    guarded.refuses(&papers.for_openssl(), alert, reason);
}

#[test]
fn no_certificate() {
    Guarded::new().refuses(&[], 116, "tls_no_certificate");
}

#[test]
fn curl_is_told_what_is_wrong_with_it() {
    let other = Papers::of(&Authority::new().sign(&workload()));
    for (options, said, reason) in [
        (vec![], "certificate required", "tls_no_certificate"),
        (other.for_curl(), "unknown ca", "tls_unknown_issuer"),
    ] {
        let guarded = Guarded::new();
        let port = guarded.world.handle.ports().inbound;
        let refused = curl(&options, &format!("https://127.0.0.1:{port}/"));
        let error = text(&refused.stderr);
        assert!(error.contains(said), "{error}");
        assert!(refused.stdout.is_empty(), "{refused:?}");
        guarded.expect(reason);
    }
}

#[test]
fn a_certificate_of_another_authority() {
    refused(
        |_| Authority::new().sign(&workload()),
        48,
        "tls_unknown_issuer",
    );
}

#[test]
fn a_certificate_that_signed_itself() {
    refused(|_| Leaf::self_signed(&workload()), 48, "tls_unknown_issuer");
}

#[test]
fn a_certificate_that_names_a_foreign_trust_domain() {
    let says = Says::id("spiffe://elsewhere/ns/default/sa/client");
    refused(|authority| authority.sign(&says), 48, "tls_unknown_issuer");
}

#[test]
fn a_certificate_that_has_expired() {
    let mut says = workload();
    says.from = SystemTime::now() - 2 * HOUR;
    says.until = SystemTime::now() - HOUR;
    refused(
        |authority| authority.sign(&says),
        45,
        "tls_certificate_expired",
    );
}

#[test]
fn a_certificate_that_is_not_valid_yet() {
    let mut says = workload();
    says.from = SystemTime::now() + HOUR;
    says.until = SystemTime::now() + 2 * HOUR;
    refused(
        |authority| authority.sign(&says),
        45,
        "tls_certificate_not_yet_valid",
    );
}

#[test]
fn a_certificate_without_a_spiffe_id() {
    for uris in [
        vec![],
        vec!["https://td/ns/default/sa/client".to_owned()],
        vec!["spiffe://td".to_owned()],
        vec![CLIENT.to_owned(), SERVER.to_owned()],
    ] {
        let mut says = workload();
        says.uris = uris;
        refused(|authority| authority.sign(&says), 46, "tls_wrong_identity");
    }
}

#[test]
fn an_old_version_of_tls() {
    for version in ["-tls1", "-tls1_1", "-tls1_2"] {
        let options = [version, "-cipher", "DEFAULT:@SECLEVEL=0"].map(str::to_owned);
        Guarded::new().refuses(&options, 70, "tls_version");
    }
}

#[test]
fn garbage_that_looks_like_a_client_hello() {
    let guarded = Guarded::new();
    let mut client = guarded.world.connect_inbound();
    client
        .write_all(b"\x16\x03\x01\x00\x09\x01\x00\x00\x05junk!")
        .unwrap();
    let mut alert = [0; 7];
    client.read_exact(&mut alert).unwrap();
    assert_eq!(
        (alert[0], alert[5]),
        (0x15, 2),
        "a fatal alert, not {alert:?}"
    );
    assert_eq!(alert[6], 50, "decode_error, not {alert:?}");
    guarded.expect("tls_handshake_failed");
}

#[test]
fn plaintext() {
    for said in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0",
        b"\x16\x03\x01\0\x05\x02",
    ] {
        let guarded = Guarded::new();
        let mut client = guarded.world.connect_inbound();
        client.write_all(said).unwrap();
        expect_reset(&mut client);
        guarded.expect("tls_plaintext_refused");
    }
}

#[test]
fn a_client_that_says_nothing_or_a_byte_a_second_has_its_time_and_no_more() {
    // The beginning of a ClientHello whose rest does not come in time.
    let hello = [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], &[7; 64]].concat();
    for said in [&hello[..], b""] {
        let guarded = Guarded::with(|snapshot| {
            snapshot.workers = std::num::NonZeroUsize::MIN;
            snapshot.timeouts.tls_handshake = Duration::from_millis(3500);
        });
        let start = Instant::now();
        let mut client = guarded.world.connect_inbound();
        let mut writer = client.try_clone().unwrap();
        let said = said.to_vec();
        let dribble = thread::spawn(move || {
            for byte in said {
                if writer.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_secs(1));
            }
        });
        // Meanwhile the one worker serves others.
        let papers = Papers::of(&guarded.authority.sign(&workload()));
        let port = guarded.world.handle.ports().inbound;
        let others = Instant::now();
        s_client(port, &papers.for_openssl(), "\x01");
        assert!(
            others.elapsed() < Duration::from_secs(1),
            "{:?}",
            others.elapsed()
        );
        expect_reset(&mut client);
        let waited = start.elapsed();
        let bounds = Duration::from_millis(3400)..Duration::from_millis(5000);
        assert!(bounds.contains(&waited), "{waited:?}");
        dribble.join().unwrap();
        let lines = guarded.world.finish();
        let slow = lines
            .iter()
            .filter(|line| line["reason"] == "tls_handshake_timeout");
        assert_eq!(slow.count(), 1, "{lines:#?}");
    }
}

#[test]
fn a_stream_without_an_end_resets_the_application() {
    use std::sync::mpsc;
    let (saw, seen) = mpsc::channel();
    let application = server(move |mut socket| {
        let mut all = Vec::new();
        let end = socket.read_to_end(&mut all).map_err(|error| error.kind());
        saw.send((all, end)).unwrap();
    });
    let authority = Authority::new();
    let mut snapshot = snapshot();
    snapshot.inbound.mtls = Mtls::Strict;
    let world = World::secured(snapshot, application, authority.mesh(SERVER));
    let mesh = authority.mesh(CLIENT).load().unwrap();
    let identities = [SERVER.parse().unwrap()];
    for clean in [false, true] {
        let config = mesh.client(&identities, sidecar_userspace::tls::Carried::Bytes);
        let name = "server".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(config.unwrap(), name).unwrap();
        let mut tcp = world.connect_inbound();
        let mut stream = rustls::Stream::new(&mut session, &mut tcp);
        stream.write_all(b"\x01 half of it").unwrap();
        stream.flush().unwrap();
        // Long enough for it to be relayed: a reset overtakes what is unsent.
        thread::sleep(Duration::from_millis(200));
        if clean {
            session.send_close_notify();
            session.write_tls(&mut tcp).unwrap();
        }
        tcp.shutdown(std::net::Shutdown::Write).unwrap();
        let (all, end) = seen.recv_timeout(crate::proxy::world::PATIENCE).unwrap();
        assert_eq!(all, b"\x01 half of it");
        if clean {
            // To the other direction's end.
            tcp.read_to_end(&mut Vec::new()).unwrap();
        }
        match clean {
            true => assert_eq!(end, Ok(12)),
            false => assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset)),
        }
    }
    let lines = world.finish();
    let reasons: Vec<_> = lines.iter().map(|line| &line["reason"]).collect();
    assert_eq!(reasons, ["client_reset", "ok"], "{lines:#?}");
}

//! Keys of tokens from a URL, by Python's HTTPS server: they are fetched, they follow their rotation, and a server that
//! is down or talks rubbish takes none away.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData, SanType, SigningKey};
use serde_json::{Value, json};
use sidecar_userspace::{config, model::Snapshot};

use super::world::{World, refusing, snapshot, wait_until};
use crate::{
    http::programs::{curl, nginx},
    tls::authority::Authority,
};

/// A key of an issuer.
struct Signer {
    key: KeyPair,
    id: &'static str,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        Self { key, id }
    }

    fn jwk(&self) -> Value {
        let x = base64url(self.key.der_bytes());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x })
    }

    /// Of alice, until the year 2100.
    fn token(&self, issuer: &str) -> String {
        let header = json!({ "alg": "EdDSA", "kid": self.id });
        let claims = json!({ "iss": issuer, "sub": "alice", "exp": 4_102_444_800_u64 });
        let part = |value: Value| base64url(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64url(&signature))
    }
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let joined = chunk
            .iter()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = joined << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

/// `jwks_server.py`, ended with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16, directory: &Path, secured: bool) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/plain/proxy/jwks_server.py"
            ))
            .arg(port.to_string())
            .arg(directory);
        if secured {
            command.args(["server.crt", "server.key"].map(|name| directory.join(name)));
        }
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut said).unwrap();
        let port = said.trim().parse().expect("the server says its port");
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `/keys` says from now on.
fn publish(directory: &Path, text: &str) {
    let aside = directory.join("aside");
    fs::write(&aside, text).unwrap();
    fs::rename(aside, directory.join("keys.json")).unwrap();
}

fn set(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

/// A certificate for 127.0.0.1, and the roots to believe it with.
fn certify(directory: &Path) {
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let certificate = authority.sign_params(params, &key);
    fs::write(directory.join("server.crt"), certificate).unwrap();
    fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
    fs::write(directory.join("root.crt"), &authority.root_pem).unwrap();
}

/// Requests need a token of one of these issuers: a name, and where its keys are.
fn needing(issuers: &[(&str, String)]) -> Snapshot {
    let rules: Vec<String> = issuers
        .iter()
        .map(|(issuer, keys)| format!("{{ issuer: '{issuer}', {keys} }}"))
        .collect();
    let text = format!(
        "authorization: {{ inbound: {{ default: deny, policies: [{{ name: users, rules: \
         [{{ from: [{{ source: {{ requestPrincipals: ['*'] }} }}] }}] }}] }} }}\n\
         requestAuthentication: {{ jwtRules: [{}] }}\n",
        rules.join(", ")
    );
    let parsed = config::parse("keys", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut snapshot = snapshot();
    snapshot.authorization = parsed.authorization;
    snapshot.request_authentication = parsed.request_authentication;
    snapshot
}

fn status(world: &World, token: &str) -> u16 {
    let url = format!("http://127.0.0.1:{}/1k", world.handle.ports().inbound);
    let header = format!("Authorization: Bearer {token}");
    let out = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    let answer = curl(&[&out[..], &["--header", &header, &url]].concat());
    answer.parse().unwrap()
}

fn fetches(world: &World, result: &str) -> f64 {
    let label = format!("result=\"{result}\"");
    world.metric("sidecar_jwks_fetches_total{", &[&label])
}

#[test]
fn keys_over_https_follow_their_rotation_and_outlive_their_server() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    certify(at);
    let [old, new, newest] = ["old", "new", "newest"].map(Signer::new);
    publish(at, &set(&[&old]));
    let server = Server::start(0, at, true);
    let port = server.port;
    let keys = format!(
        "jwksUri: 'https://127.0.0.1:{port}/keys', jwksCaCertificates: '{}'",
        at.join("root.crt").display()
    );
    let application = nginx("");
    let world = World::with(needing(&[("https://i", keys)]), application.address);
    let ask = |signer: &Signer| status(&world, &signer.token("https://i"));
    wait_until("the keys are there", || fetches(&world, "ok") == 1.0);
    assert_eq!((ask(&old), ask(&new)), (200, 401));

    // Tokens with a key that is not known have the set fetched again, but not at once.
    publish(at, &set(&[&new]));
    wait_until("the new key is there", || ask(&new) == 200);
    assert_eq!(ask(&old), 401, "the old key was withdrawn");
    assert!(fetches(&world, "ok") <= 3.0, "{}", fetches(&world, "ok"));

    drop(server);
    assert_eq!(ask(&newest), 401);
    wait_until("the server is missed", || fetches(&world, "connect") >= 1.0);
    assert_eq!(ask(&new), 200, "what is known stays");
    publish(at, "{\"keys\": [");
    let _server = Server::start(port, at, true);
    wait_until("the garbage is seen", || {
        fetches(&world, "not_a_key_set") >= 1.0
    });
    assert_eq!(ask(&new), 200, "what is known stays");
    publish(at, &set(&[&newest]));
    wait_until("the newest key is there", || ask(&newest) == 200);
    assert_eq!(ask(&new), 401);
    let lines = world.finish();
    let unknown = "the token is signed with an unknown key";
    assert!(
        lines.iter().any(|line| line["detail"] == unknown),
        "{lines:#?}"
    );
}

#[test]
fn tokens_are_refused_while_there_are_no_keys() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    certify(at);
    let signer = Signer::new("k");
    publish(at, &set(&[&signer]));
    let (plain, secured) = (Server::start(0, at, false), Server::start(0, at, true));
    let here = |path: &str| format!("jwksUri: 'http://127.0.0.1:{}/{path}'", plain.port);
    // The public roots did not sign it.
    let untrusted = format!("jwksUri: 'https://127.0.0.1:{}/keys'", secured.port);
    let down = format!("jwksUri: 'http://{}/keys'", refusing());
    let nowhere = "jwksUri: 'http://nowhere.invalid/keys'".to_owned();
    let failing = [
        ("missing", here("missing"), "status"),
        ("moved", here("moved"), "status"),
        ("garbage", here("garbage"), "not_a_key_set"),
        ("large", here("large"), "too_large"),
        ("endless", here("endless"), "too_large"),
        ("slow", here("slow"), "timeout"),
        ("untrusted", untrusted, "tls"),
        ("down", down, "connect"),
        ("nowhere", nowhere, "resolve"),
    ];
    let mut issuers: Vec<(&str, String)> = vec![("good", here("keys"))];
    issuers.extend(failing.iter().map(|(name, keys, _)| (*name, keys.clone())));
    let application = nginx("");
    let world = World::with(needing(&issuers), application.address);
    for (name, _, result) in &failing {
        wait_until(&format!("{name} has failed"), || {
            fetches(&world, result) >= 1.0
        });
    }
    wait_until("the good keys are there", || fetches(&world, "ok") == 1.0);
    assert_eq!(status(&world, &signer.token("good")), 200);
    for (name, ..) in &failing {
        assert_eq!(status(&world, &signer.token(name)), 401, "{name}");
    }
    let refused = world.finish();
    let refused: Vec<&Value> = refused
        .iter()
        .filter(|line| line["status"] == 401)
        .collect();
    assert_eq!(refused.len(), failing.len());
    for line in refused {
        assert_eq!(line["reason"], "token_refused", "{line}");
        assert_eq!(
            line["detail"],
            "the keys of the token's issuer could not be fetched so far"
        );
    }
}

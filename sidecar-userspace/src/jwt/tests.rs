//! Tokens made by the very library that signs them elsewhere, and what attackers make of them.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use http::Request;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;

/// A key that signs, and its public half as JWK.
struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

fn b64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

fn ec(kid: &str) -> Signer {
    let document = EcdsaKeyPair::generate_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &aws_lc_rs::rand::SystemRandom::new(),
    )
    .unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
    let point = pair.public_key().as_ref();
    Signer {
        key: EncodingKey::from_ec_der(document.as_ref()),
        algorithm: Algorithm::ES256,
        jwk: json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": b64(&point[1..33]), "y": b64(&point[33..]) }),
    }
}

fn ed(kid: &str) -> Signer {
    let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    Signer {
        key: EncodingKey::from_ed_der(document.as_ref()),
        algorithm: Algorithm::EdDSA,
        jwk: json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(pair.public_key().as_ref()) }),
    }
}

fn rsa(kid: &str) -> Signer {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    // What PKCS#8 wraps: the last octet string of its outer sequence (RFC 5958, RFC 8017).
    let pkcs1 = &pkcs8.as_ref()[26..];
    let public = pair.public_key();
    Signer {
        key: EncodingKey::from_rsa_der(pkcs1),
        algorithm: Algorithm::RS256,
        jwk: json!({
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": kid,
            "n": b64(public.modulus().big_endian_without_leading_zero()),
            "e": b64(public.exponent().big_endian_without_leading_zero()),
        }),
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn good() -> Value {
    json!({ "iss": "https://i", "sub": "alice", "aud": ["api", "web"], "exp": now() + 300 })
}

impl Signer {
    fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        encode(&header, claims, &self.key).unwrap()
    }
}

fn rule(signers: &[&Signer]) -> JwtRule {
    let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
    JwtRule {
        issuer: "https://i".into(),
        audiences: vec!["api".to_owned()],
        keys: KeySource::inline(&json!({ "keys": keys }).to_string()).unwrap(),
        locations: JwtRule::default_locations(),
        forward: false,
    }
}

fn ask(rules: Vec<JwtRule>, token: &str) -> Result<Option<String>, TokenError> {
    let mut request = Request::builder()
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap();
    let claims = RequestAuthentication { rules }.authenticate(&mut request)?;
    Ok(claims.and_then(|claims| claims.principal().map(str::to_owned)))
}

#[test]
fn good_tokens_of_each_algorithm() {
    let signers = [rsa("r"), ec("c"), ed("d")];
    let all: Vec<&Signer> = signers.iter().collect();
    for (signer, kid) in signers.iter().zip(["r", "c", "d"]) {
        for kid in [Some(kid), None] {
            let token = signer.sign(kid, &good());
            assert_eq!(
                ask(vec![rule(&all)], &token),
                Ok(Some("https://i/alice".to_owned())),
                "{kid:?}"
            );
        }
    }
}

#[test]
fn claims_that_do_not_hold() {
    let signer = ec("c");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = good();
        change(&mut claims);
        ask(vec![rule(&[&signer])], &signer.sign(Some("c"), &claims))
    };
    let set =
        |name: &'static str, value: Value| move |claims: &mut Value| claims[name] = value.clone();
    let without = |name: &'static str| {
        move |claims: &mut Value| drop(claims.as_object_mut().unwrap().remove(name))
    };
    assert_eq!(
        with(&set("exp", json!(now() - 120))),
        Err(TokenError::Expired)
    );
    assert_eq!(with(&without("exp")), Err(TokenError::NoExpiry));
    assert!(with(&set("exp", json!("never"))).is_err());
    assert_eq!(
        with(&set("nbf", json!(now() + 120))),
        Err(TokenError::Immature)
    );
    assert!(with(&set("nbf", json!("later"))).is_err());
    assert_eq!(
        with(&set("iss", json!("https://other"))),
        Err(TokenError::Issuer)
    );
    assert_eq!(
        with(&set("iss", json!(["https://i", "x"]))),
        Err(TokenError::Issuer)
    );
    assert_eq!(with(&without("iss")), Err(TokenError::Issuer));
    assert_eq!(with(&set("aud", json!("web"))), Err(TokenError::Audience));
    assert_eq!(with(&without("aud")), Err(TokenError::Audience));
    assert_eq!(
        with(&set("exp", json!(now() - 30))).map(|_| ()),
        Ok(()),
        "clocks differ"
    );
}

#[test]
fn forged_tokens() {
    let (rsa, signer, other) = (rsa("r"), ec("c"), ec("c"));
    let rules = || vec![rule(&[&rsa, &signer])];
    let body = |token: &str| token.split('.').nth(1).unwrap().to_owned();
    let token = signer.sign(Some("c"), &good());
    let part = |value: Value| b64(value.to_string().as_bytes());

    let other_key = other.sign(Some("c"), &good());
    assert_eq!(ask(rules(), &other_key), Err(TokenError::Signature));
    assert_eq!(
        ask(rules(), &signer.sign(Some("x"), &good())),
        Err(TokenError::UnknownKey)
    );
    assert_eq!(
        ask(rules(), &signer.sign(Some("r"), &good())),
        Err(TokenError::UnknownKey),
        "another kind of key"
    );
    // No algorithm, in every case.
    for none in ["none", "None", "NONE", "nOnE", ""] {
        for signature in ["", "AAAA"] {
            let forged = format!(
                "{}.{}.{signature}",
                part(json!({ "alg": none, "kid": "c" })),
                body(&token)
            );
            assert!(ask(rules(), &forged).is_err(), "{none}");
        }
    }
    // The public key taken for a secret.
    for secret in [
        rsa.jwk["n"].as_str().unwrap().to_owned(),
        rsa.jwk.to_string(),
        json!({ "keys": [rsa.jwk] }).to_string(),
        signer.jwk["x"].as_str().unwrap().to_owned(),
    ] {
        for kid in ["r", "c"] {
            let mut header = Header::new(Algorithm::HS256);
            header.kid = Some(kid.to_owned());
            let forged = encode(
                &header,
                &good(),
                &EncodingKey::from_secret(secret.as_bytes()),
            )
            .unwrap();
            assert_eq!(ask(rules(), &forged), Err(TokenError::Algorithm));
        }
    }
    // Another algorithm of the same key, and one brought along.
    let mut header = Header::new(Algorithm::RS512);
    header.kid = Some("r".to_owned());
    assert_eq!(
        ask(rules(), &encode(&header, &good(), &rsa.key).unwrap()),
        Err(TokenError::Algorithm)
    );
    let mut header = Header::new(Algorithm::ES256);
    header.jwk = serde_json::from_value(other.jwk.clone()).unwrap();
    assert_eq!(
        ask(rules(), &encode(&header, &good(), &other.key).unwrap()),
        Err(TokenError::Signature)
    );
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("c".to_owned());
    header.crit = Some(vec!["exp".to_owned()]);
    assert_eq!(
        ask(rules(), &encode(&header, &good(), &signer.key).unwrap()),
        Err(TokenError::Malformed)
    );
    // Other claims under the same signature.
    let mut admin = good();
    admin["sub"] = json!("root");
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(
        ask(
            rules(),
            &format!("{}.{}.{}", parts[0], part(admin), parts[2])
        ),
        Err(TokenError::Signature)
    );
    for broken in [
        "",
        ".",
        "..",
        "a.b.c",
        parts[0],
        &format!("{}.{}", parts[0], parts[1]),
        &format!("{token}.x"),
        "\u{e9}",
    ] {
        assert!(ask(rules(), broken).is_err(), "{broken:?}");
    }
}

#[test]
fn a_set_of_symmetric_keys_is_none() {
    let secret = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }] });
    assert!(KeySource::inline(&secret.to_string()).is_err());
    for wrong in ["", "[]", "{}", "{\"keys\": 1}", "{\"keys\": [{}]}"] {
        assert!(KeySource::inline(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn where_tokens_are_and_where_they_go() {
    let signer = ec("c");
    let token = signer.sign(Some("c"), &good());
    let authentication = |forward| RequestAuthentication {
        rules: vec![JwtRule {
            forward,
            ..rule(&[&signer])
        }],
    };
    let mut request = Request::builder()
        .uri("/a?x=1")
        .header("authorization", format!("bearer {token}"))
        .body(())
        .unwrap();
    assert!(
        authentication(true)
            .authenticate(&mut request)
            .unwrap()
            .is_some()
    );
    assert!(request.headers().contains_key("authorization"));
    assert!(
        authentication(false)
            .authenticate(&mut request)
            .unwrap()
            .is_some()
    );
    assert!(!request.headers().contains_key("authorization"));
    assert!(
        authentication(false)
            .authenticate(&mut request)
            .unwrap()
            .is_none(),
        "no token is no error"
    );

    let mut request = Request::builder()
        .uri(format!("/a?x=1&access_token={token}&y=2"))
        .body(())
        .unwrap();
    assert!(
        authentication(false)
            .authenticate(&mut request)
            .unwrap()
            .is_some()
    );
    assert_eq!(request.uri(), "/a?x=1&y=2");
    let mut request = Request::builder()
        .uri(format!("/a?access_token={token}"))
        .header("authorization", "Basic eDp5")
        .body(())
        .unwrap();
    assert!(
        authentication(false)
            .authenticate(&mut request)
            .unwrap()
            .is_some()
    );
    assert_eq!(request.uri(), "/a");
    assert!(
        request.headers().contains_key("authorization"),
        "that is no token"
    );

    let second = signer.sign(None, &good());
    let mut request = Request::builder()
        .uri(format!("/a?access_token={second}"))
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap();
    assert_eq!(
        authentication(false).authenticate(&mut request),
        Err(TokenError::Several)
    );
}

#[test]
fn of_two_issuers_the_tokens_own_counts() {
    let (mine, theirs) = (ec("k"), ec("k"));
    let other = JwtRule {
        issuer: "https://j".into(),
        ..rule(&[&theirs])
    };
    let rules = || vec![other.clone(), rule(&[&mine])];
    assert_eq!(
        ask(rules(), &mine.sign(Some("k"), &good())),
        Ok(Some("https://i/alice".to_owned()))
    );
    let mut claims = good();
    claims["iss"] = json!("https://j");
    assert_eq!(
        ask(rules(), &mine.sign(Some("k"), &claims)),
        Err(TokenError::Signature),
        "its key is not that issuer's"
    );
}

#[test]
fn a_file_of_keys_changes_while_it_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let (old, new) = (ec("old"), ec("new"));
    let write = |signers: &[&Signer]| {
        let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
        std::fs::write(&path, json!({ "keys": keys }).to_string()).unwrap();
    };
    assert!(KeySource::file(&path).is_err());
    write(&[&old]);
    let rule = JwtRule {
        keys: KeySource::file(&path).unwrap(),
        ..rule(&[&old])
    };
    let asks =
        |signer: &Signer, kid: &str| ask(vec![rule.clone()], &signer.sign(Some(kid), &good()));
    assert!(asks(&old, "old").is_ok());
    assert_eq!(asks(&new, "new"), Err(TokenError::UnknownKey));
    write(&[&old, &new]);
    keys::refresh();
    assert!(asks(&old, "old").is_ok() && asks(&new, "new").is_ok());
    std::fs::write(&path, "half a fi").unwrap();
    keys::refresh();
    assert!(asks(&new, "new").is_ok(), "a bad file changes nothing");
    write(&[&new]);
    keys::refresh();
    assert_eq!(asks(&old, "old"), Err(TokenError::UnknownKey));
}

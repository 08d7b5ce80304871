//! What makes a token valid: its signature by a key of the issuer, of the key's own kind, and its claims.

use jsonwebtoken::{
    Validation, dangerous::insecure_decode_claims, decode, decode_header, errors::ErrorKind,
};
use serde_json::{Map, Value};

use super::{
    JwtRule,
    keys::{ALGORITHMS, KeySet},
};
use crate::policy::Claims;

/// Clocks may differ by so much, as with Istio.
const LEEWAY_SECONDS: u64 = 60;

/// Keys that are tried for a token which does not say which one it is signed with.
const TRIED_MAX: usize = 8;

/// Why a token is not valid. The words are for the client as well: they tell nothing that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token's algorithm is not one of RS256, ES256 and EdDSA")]
    Algorithm,
    #[error("the token's issuer is not known")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    Immature,
    #[error("the token does not say when it expires")]
    NoExpiry,
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    #[error("the keys of the token's issuer could not be fetched so far")]
    NoKeys,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the request has several tokens")]
    Several,
}

/// The claims of `token`, if `rule` believes them.
pub(super) fn verify(rule: &JwtRule, token: &str) -> Result<Claims, TokenError> {
    // Whose it says it is, not yet believed: another rule may be meant.
    let said = insecure_decode_claims::<Map<String, Value>>(token);
    let said = said.map_err(|_| TokenError::Malformed)?;
    if said.get("iss").and_then(Value::as_str) != Some(&rule.issuer) {
        return Err(TokenError::Issuer);
    }
    let header = decode_header(token).map_err(|error| reason(error.kind()))?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(TokenError::Algorithm);
    }
    // Extensions that must be understood.
    if header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let keys: &KeySet = &*rule.keys.current().ok_or(TokenError::NoKeys)?;
    let mut failure = TokenError::UnknownKey;
    let of_kind = keys.keys.iter().filter(|key| {
        let named = header.kid.is_none() || key.id == header.kid;
        named && key.algorithm == header.alg
    });
    for key in of_kind.take(TRIED_MAX) {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[&rule.issuer]);
        validation.validate_aud = !rule.audiences.is_empty();
        if rule.audiences.is_empty() {
            validation.set_required_spec_claims(&["exp", "iss"]);
        } else {
            validation.set_audience(&rule.audiences);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        }
        match decode::<Map<String, Value>>(token, &key.key, &validation) {
            Ok(data) => return Ok(Claims::new(data.claims)),
            Err(error) => failure = reason(error.kind()),
        }
        if failure != TokenError::Signature {
            break;
        }
    }
    if failure == TokenError::UnknownKey {
        rule.keys.ask_early();
    }
    Err(failure)
}

fn reason(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::Immature,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => TokenError::NoExpiry,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenError::Issuer,
        ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName
        | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

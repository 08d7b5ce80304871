//! The keys under `requestAuthentication`: tokens of users.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{
    pattern::{HeaderText, Text},
    scalar::{Marked, Setting},
    value::{FilePath, Url},
};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestAuthentication {
    /// The issuers that are believed. Tokens are signed with RS256, ES256 or EdDSA and have to say when they expire.
    pub jwt_rules: Option<Vec<JwtRule>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct JwtRule {
    /// Required: the token's `iss`.
    pub issuer: Setting<Text>,
    /// One of them has to be in the token's `aud`. Absent: any.
    pub audiences: Option<Marked<Vec<Setting<Text>>>>,
    /// The issuer's public keys, a JSON Web Key Set as text. This, `jwksFile` or `jwksUri` is required.
    pub jwks: Option<Setting<Text>>,
    /// A file with such a set; read again when it changes.
    pub jwks_file: Option<Setting<FilePath>>,
    /// Where such a set is fetched, `https` or `http`: at start, every 5 minutes, and 10 s after the last time where a token
    /// names a key that is not known. If that fails the old keys stay; while there are none, tokens are refused. Redirects
    /// are not followed.
    pub jwks_uri: Option<Setting<Url>>,
    /// For `jwksUri`: a PEM file with the roots that may have signed the server's certificate. Absent: the system's
    /// public roots.
    pub jwks_ca_certificates: Option<Setting<FilePath>>,
    /// Headers that carry tokens. Absent, with `fromParams`: `Authorization` with `Bearer `, and the parameter
    /// `access_token`.
    pub from_headers: Option<Marked<Vec<FromHeader>>>,
    /// Parameters of the query that carry tokens.
    pub from_params: Option<Marked<Vec<Setting<Text>>>>,
    /// Whether the application gets the token. Absent: false, as with Istio.
    pub forward_original_token: Option<Setting<bool>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FromHeader {
    /// Required: the header's name.
    pub name: Setting<HeaderText>,
    /// What stands before the token.
    pub prefix: Option<Setting<Text>>,
}

//! Who the user behind a request is: tokens, as Istio's RequestAuthentication has them.
//!
//! A request without a token passes, and policies see no user; one with a token that is not valid is refused.
//!
//! # Layout
//!
//! - [`keys`], the public keys of an issuer, and their file; [`remote`], their URL
//! - `token`, where requests carry tokens; `verify`, what makes one valid

pub mod keys;
pub mod remote;
#[cfg(test)]
mod tests;
mod token;
mod verify;

use std::sync::Arc;

use http::{HeaderName, Request, Uri};

pub use self::{keys::KeySource, verify::TokenError};
use crate::policy::Claims;

/// The issuers that are believed. Empty: tokens are not looked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestAuthentication {
    pub rules: Vec<JwtRule>,
}

/// One issuer.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtRule {
    /// Compared with `iss`.
    pub issuer: Arc<str>,
    /// One of them has to be in `aud`; empty: any.
    pub audiences: Vec<String>,
    pub keys: KeySource,
    /// Never empty.
    pub locations: Vec<Location>,
    /// Whether the application gets the token.
    pub forward: bool,
}

/// Where a token may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a header, behind `prefix` (which has no case).
    Header { name: HeaderName, prefix: String },
    /// In the query.
    Param(String),
}

impl RequestAuthentication {
    /// What the request's token says, `None` if it has none. Removes the token where the application is not to get it.
    ///
    /// # Errors
    ///
    /// Why the token is not valid.
    pub fn authenticate<B>(&self, request: &mut Request<B>) -> Result<Option<Claims>, TokenError> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let mut found: Vec<(&JwtRule, String)> = Vec::new();
        for rule in &self.rules {
            for location in &rule.locations {
                let tokens = token::find(location, request)?;
                found.extend(tokens.into_iter().map(|token| (rule, token)));
            }
        }
        let Some((_, token)) = found.first() else {
            return Ok(None);
        };
        // The application might believe the other one.
        if found.iter().any(|(_, other)| other != token) {
            return Err(TokenError::Several);
        }
        let token = token.clone();
        let mut failure = TokenError::Issuer;
        for (rule, _) in found {
            match verify::verify(rule, &token) {
                Ok(claims) => {
                    if !rule.forward {
                        let all = self.rules.iter().flat_map(|rule| &rule.locations);
                        all.for_each(|location| token::strip(location, request));
                    }
                    return Ok(Some(claims));
                }
                Err(TokenError::Issuer) => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

impl RequestAuthentication {
    /// `uri` without the tokens in its query, for the log; `None` if it has none.
    pub fn without_tokens(&self, uri: &Uri) -> Option<Uri> {
        let mut shown = None;
        for location in self.rules.iter().flat_map(|rule| &rule.locations) {
            if let Location::Param(name) = location
                && let Some(without) = token::without_param(shown.as_ref().unwrap_or(uri), name)
            {
                shown = Some(without);
            }
        }
        shown
    }
}

impl JwtRule {
    /// Those of Istio.
    pub fn default_locations() -> Vec<Location> {
        vec![
            Location::Header {
                name: http::header::AUTHORIZATION,
                prefix: "Bearer ".to_owned(),
            },
            Location::Param("access_token".to_owned()),
        ]
    }
}

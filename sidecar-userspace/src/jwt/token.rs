//! Where requests carry tokens.

use http::{Request, Uri, uri::PathAndQuery};

use super::{Location, TokenError};

/// The tokens at `location`.
pub(super) fn find<B>(
    location: &Location,
    request: &Request<B>,
) -> Result<Vec<String>, TokenError> {
    match location {
        Location::Header { name, prefix } => {
            let values = request.headers().get_all(name).iter();
            let mut tokens = Vec::new();
            for value in values {
                let Some(rest) = without_prefix(value.as_bytes(), prefix.as_bytes()) else {
                    continue;
                };
                let text = std::str::from_utf8(rest).map_err(|_| TokenError::Malformed)?;
                tokens.push(text.trim().to_owned());
            }
            Ok(tokens)
        }
        Location::Param(name) => {
            let query = request.uri().query().unwrap_or_default();
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let values = pairs.filter(|(key, _)| key == name);
            // A token has no character that needs an escape.
            Ok(values.map(|(_, value)| value.to_owned()).collect())
        }
    }
}

/// Removes the token at `location`, if there is one.
pub(super) fn strip<B>(location: &Location, request: &mut Request<B>) {
    match location {
        Location::Header { name, prefix } => {
            let mut values = request.headers().get_all(name).iter();
            let is_token = |value: &http::HeaderValue| {
                without_prefix(value.as_bytes(), prefix.as_bytes()).is_some()
            };
            if values.any(is_token) {
                request.headers_mut().remove(name);
            }
        }
        Location::Param(name) => {
            if let Some(uri) = without_param(request.uri(), name) {
                *request.uri_mut() = uri;
            }
        }
    }
}

/// `uri` without the parameter `name`; `None` if it has none.
pub(super) fn without_param(uri: &Uri, name: &str) -> Option<Uri> {
    let query = uri.query()?;
    let is_token = |pair: &&str| pair.split_once('=').is_some_and(|(key, _)| key == name);
    if !query.split('&').any(|pair| is_token(&pair)) {
        return None;
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let target = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

fn without_prefix<'a>(value: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = value.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

//! Issuers: each says where its keys are, and they can be used.

use super::{
    Report,
    policy::{list, values},
};
use crate::{
    config::file,
    jwt::{JwtRule, KeySource, Location, RequestAuthentication},
};

pub(super) fn compile(
    report: &mut Report,
    file: file::RequestAuthentication,
) -> RequestAuthentication {
    let rules = file.jwt_rules.unwrap_or_default().into_iter();
    RequestAuthentication {
        rules: rules.filter_map(|file| rule(report, file)).collect(),
    }
}

fn rule(report: &mut Report, file: file::JwtRule) -> Option<JwtRule> {
    let mark = file.issuer.mark;
    let issuer = report.value(file.issuer).unwrap_or_default();
    let audiences = values(report, file.audiences);
    let keys = match (file.jwks, file.jwks_file) {
        (Some(inline), None) => {
            let mark = inline.mark;
            let text = report.value(inline)?;
            Some((mark, KeySource::inline(&text)))
        }
        (None, Some(path)) => {
            let mark = path.mark;
            let path = report.value(path)?;
            Some((mark, KeySource::file(&path)))
        }
        _ => {
            report.expected(mark, "either jwks or jwksFile for the issuer", &issuer);
            None
        }
    };
    let headers = list(report, file.from_headers, "header", |report, file| {
        let file::FromHeader { name, prefix } = file;
        let prefix = prefix.and_then(|prefix| report.value(prefix));
        Some(Location::Header {
            name: report.value(name)?,
            prefix: prefix.unwrap_or_default(),
        })
    });
    let params = values(report, file.from_params);
    let mut locations: Vec<Location> = headers.into_iter().flatten().collect();
    locations.extend(params.into_iter().map(Location::Param));
    if locations.is_empty() {
        locations = JwtRule::default_locations();
    }
    let mut forward = false;
    report.set(&mut forward, file.forward_original_token);
    let (mark, keys) = keys?;
    let keys = match keys {
        Ok(keys) => keys,
        Err(error) => {
            report.expected(mark, "a JSON Web Key Set", &error.to_string());
            return None;
        }
    };
    Some(JwtRule {
        issuer: issuer.into(),
        audiences,
        keys,
        locations,
        forward,
    })
}

//! Issuers: each says where its keys are, and they can be used.

use super::{
    Report,
    policy::{list, values},
};
use crate::{
    config::file::jwt as file,
    fetch::Place,
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
    let roots = file.jwks_ca_certificates;
    let roots_mark = roots.as_ref().map(|roots| roots.mark);
    let roots = roots.and_then(|roots| report.value(roots));
    let over_tls = |place: &Place| place.is_https();
    let place = file.jwks_uri.map(|uri| (uri.mark, report.value(uri)));
    let has_place = place.as_ref().and_then(|(_, place)| place.as_ref());
    if let Some(mark) = roots_mark
        && !has_place.is_some_and(over_tls)
    {
        report.expected(mark, "a jwksUri with https beside it", "none");
    }
    let keys = match (file.jwks, file.jwks_file, place) {
        (Some(inline), None, None) => {
            let mark = inline.mark;
            let text = report.value(inline)?;
            Some((mark, KeySource::inline(&text)))
        }
        (None, Some(path), None) => {
            let mark = path.mark;
            let path = report.value(path)?;
            Some((mark, KeySource::file(&path)))
        }
        (None, None, Some((mark, place))) => {
            let mut place = place?;
            place.roots = roots;
            Some((mark, Ok(KeySource::url(place))))
        }
        _ => {
            let expected = "one of jwks, jwksFile and jwksUri for the issuer";
            report.expected(mark, expected, &issuer);
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

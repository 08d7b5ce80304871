//! What is measured: the rows of a full and of a quick run, and the order.

use anyhow::{Result, ensure};

use super::row::{Bytes, Load, Row};

/// Rows that are measured in one mode before the next mode has its turn: few, so that what the machine does meanwhile meets
/// all modes alike.
pub const GROUP: usize = 4;

/// Every row of a full run, in the order of the report.
pub const FULL: [&str; 39] = [
    "tcp-1k-closed1",
    "tcp-1k-open16",
    "tcp-1k-max32",
    "tcp-1k-newconn",
    "tcp-1k-newconn1",
    "tcp-64b-max32",
    "tcp-16k-max32",
    "tcp-1m-max32",
    "tcp-stream-64k",
    "tcp-stream-64b",
    "tcp-optout-1k-closed1",
    "tcp-optout-1k-max32",
    "tcp-mtls-1k-closed1",
    "tcp-mtls-1k-open16",
    "tcp-mtls-1k-max32",
    "tcp-mtls-1k-newconn",
    "tcp-mtls-stream-64k",
    "http-1k-closed1",
    "http-1k-open16",
    "http-1k-max32",
    "http-1k-newconn",
    "http-64b-max32",
    "http-16k-max32",
    "http-64k-max32",
    "http-1m-max32",
    "http-mtls-1k-closed1",
    "http-mtls-1k-open16",
    "http-mtls-1k-max32",
    "http-mtls-1k-newconn",
    "http-mtls-16k-max32",
    "h2-1k-closed1",
    "h2-1k-open16",
    "h2-1k-max32",
    "h2-mtls-1k-open16",
    "h2-mtls-1k-max32",
    "grpc-64b-open16",
    "grpc-64b-max32",
    "grpc-mtls-64b-open16",
    "grpc-mtls-64b-max32",
];

/// The rows of a quick run: those of the table of targets.
pub const QUICK: [&str; 9] = [
    "tcp-1k-closed1",
    "tcp-1k-max32",
    "tcp-1k-newconn",
    "tcp-stream-64k",
    "tcp-stream-64b",
    "http-1k-open16",
    "http-mtls-1k-open16",
    "http-mtls-1k-max32",
    "tcp-mtls-1k-newconn",
];

/// The rows that `patterns` name: each a row's name, or the beginning of names of [`FULL`] with a `*` behind it.
pub fn select(patterns: &[String]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for pattern in patterns {
        let mut found: Vec<Row> = match pattern.strip_suffix('*') {
            Some(start) => {
                let names = FULL.iter().filter(|name| name.starts_with(start));
                names.map(|name| name.parse()).collect::<Result<_>>()?
            }
            None => vec![pattern.parse()?],
        };
        ensure!(!found.is_empty(), "no row begins with {pattern}");
        found.retain(|row| !rows.contains(row));
        rows.append(&mut found);
    }
    Ok(rows)
}

/// The sizes that a server has to have.
pub fn bodies(rows: &[Row]) -> Vec<Bytes> {
    let mut bodies: Vec<Bytes> = rows
        .iter()
        .filter_map(|row| match row.load {
            Load::Requests { body, .. } => Some(body),
            Load::Stream { .. } => None,
        })
        .collect();
    bodies.dedup();
    bodies
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(patterns: &[&str]) -> Result<Vec<String>> {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        Ok(select(&patterns)?.iter().map(Row::to_string).collect())
    }

    #[test]
    fn the_lists_name_rows_in_their_own_spelling() {
        assert_eq!(names(&FULL).unwrap(), FULL);
        assert_eq!(names(&QUICK).unwrap(), QUICK);
        assert!(QUICK.iter().all(|quick| FULL.contains(quick)));
    }

    #[test]
    fn patterns_select_each_row_once() {
        assert_eq!(
            names(&["tcp-stream-*", "tcp-stream-64b", "h2-64b-max8"]).unwrap(),
            ["tcp-stream-64k", "tcp-stream-64b", "h2-64b-max8"]
        );
        assert!(names(&["quic-*"]).is_err());
    }
}

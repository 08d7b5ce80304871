//! What is wrong with a configuration, and where.

use std::{borrow::Cow, fmt, io, path::Path};

use serde::Serialize;

/// Errors shown in words; the count of the others follows.
const SHOWN_MAX: usize = 50;
/// Characters of an offending value that are shown.
const FOUND_CHARS_MAX: usize = 80;

/// What would have been right, to follow the word "expected".
pub(super) type Expected = Cow<'static, str>;

/// A place in the file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub line: u64,
    pub column: u64,
}

/// Everything that is wrong with one file, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct ConfigErrors {
    file: String,
    errors: Vec<ConfigError>,
}

/// One mistake. Displayed as `12:9: expected one of passthrough, registryOnly; found "passthru"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigError {
    /// From 1; `None` if the file could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

impl ConfigErrors {
    pub(super) fn new(file: &str, mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by_key(|error| (error.line, error.column));
        Self {
            file: file.to_owned(),
            errors,
        }
    }

    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let message = format!("cannot read the configuration: {error}");
        let error = ConfigError::other(None, message);
        Self::new(&path.display().to_string(), vec![error])
    }

    /// A sound file that asks for what cannot be had.
    pub(super) fn impossible(path: &Path, why: String) -> Self {
        Self::new(
            &path.display().to_string(),
            vec![ConfigError::other(None, why)],
        )
    }

    /// The file's name as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Never empty; in the file's order.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl ConfigError {
    pub(super) fn expected(mark: Mark, expected: impl Into<String>, found: &str) -> Self {
        let expected = expected.into();
        let mut shown: String = found.chars().take(FOUND_CHARS_MAX).collect();
        if shown.len() < found.len() {
            shown.push('…');
        }
        Self {
            line: Some(mark.line),
            column: Some(mark.column),
            // `Debug` escapes what could upset a terminal.
            message: format!("expected {expected}; found {shown:?}"),
            expected: Some(expected),
            found: Some(shown),
        }
    }

    pub(super) fn other(mark: Option<Mark>, message: impl Into<String>) -> Self {
        Self {
            line: mark.map(|mark| mark.line),
            column: mark.map(|mark| mark.column),
            message: message.into(),
            expected: None,
            found: None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.errors.iter().take(SHOWN_MAX).enumerate() {
            let end_of_previous = if position == 0 { "" } else { "\n" };
            let space = if error.line.is_some() { "" } else { " " };
            write!(f, "{end_of_previous}{}:{space}{error}", self.file)?;
        }
        match self.errors.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n{}: {more} more errors", self.file),
        }
    }
}

/// The candidate that `found` most likely means, if one is near.
pub(super) fn nearest<'a>(
    found: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Bounds on the work, which grows with the product of the two lengths.
    const CHARS_MAX: usize = 64;
    const CANDIDATES_MAX: usize = 1_000;
    let near = |candidate: &&str| candidate.len().abs_diff(found.len()) <= 2;
    let (distance, candidate) = candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(near)
        .filter(|_| found.len() <= CHARS_MAX)
        .map(|candidate| (edits(found, candidate), candidate))
        .min()?;
    (distance <= 2 && distance < found.len()).then_some(candidate)
}

/// Insertions, deletions and substitutions that make `b` of `a`, ignoring case.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (above_left, a) in a.chars().enumerate() {
        let mut left = above_left + 1;
        let mut diagonal = above_left;
        for (slot, b) in row.iter_mut().skip(1).zip(b.chars()) {
            let substituted = diagonal + usize::from(!a.eq_ignore_ascii_case(&b));
            diagonal = *slot;
            left = substituted.min(left + 1).min(*slot + 1);
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = above_left + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
            ("Orders", "orders", 0),
            ("ordres", "orders", 2),
        ] {
            assert_eq!(edits(a, b), count, "{a} {b}");
        }
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let names = ["orders", "payments", "x"];
        assert_eq!(nearest("order", names), Some("orders"));
        assert_eq!(nearest("basket", names), None);
        assert_eq!(nearest("y", names), None);
    }
}

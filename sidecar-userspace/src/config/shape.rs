//! The shape of the file: YAML, known keys, lists and mappings where they belong, and what is wrong with it in words.

use serde::de::DeserializeOwned;

use super::error::{ConfigError, Mark, nearest};

/// Reads the shape of `text`: YAML, known keys, lists and mappings where they belong. The values may still be
/// wrong.
pub(super) fn parse<T: DeserializeOwned + Default>(text: &str) -> Result<T, ConfigError> {
    let options = serde_saphyr::options! {
        // A file in the shape of this one is 13 levels deep; aliases and merges may repeat parts of it, not
        // multiply it.
        budget: serde_saphyr::budget! {
            max_depth: 32, max_documents: 2, max_events: 4_000_000, max_nodes: 2_000_000,
            max_aliases: 1_000, max_merge_keys: 1_000
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        with_snippet: false
    };
    serde_saphyr::from_str_with_options::<Option<T>>(text, options)
        .map(Option::unwrap_or_default)
        .map_err(|error| explain(text, &error))
}

/// The parser's error in the words of this configuration.
fn explain(text: &str, error: &serde_saphyr::Error) -> ConfigError {
    use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

    let mark = error.location().map(|location| Mark {
        line: location.line(),
        column: location.column(),
    });
    let source = mark.and_then(|mark| source_at(text, mark));
    let expected = |what: String| match (mark, source) {
        (Some(mark), Some(source)) => ConfigError::expected(mark, what, source),
        _ => ConfigError::other(mark, format!("expected {what}")),
    };
    match error.without_snippet() {
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let hint = nearest(field, expected.iter().copied());
            let hint = hint.map_or(String::new(), |hint| format!(" (perhaps {hint})"));
            let keys = format!("one of the keys {}{hint}", expected.join(", "));
            match mark {
                Some(mark) => ConfigError::expected(mark, keys, field),
                None => ConfigError::other(mark, format!("expected {keys}; found {field:?}")),
            }
        }
        Error::SerdeMissingField { field, .. } => {
            ConfigError::other(mark, format!("expected the key {field}, which is missing"))
        }
        Error::NullIntoString { .. } => expected("a value".to_owned()),
        Error::Unexpected { expected: what, .. } => expected(in_words(what).to_owned()),
        other => {
            let message = UserMessageFormatter.format_message(other);
            let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            ConfigError::other(mark, message.chars().map(printable).collect::<String>())
        }
    }
}

/// The parser's names for the shapes of values.
fn in_words(shape: &str) -> &str {
    match shape {
        "mapping start" => "keys with values, as in { key: value }",
        "sequence start" => "a list, as in [a, b]",
        "string scalar" => "a single value",
        other => other,
    }
}

/// What stands at `mark`: a list or mapping to the end of its line, else one value.
fn source_at(text: &str, mark: Mark) -> Option<&str> {
    let line = usize::try_from(mark.line.checked_sub(1)?).ok()?;
    let column = usize::try_from(mark.column.checked_sub(1)?).ok()?;
    let line = text.lines().nth(line)?;
    let (start, _) = line.char_indices().nth(column)?;
    let rest = line.get(start..)?.trim_end();
    let end_of_value = |c: char| matches!(c, ',' | ']' | '}') && !rest.starts_with(['[', '{']);
    rest.split(end_of_value).next().map(str::trim_end)
}

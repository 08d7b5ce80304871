//! YAML as Kubernetes reads it: YAML 1.1, in which `yes` is a boolean and `0644` an octal number. What is written means the same
//! to readers of YAML 1.1 and 1.2. Comments and the order of keys are not kept.

use serde_json::Value;
use serde_saphyr::Spanned;

/// One document of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it begins, from 1.
    pub line: u64,
    pub value: Value,
}

/// Not YAML, or what JSON cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct YamlError {
    pub line: u64,
    pub column: u64,
    pub message: String,
}

/// All documents of a file, YAML or JSON; empty ones are left out.
///
/// # Errors
///
/// The first mistake.
pub fn read(text: &str) -> Result<Vec<Document>, YamlError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 100, max_documents: 100_000, max_events: 20_000_000, max_nodes: 10_000_000
        },
        legacy_octal_numbers: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::Reject,
        with_snippet: false
    };
    let documents = serde_saphyr::from_multiple_with_options::<Spanned<Value>>(text, options);
    let document = |spanned: Spanned<Value>| Document {
        line: spanned.referenced.line(),
        value: spanned.value,
    };
    match documents {
        Ok(documents) => Ok(documents.into_iter().map(document).collect()),
        Err(error) => Err(explain(&error)),
    }
}

/// One document, with a line feed at its end.
pub fn write(value: &Value) -> String {
    let options = serde_saphyr::ser_options! {
        // Folded scalars are read differently by different readers.
        folded_wrap_chars: usize::MAX
    };
    let mut text = serde_saphyr::to_string_with_options(value, options)
        // JSON, which is YAML, is always possible.
        .unwrap_or_else(|_| value.to_string());
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn explain(error: &serde_saphyr::Error) -> YamlError {
    use serde_saphyr::{MessageFormatter, UserMessageFormatter};

    let place = error.location();
    let message = UserMessageFormatter.format_message(error.without_snippet());
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    YamlError {
        line: place.map_or(1, |place| place.line()),
        column: place.map_or(1, |place| place.column()),
        message: message.chars().map(printable).collect(),
    }
}

/// Values of every kind, with texts that YAML could take for something else.
#[cfg(test)]
pub(super) fn any_value() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;

    let text = prop_oneof![
        "[a-z]{0,8}",
        "\\PC{0,20}",
        any::<String>(),
        prop::sample::select(vec![
            "yes",
            "no",
            "on",
            "off",
            "y",
            "~",
            "null",
            "true",
            "0644",
            "1e3",
            "12:30",
            "0x1f",
            "1_0",
            "-",
            "- a",
            "a: b",
            "#",
            " a",
            "a ",
            "a\n",
            "\na",
            "a\n\nb\n\n",
            "\t",
            "'",
            "\"",
            "|",
            ">",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "=",
            "<<",
            "---",
            "...",
            "2026-01-02",
            ".inf",
            ".",
            "+1",
            "a #b",
            "\u{feff}",
            "\u{85}",
            "\r\n"
        ])
        .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1.0e6..1.0e6).prop_map(|float: f64| Value::from((float * 8.0).round() / 8.0 + 0.0625)),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(text.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Value {
        let mut all = read(text).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0).value
    }

    #[test]
    fn it_is_read_as_kubernetes_reads_it() {
        let text = "a: yes\nb: \"yes\"\nc: 0644\nd: 0o644\ne: 1.5\nf: ~\ng: 1e3\nh: 12:30\ni: 2026-01-02\nj: |\n  x\n  y\nk: off\nl: 08x\n";
        let expected = json!({
            "a": true, "b": "yes", "c": 420, "d": 420, "e": 1.5, "f": null, "g": 1000.0, "h": "12:30", "i": "2026-01-02",
            "j": "x\ny\n", "k": false, "l": "08x"
        });
        assert_eq!(one(text), expected);
        assert_eq!(
            one("a: &x {b: 1}\nc: *x\n"),
            json!({ "a": { "b": 1 }, "c": { "b": 1 } })
        );
        assert_eq!(one("{\n\t\"a\": [1,\t2]\n}\n"), json!({ "a": [1, 2] }));
    }

    #[test]
    fn documents_have_lines() {
        let all = read("# c\na: 1\n---\n---\n\nb: 2\n...\n---\n# d\nc: 3\n").unwrap();
        let lines: Vec<_> = all.iter().map(|document| document.line).collect();
        assert_eq!(lines, [2, 6, 10]);
    }

    #[test]
    fn mistakes_have_places() {
        for (text, line) in [
            ("a: 1\nb: [1,\n", 2),
            ("a: 1\n---\nb: 1\nb: 2\n", 4),
            ("a: .inf\n", 1),
            ("a: !mine 1\n", 1),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.line, line, "{text} {error}");
        }
    }

    #[test]
    fn what_is_written_is_for_people() {
        let value = json!({ "a": { "b": [{ "c": "x", "d": 1 }], "e": "yes", "f": "1", "g": "l\nm\n", "h": [], "i": {} } });
        let text = "a:\n  b:\n  - c: x\n    d: 1\n  e: \"yes\"\n  f: \"1\"\n  g: |\n    l\n    m\n  h: []\n  i: {}\n";
        assert_eq!(write(&value), text);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_value()) {
            prop_assume!(!value.is_null());
            let text = write(&value);
            let again = read(&text);
            prop_assert_eq!(again.map(|all| all.into_iter().map(|it| it.value).collect::<Vec<_>>()), Ok(vec![value]), "{}", text);
        }
    }
}

//! Unsafe code stays in its rooms: the userspace half's `sys/`, the kernel half's context module, and the `Pod` impls.

use std::path::Path;

/// Where unsafe code may be.
const ROOMS: [&str; 5] = [
    "sidecar-userspace/src/sys/",
    "sidecar-userspace/src/sys.rs",
    "sidecar-ebpf/src/context.rs",
    "sidecar-ebpf/src/context/",
    "tests/src/sys/",
];

/// The lines of `source` that hold unsafe code outside the rooms, as `path:line: text`. `path` is relative to the root.
pub fn strays(path: &Path, source: &str) -> Vec<String> {
    if ROOMS.iter().any(|room| path.starts_with(room)) {
        return Vec::new();
    }
    code_only(source)
        .lines()
        .zip(source.lines())
        .enumerate()
        .filter(|(_, (code, _))| has_unsafe(code) && !is_allowed(path, code))
        .map(|(index, (_, text))| format!("{}:{}: {}", path.display(), index + 1, text.trim()))
        .collect()
}

fn has_unsafe(code: &str) -> bool {
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .any(|word| word == "unsafe")
}

/// The Pod impls of the shared types, and the attributes that name a section of the BPF object.
fn is_allowed(path: &Path, code: &str) -> bool {
    let code = code.trim();
    let pod = path.starts_with("sidecar-common/src/")
        && code.starts_with("unsafe impl")
        && (code.contains(" aya::Pod for ") || code.contains(" Pod for "));
    let section = path.starts_with("sidecar-ebpf/src/") && code.starts_with("#[unsafe(");
    pod || section
}

/// `source` with comments and strings blanked, line for line.
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest.get(open..)
                .and_then(|inside| inside.find(&close))
                .map_or(rest.len(), |end| open + end + close.len())
        } else if first == '"' {
            string_length(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest.get(1..)
                .and_then(|inside| inside.find("\"'"))
                .map_or(1, |end| end + 3)
        } else {
            0
        };
        if skipped == 0 {
            code.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        } else {
            let (gone, after) = rest.split_at(skipped.min(rest.len()));
            code.extend(gone.chars().filter(|letter| *letter == '\n'));
            code.push(' ');
            rest = after;
        }
    }
    code
}

/// The number of hashes, if `text` begins with a raw string.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after
        .trim_start_matches('#')
        .starts_with('"')
        .then_some(hashes)
}

/// The length of the string literal that `text` begins with, both quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (index, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn strays_in(path: &str, source: &str) -> Vec<String> {
        strays(Path::new(path), source)
    }

    #[test]
    fn unsafe_outside_its_rooms_is_found_with_its_line() {
        let source = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(
            strays_in("sidecar-userspace/src/connection/relay.rs", source),
            ["sidecar-userspace/src/connection/relay.rs:2: unsafe { g() }"]
        );
        assert!(strays_in("sidecar-userspace/src/sys/sockopt.rs", source).is_empty());
        assert!(strays_in("sidecar-ebpf/src/context.rs", source).is_empty());
        assert!(strays_in("sidecar-ebpf/src/context/option.rs", source).is_empty());
        assert_eq!(strays_in("sidecar-ebpf/src/decide.rs", source).len(), 1);
    }

    #[test]
    fn words_in_comments_and_strings_are_not_code() {
        let source = "// unsafe\n/* unsafe\nunsafe */ let a = \"unsafe \\\" unsafe\";\nlet b = r#\"unsafe \" \"#; let c = '\"';\nlet unsafe_op = 1;\n";
        assert!(strays_in("tests/src/lib.rs", source).is_empty());
        let hidden = "let c = '\"'; unsafe { d() } // \"\n";
        assert_eq!(strays_in("tests/src/lib.rs", hidden).len(), 1);
    }

    #[test]
    fn only_pod_impls_and_section_attributes_are_excepted() {
        let pod = "unsafe impl aya::Pod for FlowKey {}\n";
        assert!(strays_in("sidecar-common/src/flow.rs", pod).is_empty());
        assert_eq!(strays_in("sidecar-userspace/src/flow.rs", pod).len(), 1);
        assert_eq!(
            strays_in(
                "sidecar-common/src/flow.rs",
                "unsafe impl Send for FlowKey {}\n"
            )
            .len(),
            1
        );
        assert!(
            strays_in(
                "sidecar-ebpf/src/main.rs",
                "#[unsafe(link_section = \"license\")]\n"
            )
            .is_empty()
        );
    }
}

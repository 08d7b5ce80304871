//! What the documents say is true: each command, option and file that they name exists.

use std::{collections::BTreeMap, path::Path};

/// The commands that exist: a program's name ("cargo xtask", "sidecar") and its verbs, each with its help text.
pub type Commands = BTreeMap<String, BTreeMap<String, String>>;

/// What `text` names that does not exist, as `path:line: what`. `path` is relative to `root`, `text` is Markdown.
pub fn untruths(root: &Path, path: &Path, text: &str, commands: &Commands) -> Vec<String> {
    let mut found = Vec::new();
    for (number, code) in code_of(text) {
        for (program, verbs) in commands {
            if let Some(problem) = wrong_command(&code, program, verbs) {
                found.push((number, problem));
            }
        }
        if names_a_file(&code, root) && !root.join(code.trim_end_matches('/')).exists() {
            found.push((number, format!("there is no {code}")));
        }
    }
    for (number, target) in links_of(text) {
        let directory = root.join(path).parent().unwrap_or(root).to_owned();
        if !directory.join(&target).exists() {
            found.push((number, format!("the link to {target} leads nowhere")));
        }
    }
    found
        .into_iter()
        .map(|(number, problem)| format!("{}:{number}: {problem}", path.display()))
        .collect()
}

/// Pieces of code with their line number: each line of a fenced block, each `span`.
fn code_of(text: &str) -> Vec<(usize, String)> {
    let mut pieces = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            pieces.push((index + 1, line.trim().to_owned()));
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            pieces.extend(spans.map(|span| (index + 1, span.trim().to_owned())));
        }
    }
    pieces
}

/// What is wrong with the call of `program` in `code`: a verb that is not, or an option that its help does not know.
fn wrong_command(code: &str, program: &str, verbs: &BTreeMap<String, String>) -> Option<String> {
    let code = code.split('#').next().unwrap_or_default();
    let call = code.split(['|', ';', '&']).find_map(|part| {
        part.trim()
            .trim_start_matches("$ ")
            .trim_start_matches("sudo ")
            .strip_prefix(program)?
            .strip_prefix(' ')
    })?;
    // What stands after `--` is another program's, what is in brackets may be left out but must exist.
    let ours = [" -- ", " [-- "]
        .iter()
        .filter_map(|end| call.find(end))
        .min();
    let call = call.get(..ours.unwrap_or(call.len())).unwrap_or_default();
    let mut words = call
        .split_whitespace()
        .map(|word| word.trim_matches(['[', ']', ',', '.']));
    let verb = words.next()?;
    if verb.starts_with('-')
        || verb.is_empty()
        || !verb
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter == '-')
    {
        return None;
    }
    let Some(help) = verbs.get(verb) else {
        return Some(format!("`{program}` has no verb {verb}"));
    };
    let known = |option: &str| {
        help.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-')
            .any(|word| word == option)
    };
    words
        .filter(|word| word.starts_with('-'))
        .map(|word| word.split(['=', '|']).next().unwrap_or(word))
        .find(|option| !option.trim_matches('-').is_empty() && !known(option))
        .map(|option| format!("`{program} {verb}` has no option {option}"))
}

/// Whether `code` is a path into this repository: it begins with a directory of the top level.
fn names_a_file(code: &str, root: &Path) -> bool {
    let Some((first, _)) = code.split_once('/') else {
        return false;
    };
    let plain = code
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
    plain
        && first != "target"
        && !first.is_empty()
        && !first.starts_with("..")
        && root.join(first).is_dir()
}

/// Links to files, with their line number and without their anchor.
fn links_of(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for after in line.split("](").skip(1) {
            let target = after.split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                links.push((index + 1, target.to_owned()));
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn commands() -> Commands {
        let verbs = |names: &[(&str, &str)]| {
            names
                .iter()
                .map(|(name, help)| ((*name).to_owned(), (*help).to_owned()))
                .collect()
        };
        Commands::from([
            (
                "cargo xtask".to_owned(),
                verbs(&[("test", "  --plain  no root"), ("build", "")]),
            ),
            (
                "sidecar".to_owned(),
                verbs(&[("run", "-c, --config <FILE>\n --cgroup <PATH>")]),
            ),
        ])
    }

    fn wrong(text: &str) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("xtask")).unwrap();
        untruths(directory.path(), Path::new("README.md"), text, &commands())
    }

    #[test]
    fn commands_that_exist_pass() {
        let text = "Run `cargo xtask test --plain`.\n\n```\n$ sudo cargo xtask build\nsidecar run [-c FILE] [--cgroup PATH] [-- CMD --any]\n```\n";
        assert_eq!(wrong(text), Vec::<String>::new());
    }

    #[test]
    fn a_stale_verb_option_file_or_link_is_found() {
        let text = "`cargo xtask tset`\n`cargo xtask test --fast`\n    sidecar run --config=a --cgruop b\n`xtask/src/gone.rs`\n[a](gone.md#top)\n";
        assert_eq!(
            wrong(text),
            [
                "README.md:1: `cargo xtask` has no verb tset",
                "README.md:2: `cargo xtask test` has no option --fast",
                "README.md:3: `sidecar run` has no option --cgruop",
                "README.md:4: there is no xtask/src/gone.rs",
                "README.md:5: the link to gone.md leads nowhere",
            ]
        );
    }

    #[test]
    fn prose_and_other_programs_are_left_alone() {
        assert!(wrong("the sidecar runs; `sidecar-ebpf`, `sidecar` and `SIDECAR=1`, [b](https://a.example/b)").is_empty());
    }
}

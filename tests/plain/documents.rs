//! The examples of the documents work: configurations pass the real loader, command lines the real parser.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, Parser};
use sidecar_userspace::{cli::Cli, config};

fn root() -> PathBuf {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent.unwrap().to_owned()
}

/// Files with this extension at the top, in deploy/ and in deploy/examples/, relative to the root.
fn files(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in ["", "deploy", "deploy/examples"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// A piece of code in a document, and the line it begins at.
#[derive(Debug, PartialEq)]
struct Code {
    line: usize,
    /// What stands behind the three backticks; `span` for code within a line.
    kind: String,
    text: String,
}

fn code_of(markdown: &str) -> Vec<Code> {
    let mut found: Vec<Code> = Vec::new();
    let mut fence = None;
    for (number, line) in markdown
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
    {
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            fence = match fence {
                Some(_) => None,
                None => Some(kind.trim().to_owned()),
            };
            if let Some(kind) = &fence {
                found.push(Code {
                    line: number + 1,
                    kind: kind.clone(),
                    text: String::new(),
                });
            }
        } else if fence.is_some() {
            if let Some(block) = found.last_mut() {
                block.text += line;
                block.text.push('\n');
            }
        } else if line.starts_with("    ") {
            found.push(Code {
                line: number,
                kind: "indented".to_owned(),
                text: line.to_owned(),
            });
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(|span| Code {
                line: number,
                kind: "span".to_owned(),
                text: span.to_owned(),
            }));
        }
    }
    found
}

/// The calls of `sidecar` in a piece of code, each with its line, as words.
fn calls(code: &Code) -> Vec<(usize, Vec<String>)> {
    let lines = code.text.lines().enumerate();
    let parts = lines.flat_map(|(at, line)| {
        let line = line.split(" #").next().unwrap_or_default();
        let parts = line.split(['|', ';', '&']);
        parts.map(move |part| (code.line + at, part.trim()))
    });
    let calls = parts.filter_map(|(line, part)| {
        let part = part.trim_start_matches("$ ").trim_start_matches("sudo ");
        let arguments = part.strip_prefix("sidecar ")?;
        // What may be left out has to be right as well; a placeholder stands for itself.
        let words = arguments.split_whitespace();
        let words = words.map(|word| word.trim_matches(['[', ']', '…']).to_owned());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        let verb = words.first()?;
        let is_call = verb.chars().all(|letter| letter.is_ascii_lowercase());
        is_call.then_some((line, words))
    });
    calls.collect()
}

/// What the parser says against a call. A mere mention of a verb needs no arguments.
fn objection(words: &[String], mention: bool) -> Option<String> {
    if mention && words.len() == 1 {
        let known = Cli::command().find_subcommand(&words[0]).is_some();
        return (!known).then(|| "there is no such command".to_owned());
    }
    let all = std::iter::once("sidecar".to_owned()).chain(words.iter().cloned());
    let error = Cli::try_parse_from(all).err()?;
    Some(error.to_string())
}

fn objections(path: &Path, markdown: &str, checked: &mut usize) -> Vec<String> {
    let mut wrong = Vec::new();
    for code in code_of(markdown) {
        for (line, words) in calls(&code) {
            *checked += 1;
            if let Some(objection) = objection(&words, code.kind == "span") {
                let call = words.join(" ");
                wrong.push(format!(
                    "{}:{line}: sidecar {call}: {objection}",
                    path.display()
                ));
            }
        }
        // A manifest of Kubernetes is somebody else's.
        let ours =
            matches!(code.kind.as_str(), "yaml" | "yml") && !code.text.contains("apiVersion:");
        if ours {
            *checked += 1;
            // Empty lines in front, so that errors name the document's lines.
            let text = "\n".repeat(code.line - 1) + &code.text;
            if let Err(errors) = config::parse(&path.display().to_string(), &text) {
                wrong.push(errors.to_string());
            }
        }
    }
    wrong
}

#[test]
fn configurations_are_loaded() {
    let found = files("yaml");
    assert!(found.len() >= 4, "{found:?}");
    for path in found {
        // Errors name the file and the line themselves.
        if let Err(errors) = config::load(&root().join(&path)) {
            panic!("{errors}");
        }
    }
}

#[test]
fn examples_in_documents_work() {
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for path in files("md") {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        wrong.extend(objections(&path, &text, &mut checked));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 10, "only {checked} examples were found");
}

#[test]
fn examples_in_the_help_work() {
    let help = Cli::command().get_after_help().unwrap().to_string();
    let mut checked = 0;
    for line in help.lines().filter(|line| line.starts_with("  ")) {
        // Two blanks separate the call from what it is for.
        let call = line.trim().split("  ").next().unwrap_or_default();
        let code = Code {
            line: 0,
            kind: "help".to_owned(),
            text: call.to_owned(),
        };
        for (_, words) in calls(&code) {
            checked += 1;
            assert_eq!(objection(&words, false), None, "{call}");
        }
    }
    assert!(checked >= 4, "{help}");
}

/// Mistakes are found, and told with file and line.
#[test]
fn a_wrong_example_is_found() {
    let markdown = "Run `sidecar check`, `sidecar chekc`.\n\n    sudo sidecar run --cgruop PATH   # no such option\n\n\
                    ```yaml\noutbound:\n  unknwon: refuse\n```\n\n```\n$ sidecar run [-c FILE] [-- CMD …]\nsidecar run -c\n```\n";
    let mut checked = 0;
    let wrong = objections(Path::new("A.md"), markdown, &mut checked);
    assert_eq!(wrong.len(), 4, "{wrong:#?}");
    for (wrong, place) in wrong
        .iter()
        .zip(["A.md:1:", "A.md:3:", "A.md:7:", "A.md:12:"])
    {
        assert!(wrong.starts_with(place), "not at {place} {wrong}");
    }
    assert!(wrong[2].contains("unknwon"), "{wrong:#?}");
    assert_eq!(checked, 6);
}

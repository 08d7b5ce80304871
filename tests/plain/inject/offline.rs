//! Files: what comes out is valid, allowed, complete, and read in the same way by others.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use sidecar_tests::{pod_security::violations, world::programs::python};

use super::webhook::{here, program};

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = program();
    command.arg("inject").args(arguments);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that reads nothing is none's fault.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What `sidecar inject` writes.
pub fn injected(arguments: &[&str]) -> String {
    let output = run(arguments, "");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script of Python's with what tests/requirements.txt has.
fn python_says(script: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(python().unwrap());
    let output = command
        .arg("-c")
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// As PyYAML (YAML 1.1, like Kubernetes) reads a file: a list of its objects.
pub fn as_json(path: &str) -> String {
    const SCRIPT: &str = "import json, sys, yaml\n\
        print(json.dumps({'items': [each for each in yaml.safe_load_all(open(sys.argv[1])) if each is not None]}))";
    python_says(SCRIPT, &[path])
}

fn manifests() -> Vec<PathBuf> {
    let all = fs::read_dir(here("manifests")).unwrap();
    let mut all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 4);
    all
}

/// The specs of pods in whatever it is.
fn specs(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(object) => {
            let here = object.get("containers").map(|_| value);
            here.into_iter()
                .chain(object.values().flat_map(specs))
                .collect()
        }
        Value::Array(list) => list.iter().flat_map(specs).collect(),
        _ => Vec::new(),
    }
}

const VARIANTS: [&[&str]; 4] = [
    &[],
    &[
        "--config-map",
        "mesh",
        "--identity",
        "csi",
        "--pull-policy",
        "Always",
    ],
    &[
        "--identity",
        "secret/orders",
        "--namespace",
        "shop",
        "--cpu",
        "none",
        "--sidecar-log",
        "debug",
    ],
    &[
        "--sidecar-kind",
        "container",
        "--memory",
        "none",
        "--memory-limit",
        "none",
        "--cpu",
        "none",
    ],
];

#[test]
fn what_comes_out_is_valid_and_restricted() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (number, variant) in VARIANTS.iter().enumerate() {
        for path in manifests() {
            let arguments: Vec<&str> = variant
                .iter()
                .copied()
                .chain(["-f", path.to_str().unwrap()])
                .collect();
            let text = injected(&arguments);
            let name = path.file_name().unwrap().to_str().unwrap();
            let file = directory.path().join(format!("{number}-{name}"));
            fs::write(&file, &text).unwrap();
            let objects: Value = serde_json::from_str(&as_json(file.to_str().unwrap())).unwrap();
            for spec in specs(&objects) {
                assert!(spec.to_string().contains("SIDECAR_AGENT"), "{spec:#}");
                assert_eq!(violations(spec), [""; 0], "{spec:#}");
            }
            files.push(file);
        }
    }
    // Lists are nothing that it knows.
    const SCRIPT: &str = "
import sys, yaml, kubernetes_validate
count = 0
for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        for each in document.get('items', [document]):
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
            count += 1
print(count)
";
    let files: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    let count: usize = python_says(SCRIPT, &files).trim().parse().unwrap();
    assert_eq!(count, 4 * 10);
}

#[test]
fn the_host_path_is_all_that_is_not_restricted() {
    let path = here("manifests/deployment.yaml");
    let text = injected(&[
        "--agent-volume",
        "hostPath",
        "-o",
        "json",
        "-f",
        path.to_str().unwrap(),
    ]);
    let objects: Value = serde_json::from_str(&text).unwrap();
    for spec in specs(&objects) {
        assert_eq!(violations(spec), ["volume \"sidecar-agent\" is a hostPath"]);
    }
}

/// A second time changes nothing, YAML or JSON, file or pipe; and everything that was there is there.
#[test]
fn nothing_is_lost_and_a_second_time_changes_nothing() {
    for path in manifests() {
        let path = path.to_str().unwrap();
        let once = injected(&["-f", path]);
        let again = run(&["-f", "-"], &once);
        assert_eq!(String::from_utf8(again.stdout).unwrap(), once);
        let json = injected(&["-o", "json", "-f", path]);
        let from_json = run(&["-o", "json", "-f", "-"], &json);
        assert_eq!(String::from_utf8(from_json.stdout).unwrap(), json);

        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &once).unwrap();
        let before: Value = serde_json::from_str(&as_json(path)).unwrap();
        let after: Value = serde_json::from_str(&as_json(file.path().to_str().unwrap())).unwrap();
        lost_nothing(&before, &after, path);
    }
}

/// Whatever is in `before` is in `after`, lists in their order.
fn lost_nothing(before: &Value, after: &Value, at: &str) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let found = after
                    .get(key)
                    .unwrap_or_else(|| panic!("{at}/{key} is lost"));
                lost_nothing(value, found, &format!("{at}/{key}"));
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            let ours = |each: &&Value| {
                each["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with("sidecar"))
            };
            let after: Vec<&Value> = after.iter().filter(|each| !ours(each)).collect();
            assert_eq!(before.len(), after.len(), "{at}");
            for (number, (before, after)) in before.iter().zip(after).enumerate() {
                lost_nothing(before, after, &format!("{at}/{number}"));
            }
        }
        _ => assert_eq!(before, after, "{at}"),
    }
}

#[test]
fn mistakes_are_told_with_file_and_line() {
    let pod = |rest: &str| {
        format!(
            "# one\n---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: a }}\nspec: {{ {rest} }}\n"
        )
    };
    for (text, code, says) in [
        ("a: [\n".to_owned(), 1, "standard input:1:"),
        ("a: 1\n---\nb: {\n".to_owned(), 1, "standard input:3:"),
        (
            pod("containers: []"),
            1,
            "standard input:3: Pod a: it has no containers",
        ),
        (
            pod("containers: [{ name: x, ports: [{ containerPort: 15006 }] }]"),
            1,
            "standard input:3: Pod a: container x has port 15006",
        ),
        (
            pod("hostNetwork: yes, containers: [{ name: x }]"),
            0,
            "warning: standard input:3: Pod a: left without a sidecar",
        ),
        ("a: 1\n".to_owned(), 0, "warning: no pod got a sidecar"),
    ] {
        let output = run(&["-f", "-"], &text);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(code) && said.contains(says),
            "{text}: {:?} {said}",
            output.status
        );
        assert_eq!(output.stdout.is_empty(), code != 0, "{text}");
    }
    let output = run(&["-f", "/nonexistent"], "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(run(&[], "").status.code(), Some(2));
    // Outside of a cluster there is no API server to ask.
    let mut serve = program();
    serve
        .args(["inject", "serve"])
        .env_remove("KUBERNETES_SERVICE_HOST");
    let output = serve.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && said.contains("--tls-cert"),
        "{said}"
    );
}

//! The configuration of a sidecar under test. JSON is YAML, so no second dialect is needed.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Configuration and environment of a sidecar; starts from the built-in settings.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    file: Map<String, Value>,
    pub environment: Vec<(String, String)>,
    /// Steer this control group of the workload's instead of one that the sidecar makes; relative to the workload's.
    pub cgroup: Option<String>,
    /// The binary, if it is not the one of `programs::sidecar`.
    pub binary: Option<PathBuf>,
    /// The program that the sidecar starts, with its arguments.
    pub command: Vec<String>,
}

impl Settings {
    /// Sets a key by its dotted path: `set("redirect.enabled", false)`.
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut map = &mut self.file;
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            if keys.peek().is_none() {
                map.insert(key.to_owned(), value.into());
                break;
            }
            let inner = map.entry(key).or_insert_with(|| json!({}));
            if !inner.is_object() {
                *inner = json!({});
            }
            let Some(inner) = inner.as_object_mut() else {
                break;
            };
            map = inner;
        }
        self
    }

    /// Declares the protocol of a port, both for connections to it and for connections from it.
    pub fn protocol(self, port: u16, protocol: &str) -> Self {
        let entry = json!({"port": port, "protocol": protocol});
        self.push("inbound.ports", entry.clone())
            .push("outbound.ports", entry)
    }

    /// Appends to a list by its dotted path.
    pub fn push(self, path: &str, value: impl Into<Value>) -> Self {
        let mut list = match self.get(path) {
            Some(Value::Array(list)) => list.clone(),
            _ => Vec::new(),
        };
        list.push(value.into());
        self.set(path, list)
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The design that redirects on any map hit: what the tests must catch.
    pub fn naive(self) -> Self {
        self.environment("SIDECAR_FAULT", "naive-redirect")
    }

    pub fn without_redirect(self) -> Self {
        self.set("redirect.enabled", false)
    }

    /// The design that goes past the proxies whatever they hold: what the tests must catch.
    pub fn naive_join(self) -> Self {
        self.environment("SIDECAR_FAULT", "naive-join")
    }

    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    pub fn cgroup(mut self, name: &str) -> Self {
        self.cgroup = Some(name.to_owned());
        self
    }

    /// The configuration file for the workload `name`.
    pub fn text(&self, name: &str) -> String {
        let named = self.clone().set("workload.name", name);
        Value::Object(named.file).to_string()
    }

    fn get(&self, path: &str) -> Option<&Value> {
        let mut keys = path.split('.');
        let first = self.file.get(keys.next()?)?;
        keys.try_fold(first, |value, key| value.get(key))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dotted_paths_build_nested_mappings() {
        let settings = Settings::default()
            .set("redirect.enabled", false)
            .protocol(80, "http")
            .protocol(81, "tcp");
        let text: Value = serde_json::from_str(&settings.text("a")).unwrap();
        assert_eq!(text["redirect"]["enabled"], false);
        assert_eq!(text["inbound"]["ports"][1]["protocol"], "tcp");
        assert_eq!(text["workload"]["name"], "a");
    }
}

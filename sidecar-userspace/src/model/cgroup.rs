//! Patterns for cgroups below a workload's own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A relative path in which `*` stands for any run of characters within one name: `batch`, `jobs/*`, `pod-*/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPattern {
    names: Vec<String>,
}

impl CgroupPattern {
    /// `None` if `text` is not a path that stays below where it starts.
    pub fn new(text: &str) -> Option<Self> {
        let names: Vec<String> = text.split('/').map(str::to_owned).collect();
        let is_name = |name: &String| {
            !matches!(name.as_str(), "" | "." | "..")
                && name.len() <= 255
                && !name.chars().any(char::is_control)
        };
        (names.len() <= 16 && names.iter().all(is_name)).then_some(Self { names })
    }

    /// How many levels down it looks.
    pub fn depth(&self) -> usize {
        self.names.len()
    }

    /// Whether `path`, the names from the workload's cgroup down, is meant.
    pub fn matches(&self, path: &[String]) -> bool {
        let mut pairs = self.names.iter().zip(path);
        self.names.len() == path.len() && pairs.all(|(pattern, name)| is_like(pattern, name))
    }
}

impl fmt::Display for CgroupPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join("/"))
    }
}

impl From<CgroupPattern> for String {
    fn from(pattern: CgroupPattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for CgroupPattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text).ok_or("a path below the workload's cgroup")
    }
}

fn is_like(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    // The first place where a part fits leaves the most for those behind it.
    for part in parts {
        let Some((_, behind)) = name.split_once(part) else {
            return false;
        };
        name = behind;
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        CgroupPattern::new(pattern).unwrap().matches(&path)
    }

    #[test]
    fn stars_stay_within_a_name() {
        for (pattern, path) in [
            ("batch", "batch"),
            ("jobs/*", "jobs/1"),
            ("pod-*/metrics", "pod-a/metrics"),
            ("*-*-c", "a-b-c"),
            ("*.scope", "a.b.scope"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("batch", "batches"),
            ("jobs/*", "jobs"),
            ("jobs/*", "jobs/1/2"),
            ("*", "a/b"),
            ("a*a", "a"),
            ("*-*-c", "a-c"),
            ("*b*b", "b"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn what_leads_out_is_no_pattern() {
        for text in ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "a\nb"] {
            assert_eq!(CgroupPattern::new(text), None, "{text:?}");
        }
    }
}

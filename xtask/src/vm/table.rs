//! What came of the kernels: a table for people, JSON for the rest.

use crate::step;
use anyhow::Result;
use serde_json::{Value, json};
use std::{fmt, path::PathBuf, time::Duration};

/// One kernel.
pub struct Row {
    name: String,
    release: String,
    steps: Vec<Step>,
    pub seconds: f64,
    /// Why the machine did not come to its end.
    pub broken: Option<String>,
    /// A machine before this one broke down.
    second: bool,
    /// What the kernel and the programs said.
    pub console: Option<PathBuf>,
}

/// What `guest` tells of one step.
pub struct Step(Value);

impl Step {
    /// Reads a line; one that is no step is somebody else's.
    pub fn read(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line.trim()).ok()?;
        value["step"].is_string().then_some(Self(value))
    }

    fn name(&self) -> &str {
        self.0["step"].as_str().unwrap_or_default()
    }

    fn ok(&self) -> bool {
        self.0["ok"] == true
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ok() { "ok" } else { "FAILED" };
        write!(f, "{} {verdict}", self.name())?;
        if let Some(seconds) = self.0["seconds"].as_f64() {
            write!(f, " ({})", step::seconds(Duration::from_secs_f64(seconds)))?;
        }
        Ok(())
    }
}

impl Row {
    pub fn new(name: &str, release: &str) -> Self {
        Self {
            name: name.to_owned(),
            release: release.to_owned(),
            steps: Vec::new(),
            seconds: 0.0,
            broken: None,
            second: false,
            console: None,
        }
    }

    /// Of a kernel that could not be had.
    pub fn without_kernel(name: &str, error: &anyhow::Error) -> Self {
        Self {
            broken: Some(format!("{error:#}")),
            ..Self::new(name, "-")
        }
    }

    /// The same, of a machine that was started after one that broke down.
    pub fn second(self) -> Self {
        Self {
            second: true,
            ..self
        }
    }

    pub fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Whether `guest` has told its last line.
    pub fn ended(&self) -> bool {
        self.step("end").is_some()
    }

    pub fn passed(&self) -> bool {
        self.broken.is_none() && self.ended() && self.steps.iter().all(Step::ok)
    }

    /// What failed, for an error.
    pub fn failure(&self) -> Option<String> {
        if self.passed() {
            return None;
        }
        let failed = self
            .steps
            .iter()
            .filter(|step| !step.ok() && step.name() != "end");
        let failed = failed.map(|step| {
            let error = step.0["error"].as_str().unwrap_or_default();
            format!("{}: {error}", step.name())
        });
        let console = self.console.iter();
        let console = console.map(|path| format!("see {}", path.display()));
        let told: Vec<_> = failed.chain(self.broken.clone()).chain(console).collect();
        Some(format!(
            "kernel {} ({}): {}",
            self.name,
            self.release,
            told.join("; ")
        ))
    }

    fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name() == name)
    }

    fn result(&self) -> &'static str {
        match (self.passed(), self.step("refusal").is_some()) {
            (true, true) => "refused in words",
            (true, false) if self.second => "passed at the second start",
            (true, false) => "passed",
            (false, _) => "FAILED",
        }
    }

    fn steering(&self) -> &'static str {
        match self.step("steering").map(Step::ok) {
            Some(true) => "yes",
            Some(false) => "FAILED",
            None => "-",
        }
    }

    /// The rows on redirect of `sidecar check`, in its words.
    fn redirect(&self) -> String {
        let rows = self.step("check").map(|step| &step.0["found"]);
        let rows = rows.and_then(Value::as_array).into_iter().flatten();
        let said = rows
            .filter(|row| row["subject"] == "redirect")
            .filter_map(|row| row["found"].as_str());
        let said: Vec<_> = said.collect();
        match said.is_empty() {
            true => "-".to_owned(),
            false => said.join("; "),
        }
    }
}

/// The table.
pub fn text(rows: &[Row]) -> String {
    let mut lines = vec![
        "| kernel | steering | redirect | redirected messages | result | time |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    lines.extend(rows.iter().map(|row| {
        let redirected = row
            .step("integrity")
            .map(|step| step.0["found"]["redirected"].to_string());
        format!(
            "| {} ({}) | {} | {} | {} | {} | {} |",
            row.name,
            row.release,
            row.steering(),
            row.redirect(),
            redirected.unwrap_or_else(|| "-".to_owned()),
            row.result(),
            step::seconds(Duration::from_secs_f64(row.seconds)),
        )
    }));
    lines.join("\n")
}

/// All that is known.
///
/// # Errors
/// Never in practice: it is all plain data.
pub fn json(rows: &[Row]) -> Result<String> {
    let kernels: Vec<_> = rows
        .iter()
        .map(|row| {
            let steps: Vec<_> = row.steps.iter().map(|step| &step.0).collect();
            json!({
                "name": row.name,
                "release": row.release,
                "steering": row.steering(),
                "redirect": row.redirect(),
                "result": row.result(),
                "seconds": row.seconds,
                "broken": row.broken,
                "steps": steps,
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&json!({ "kernels": kernels }))? + "\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn row(lines: &[&str]) -> Row {
        let mut row = Row::new("6.1", "6.1.0-x");
        lines
            .iter()
            .filter_map(|line| Step::read(line))
            .for_each(|step| row.add(step));
        row
    }

    const CHECK: &str = r#"{"step":"check","ok":true,"seconds":4.0,"found":[{"subject":"redirect","verdict":"ok","found":"on"}]}"#;

    #[test]
    fn a_kernel_passes_only_if_it_told_its_end_and_all_was_well() {
        let steering = r#"{"step":"steering","ok":true,"seconds":1.5,"found":{}}"#;
        let end = "{\"step\":\"end\",\"ok\":true}\r";
        let passed = row(&[CHECK, steering, "init: something", end]);
        assert!(passed.passed() && passed.failure().is_none());
        assert!(text(&[passed]).contains("| 6.1 (6.1.0-x) | yes | on | - | passed |"));
        assert!(!row(&[CHECK, steering]).passed());
    }

    #[test]
    fn what_failed_is_said() {
        let failed = row(&[
            CHECK,
            r#"{"step":"steering","ok":false,"seconds":1.5,"error":"no answer"}"#,
            r#"{"step":"end","ok":false}"#,
        ]);
        assert_eq!(
            failed.failure().unwrap(),
            "kernel 6.1 (6.1.0-x): steering: no answer"
        );
        assert!(text(&[failed]).contains("| FAILED | on | - | FAILED |"));
        let missing = Row::without_kernel("7.9", &anyhow::anyhow!("not there"));
        assert_eq!(missing.failure().unwrap(), "kernel 7.9 (-): not there");
        let refused = row(&[
            r#"{"step":"refusal","ok":true,"found":[]}"#,
            r#"{"step":"end","ok":true}"#,
        ]);
        assert!(json(&[refused]).unwrap().contains("refused in words"));
    }
}

//! The benchmark itself: a row in every mode of our own proxy gives figures that can be true, in every form of report.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::world::programs;

use crate::peers::text;

/// Rows of each kind of load, in two groups.
const ROWS: &str = "tcp-1k-max4,http-mtls-1k-open4,grpc-64b-max4,tcp-stream-64k,tcp-1k-newconn4";

#[test]
fn a_short_run_measures_every_mode() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (json, html) = (
        directory.path().join("run.json"),
        directory.path().join("run.html"),
    );
    bench(&[
        "--rows",
        ROWS,
        "--rounds",
        "1",
        "--seconds",
        "0.5",
        "--json",
        text(&json)?,
        "--html",
        text(&html)?,
    ])?;
    let run: Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
    let samples = run["samples"].as_array().context("no samples")?;
    ensure!(samples.len() == 4 * 5, "{} samples", samples.len());
    for sample in samples {
        plausible(sample).with_context(|| format!("{sample}"))?;
    }
    let memory = run["memory"].as_array().context("no memory")?;
    let pss = |entry: &Value| entry["pss_kib"].as_u64().unwrap_or_default();
    // Both proxies of three modes, before two groups and after five rows.
    ensure!(
        memory.len() == 2 * 3 * 7,
        "{} figures of memory",
        memory.len()
    );
    ensure!(
        memory
            .iter()
            .all(|entry| (1_000..1_000_000).contains(&pss(entry)))
    );
    let page = fs::read_to_string(&html)?;
    ensure!(page.contains("<svg") && page.ends_with("</html>\n"));
    // The same again is no regression.
    let json = text(&json)?;
    bench(&["--from", json, "--baseline", json])
}

/// Traffic went through, and through proxies where there are any.
fn plausible(sample: &Value) -> Result<()> {
    let number = |name: &str| sample[name].as_f64().with_context(|| name.to_owned());
    ensure!(number("requests")? > 50.0 && number("seconds")? > 0.4);
    ensure!(number("errors")? == 0.0);
    ensure!(number("cpu_path")? > 0.0);
    let proxied = sample["mode"] != "direct";
    ensure!((number("cpu_proxies")? > 0.0) == proxied);
    ensure!((number("context_switches")? > 0.0) == proxied);
    if let Some(calls) = sample["system_calls"].as_f64() {
        ensure!(proxied && calls > 0.0 && calls < 1000.0);
    }
    if sample["row"] == "tcp-stream-64k" {
        return Ok(());
    }
    let quantiles = sample["latency"]["quantiles"].as_array();
    let values: Vec<f64> = quantiles
        .context("no latency")?
        .iter()
        .filter_map(|pair| pair[1].as_f64())
        .collect();
    ensure!(values.is_sorted() && values.first().is_some_and(|value| *value > 1.0));
    Ok(())
}

fn bench(arguments: &[&str]) -> Result<()> {
    let bench = programs::traffic()?.with_file_name("bench");
    let output = Command::new(&bench)
        .args(arguments)
        .arg("--sidecar")
        .arg(programs::sidecar()?)
        .output()
        .with_context(|| format!("starting {}", bench.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

//! Runs the benchmarks, keeps what came of them under `benches/results/`, and puts it into the README.

use crate::shell::{cargo, run, target_dir};
use crate::{readme, record};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Runs every benchmark, and writes `benches/results/bench.json` and the README's table.
pub(crate) fn run_all() -> Result<()> {
    let measured = target_dir().join("criterion");
    if measured.exists() {
        fs::remove_dir_all(&measured)?; // results of benchmarks that are no more would be taken for new ones
    }
    run(&mut cargo(["bench", "-p", "nwc-benches", "--benches"]))?;
    let rows = medians(&measured)?;
    ensure!(!rows.is_empty(), "no result in {}", measured.display());
    readme::put_table("cargo xtask bench", &table(&rows)?)?;
    record::write("bench", "cargo xtask bench", &Value::Array(rows))
}

/// The median of each benchmark, as criterion left it: elements a second.
fn medians(folder: &Path) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for group in subfolders(folder)? {
        for function in subfolders(&group)? {
            let read = |name: &str| -> Result<Value> {
                let path = function.join("new").join(name);
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                Ok(serde_json::from_str(&text)?)
            };
            if !function.join("new").is_dir() {
                continue; // criterion's own reports
            }
            let (about, estimates) = (read("benchmark.json")?, read("estimates.json")?);
            let nanoseconds = estimates["median"]["point_estimate"].as_f64().context("no median")?;
            let elements = about["throughput"]["Elements"].as_f64().context("no number of elements")?;
            rows.push(json!({
                "group": about["group_id"],
                "name": about["function_id"],
                "seconds": nanoseconds / 1e9,
                "elements": elements,
                "elements_per_second": elements / nanoseconds * 1e9,
            }));
        }
    }
    Ok(rows)
}

fn subfolders(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    all.retain(|path| path.is_dir());
    all.sort();
    Ok(all)
}

/// The README's table: each benchmark beside the peer of its group.
fn table(rows: &[Value]) -> Result<String> {
    let speed = |group: &str, name: &str| {
        let row = rows.iter().find(|row| row["group"] == group && row["name"] == name);
        row.and_then(|row| row["elements_per_second"].as_f64())
    };
    let mut text = String::from("| | million a second | ratio |\n|---|---|---|\n");
    for (group, label, peer) in [
        ("entropy", "symbols, entropy and trellis", "constriction"),
        ("whole", "weights, whole decode to f16", "memcpy"),
        ("encode", "weights, encode", "scalar"),
    ] {
        let reference = speed(group, peer).with_context(|| format!("{group} lacks {peer}"))?;
        for row in rows.iter().filter(|row| row["group"] == group) {
            let name = row["name"].as_str().context("a benchmark without a name")?;
            let here = row["elements_per_second"].as_f64().context("a benchmark without a speed")?;
            writeln!(text, "| {label}: {name} | {:.1} | {:.3} of {peer} |", here / 1e6, here / reference)?;
        }
    }
    Ok(text)
}

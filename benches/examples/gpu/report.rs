//! Results as the files of benches/results have them: by which command, of which commit, on which machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nwc_decode_cuda::cust::CudaApiVersion;
use nwc_decode_cuda::cust::device::{Device, DeviceAttribute};
use serde_json::{Value, json};

/// Prints results, and writes them to a file if there is one.
pub(crate) fn finish(
    device: Device,
    results: &Value,
    out: Option<&Path>,
    commit: Option<&str>,
) -> Result<()> {
    let report = json!({
        "command": command_line(),
        "commit": commit.map_or_else(commit_here, |commit| Ok(commit.to_owned()))?,
        "machine": machine(device)?,
        "results": results,
    });
    let text = serde_json::to_string_pretty(&report)? + "\n";
    print!("{text}");
    if let Some(out) = out {
        std::fs::write(out, text).with_context(|| out.display().to_string())?;
    }
    Ok(())
}

/// The command that does this again from the sources, without what only says where results go.
fn command_line() -> String {
    let mut words = vec!["cargo run --release -p nwc-benches --features cuda --example gpu --".to_owned()];
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--out" | "--commit" => _ = arguments.next(),
            _ => words.push(argument),
        }
    }
    words.join(" ")
}

fn commit_here() -> Result<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit =
        output.ok().filter(|output| output.status.success()).context("not in a checkout: give --commit")?;
    Ok(String::from_utf8(commit.stdout)?.trim().to_owned())
}

/// The device, and what the driver supports.
fn machine(device: Device) -> Result<String> {
    let attribute = |attribute| device.get_attribute(attribute);
    let driver = CudaApiVersion::get()?;
    Ok(format!(
        "{}, compute capability {}.{}, {} multiprocessors, a driver for CUDA {}.{}",
        device.name()?,
        attribute(DeviceAttribute::ComputeCapabilityMajor)?,
        attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        attribute(DeviceAttribute::MultiprocessorCount)?,
        driver.major(),
        driver.minor()
    ))
}

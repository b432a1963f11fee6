//! Instructions that decoding takes on x86-64 and on aarch64, counted by an emulator: what a clock cannot tell on a machine that is not there.

use crate::make_model;
use crate::qemu::ensure_emulator;
use crate::quickstart::build_program;
use crate::shell::{cargo, command, ensure_target, run, target_dir};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Stdio;

const AARCH64: &str = "aarch64-unknown-linux-musl";
const EXAMPLE: [&str; 6] = ["build", "--release", "-p", "nwc-tests", "--example", "decode-times"];

/// Counts for a synthetic model of 4 M weights at 4 bits; every figure is the difference of decoding it twice and once.
pub(crate) fn count() -> Result<Value> {
    let folder = target_dir().join("models/instructions-4M");
    if !folder.join("model.safetensors").exists() {
        make_model::run(&make_model::Options::new(4_000_000, folder.clone()))?;
    }
    let container = target_dir().join("models/instructions-4M.nwc").display().to_string();
    let model = folder.display().to_string();
    run(&mut command(&build_program()?, ["compress", &model, "-o", &container, "--bits", "4", "--force"]))?;

    // qemu-aarch64, or qemu-aarch64-static; the other has the same ending.
    let ending = ensure_emulator()?.trim_start_matches("qemu-aarch64");
    fs::create_dir_all(target_dir().join("xtask"))?;
    let plugin = target_dir().join("xtask/libcount.so").display().to_string();
    let rustc = ["--edition", "2024", "-O", "-C", "panic=abort", "--crate-type", "cdylib"];
    run(command("rustc", rustc).args(["xtask/qemu-plugin/count.rs", "-o", &plugin]))?;
    run(&mut cargo(EXAMPLE))?;
    ensure_target(AARCH64)?;
    run(cargo(EXAMPLE)
        .args(["--target", AARCH64])
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld"))?;

    let here = target_dir().join("release/examples/decode-times");
    let there = target_dir().join(AARCH64).join("release/examples/decode-times");
    let mut rows = Vec::new();
    // QEMU's AVX2 was new in the version that Debian 12 has, and streams that processors decode fail in it: only the plain engine is counted.
    for (processor, program, levels) in
        [("x86_64", &here, ["plain"].as_slice()), ("aarch64", &there, &["plain", "best"])]
    {
        let emulator = &format!("qemu-{processor}{ending}");
        for level in levels {
            for what in ["symbols", "whole"] {
                let (name, weights, once) =
                    measure(emulator, &plugin, program, [&container, "1", level, what])?;
                let (.., twice) = measure(emulator, &plugin, program, [&container, "2", level, what])?;
                let each = (twice - once) as f64 / weights as f64;
                println!("{processor} {name} {what}: {each:.1} instructions a weight");
                rows.push(json!({
                    "processor": processor,
                    "instructions": name.to_lowercase(),
                    "what": what,
                    "weights": weights,
                    "instructions_per_weight": each,
                }));
            }
        }
    }
    Ok(Value::Array(rows))
}

/// The level that was used, the number of weights, and how many instructions the program took.
fn measure(emulator: &str, plugin: &str, program: &Path, args: [&str; 4]) -> Result<(String, u64, u64)> {
    let mut command = command(emulator, ["-plugin", plugin]);
    let output =
        command.arg(program).args(args).stdin(Stdio::null()).output().with_context(|| emulator.to_owned())?;
    let (text, counted) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{emulator}: {counted}");
    let (level, weights) = text.trim().split_once(' ').context("no number of weights")?;
    let count = counted.lines().find_map(|line| line.strip_prefix("instructions: "));
    Ok((level.to_owned(), weights.parse()?, count.context("the plugin counted nothing")?.trim().parse()?))
}

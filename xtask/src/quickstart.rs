//! The README's first command: the bundled model, compressed and restored.

use crate::shell::{command, output, root, run, target_dir};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;

pub(crate) const MODEL: &str = "examples/clip-mini";

/// Builds the program, compresses the bundled model at 4 bits a weight, checks and decompresses it, and says what came of it.
pub(crate) fn run_through() -> Result<()> {
    let program = build_program()?;
    let folder = target_dir().join("quickstart");
    fs::create_dir_all(&folder)?;
    let container = folder.join("clip-mini.nwc").display().to_string();
    let restored = folder.join("clip-mini").display().to_string();

    let json = |args: &[&str]| -> Result<Value> {
        println!("$ nwc-encode {}", args.join(" "));
        let text = output(&mut command(&program, args.iter().copied().chain(["--json"])))?;
        serde_json::from_str(&text).context("nwc-encode printed no JSON")
    };
    let compressed = json(&["compress", MODEL, "-o", &container, "--bits", "4.0", "--force"])?;
    let verified = json(&["verify", &container, "--against", MODEL])?;
    let decompressed = json(&["decompress", &container, "-o", &restored, "--force"])?;

    let original = fs::metadata(root().join(MODEL).join("model.safetensors"))?.len();
    let bytes = compressed["bytes"].as_u64().context("no size")?;
    println!();
    println!("model               {MODEL}, {} coded weights", compressed["weights"]);
    println!(
        "size                {original} bytes of safetensors -> {bytes} bytes, {:.2} times smaller",
        original as f64 / bytes as f64
    );
    println!(
        "rate                {:.4} bits per coded weight, everything counted",
        compressed["bits_per_weight"].as_f64().unwrap_or(f64::NAN)
    );
    println!(
        "error               nMSE {:.3e} (noise power over signal power of the weights)",
        verified["nmse"].as_f64().unwrap_or(f64::NAN)
    );
    println!("verified            {}, {} tensors", verified["ok"], verified["tensors"]);
    println!(
        "restored            {restored} ({} tensors in {:.2} s)",
        decompressed["tensors"],
        decompressed["seconds"].as_f64().unwrap_or(f64::NAN)
    );
    Ok(())
}

/// Builds `nwc-encode` in the release profile and gives its path.
pub(crate) fn build_program() -> Result<String> {
    build_program_with("")
}

/// The same with these features.
pub(crate) fn build_program_with(features: &str) -> Result<String> {
    run(&mut crate::shell::cargo(["build", "--release", "-p", "nwc-encode-host", "--features", features]))?;
    Ok(target_dir().join("release/nwc-encode").display().to_string())
}

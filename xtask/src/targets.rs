//! The decoder builds wherever it promises to run.

use crate::shell::{cargo, cargo_nightly, ensure_nightly, ensure_target, run};
use anyhow::{Result, ensure};

/// Targets whose standard library rustup has for the pinned toolchain.
const PREBUILT: [&str; 4] = [
    "thumbv6m-none-eabi",
    "thumbv7em-none-eabihf",
    "riscv32imac-unknown-none-elf",
    "aarch64-unknown-linux-musl",
];

/// Has no prebuilt library anywhere: `core` is built from source, which needs an unstable toolchain.
const GPU: &str = "nvptx64-nvidia-cuda";

/// Builds all targets, and fails if any did; one failure does not hide the next.
pub(crate) fn build() -> Result<()> {
    let mut failed = Vec::new();
    for target in PREBUILT {
        record(target, build_prebuilt(target), &mut failed);
    }
    match ensure_nightly(&["rust-src"]) {
        Ok(()) => record(GPU, build_gpu(), &mut failed),
        // Without a network a person can do without; CI may not, or the check would mean nothing.
        Err(error) if std::env::var_os("CI").is_none() => {
            println!("skipped: {GPU}: no unstable toolchain: {error:#}");
        }
        Err(error) => record(GPU, Err(error.context("no unstable toolchain")), &mut failed),
    }
    ensure!(failed.is_empty(), "the decoder does not build for {}", failed.join(", "));
    Ok(())
}

fn build_prebuilt(target: &str) -> Result<()> {
    ensure_target(target)?;
    run(&mut cargo(["build", "--release", "-p", "nwc-decode-core", "--target", target]))
}

/// An rlib: linking PTX takes a linker that not every toolchain has, and is the business of the kernels.
fn build_gpu() -> Result<()> {
    let args = ["build", "--release", "-p", "nwc-decode-core", "-Zbuild-std=core", "--target", GPU];
    // A100 and newer; the default of the target is a GPU of 2016 that current drivers no longer take.
    run(cargo_nightly(args).env("RUSTFLAGS", "-C target-cpu=sm_80"))
}

fn record<'a>(target: &'a str, result: Result<()>, failed: &mut Vec<&'a str>) {
    if let Err(error) = result {
        println!("failed: {target}: {error:#}");
        failed.push(target);
    }
}

//! The conformance tests on emulated aarch64, and its vector engine: the same bytes from another instruction set.

use crate::shell::{apt_install, cargo, ensure_target, run, works};
use anyhow::{Context, Result};

const TARGET: &str = "aarch64-unknown-linux-musl";

/// The emulator has either name, by how the distribution built it.
const EMULATORS: [&str; 2] = ["qemu-aarch64", "qemu-aarch64-static"];

pub(crate) fn test() -> Result<()> {
    ensure_target(TARGET)?;
    let emulator = ensure_emulator()?;
    let conformance = ["--no-default-features", "--test", "conformance"].as_slice();
    // The host's vector engine, against the plain one.
    let levels = ["--test", "levels"].as_slice();
    for tests in [conformance, levels] {
        run(cargo(["test", "-p", "nwc-tests", "--target", TARGET])
            .args(tests)
            // musl brings its own C library and start files, so no cross compiler is needed.
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER", emulator))?;
    }
    Ok(())
}

/// The emulator's name; it comes with those of all other processors.
pub(crate) fn ensure_emulator() -> Result<&'static str> {
    if find_emulator().is_none() {
        apt_install(&["qemu-user"]).context("qemu-aarch64 is missing")?;
    }
    find_emulator().context("qemu-aarch64 is missing, though qemu-user is installed")
}

fn find_emulator() -> Option<&'static str> {
    EMULATORS.into_iter().find(|name| works(name, ["--version"]))
}

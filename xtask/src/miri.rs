//! The decoder's own tests and the small conformance tests under Miri, on a big-endian machine: undefined
//! behaviour, overflows, and bytes in the order of the machine instead of the container's.

use crate::shell::{cargo_nightly, ensure_nightly, output, run};
use anyhow::{Result, ensure};
use std::process::Command;

/// Miri runs thousands of times slower than the machine: the large vectors would take hours.
const FILTER: &str = "small_";

const TARGET: &str = "s390x-unknown-linux-gnu";

pub(crate) fn test() -> Result<()> {
    ensure_nightly(&["miri", "rust-src"])?;
    // A filter that matches nothing passes, so ask what it matches first.
    let tests = output(conformance().arg("--list"))?;
    ensure!(tests.lines().any(|line| line.ends_with(": test")), "no conformance test is named {FILTER}...");
    run(&mut conformance())?;
    run(&mut unit())
}

/// On the same machine: a second one would have its standard library and all dependencies built again.
fn unit() -> Command {
    let mut command = cargo_nightly(["miri", "test", "--target", TARGET]);
    command.args(["-p", "nwc-decode-core", "--lib"]);
    command
}

fn conformance() -> Command {
    let mut command = cargo_nightly(["miri", "test", "--target", TARGET]);
    command.args(["-p", "nwc-tests", "--no-default-features", "--test", "conformance", "--", FILTER]);
    // The tests read the vectors from files.
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    command
}

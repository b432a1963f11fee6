//! The conformance vectors, decoded by a program that shares no code with this workspace.

use crate::shell::{command, run, works};
use anyhow::{Result, ensure};

pub(crate) fn check() -> Result<()> {
    ensure!(works("python3", ["--version"]), "python3 is needed, and is not on the PATH");
    run(&mut command("python3", ["tests/reference/nwc_reference.py", "check", "tests/vectors/ledger.json"]))
}

/// Writes the vectors again, or with `check` fails if they would differ from those that are there.
pub(crate) fn vectors(check: bool) -> Result<()> {
    let make = ["run", "--release", "-p", "nwc-tests", "--example", "make-vectors"];
    run(crate::shell::cargo(make).args(if check { ["--", "--check"].as_slice() } else { &[] }))
}

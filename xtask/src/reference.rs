//! The conformance vectors, decoded by a program that shares no code with this workspace.

use crate::shell::{command, run, works};
use anyhow::{Result, ensure};

pub(crate) fn check() -> Result<()> {
    ensure!(works("python3", ["--version"]), "python3 is needed, and is not on the PATH");
    run(&mut command("python3", ["tests/reference/nwc_reference.py", "check", "tests/vectors/ledger.json"]))
}

//! The conformance tests as a release runs them, but with every overflow an error.

use crate::shell::{cargo, run};
use anyhow::Result;

/// The packages under test. Their dependencies stay as the release has built them, which a profile of its own would build again.
const CHECKED: [&str; 2] = ["nwc-decode-core", "nwc-tests"];

pub(crate) fn test() -> Result<()> {
    let mut command = cargo(["test", "--release", "--no-default-features", "--lib", "--test", "conformance"]);
    for package in CHECKED {
        command.args(["-p", package]);
        for check in ["overflow-checks", "debug-assertions"] {
            command.args(["--config", &format!("profile.release.package.{package}.{check}=true")]);
        }
    }
    run(&mut command)
}

//! The compiler's own checks of form.

use crate::shell::{cargo, run};
use anyhow::Result;

pub(crate) fn fmt() -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> Result<()> {
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Lints and tests what is built to train codecs and run models only: it takes some minutes to build.
pub(crate) fn full() -> Result<()> {
    let build = ["-p", "nwc-encode-host", "--features", "full"];
    run(cargo(["clippy"]).args(build).args(["--all-targets", "--", "-D", "warnings"]))?;
    run(cargo(["test"]).args(build).args(["--lib", "--", "train::", "forward::"]))?;
    run(cargo(["test"]).args(build).args(["--test", "train", "--test", "forward"]))?;
    run(cargo(["test"]).args(build).args(["--doc", "forward"]))
}

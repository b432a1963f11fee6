//! The compiler's own checks of form.

use crate::shell::{cargo, run};
use anyhow::Result;

pub(crate) fn fmt() -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> Result<()> {
    run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

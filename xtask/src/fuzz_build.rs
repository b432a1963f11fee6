//! Fuzz targets that no longer compile find nothing.

use crate::shell::{cargo, root, run};
use anyhow::{Context, Result, ensure};
use std::fs;

const MANIFEST: &str = "fuzz/Cargo.toml";
const CORPUS: &str = "fuzz/corpus";

/// A plain build without sanitizers: enough to keep the targets compiling, on the pinned toolchain. Then every target runs its
/// corpus. The workspace's tests do that too, but in a release build, where an overflow goes unnoticed.
pub(crate) fn build() -> Result<()> {
    ensure!(root().join(MANIFEST).is_file(), "{MANIFEST} is missing");
    run(&mut cargo(["build", "--manifest-path", MANIFEST, "--bins", "--examples"]))?;
    let folders = fs::read_dir(root().join(CORPUS)).context(CORPUS)?;
    for folder in folders {
        let name = folder?.file_name().to_string_lossy().into_owned();
        let inputs = format!("{CORPUS}/{name}");
        run(&mut cargo(["run", "--manifest-path", MANIFEST, "--bin", &name, "--", &inputs, "-runs=0"]))?;
    }
    Ok(())
}

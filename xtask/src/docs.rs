//! What crates.io and docs.rs would do with the published crates.

use crate::shell::{cargo, run, target_dir};
use anyhow::Result;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn check() -> Result<()> {
    run(cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    package()
}

/// Packages all crates at once: the encoder is then verified against the decoders as packaged here, which need
/// not be on crates.io. It builds from the archives, so a file that they lack fails here and not at a user's.
fn package() -> Result<()> {
    // Cargo takes what it has once unpacked and built from a registry to be unchanged for ever, and tells
    // registries apart by their path. In a directory that was used before, the encoder would meet an old decoder.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let fresh = target_dir().join(format!("xtask/package-{now}"));
    let mut package = cargo(["package", "--allow-dirty"]);
    for name in ["nwc-decode-core", "nwc-decode-kernels", "nwc-decode-cuda", "nwc-encode-host"] {
        package.args(["-p", name]);
    }
    let result = run(package.env("CARGO_TARGET_DIR", &fresh));
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    result
}

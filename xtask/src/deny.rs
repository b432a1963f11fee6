//! Licences, bans and sources of the dependencies, as deny.toml states them.

use crate::shell::{cargo, run, works};
use anyhow::Result;

/// Installed when there is none; builds with the pinned toolchain.
const VERSION: &str = "0.20.2";

pub(crate) fn check() -> Result<()> {
    if !works("cargo", ["deny", "--version"]) {
        println!("installing cargo-deny {VERSION}, which takes some minutes");
        run(&mut cargo(["install", "--locked", "cargo-deny", "--version", VERSION]))?;
    }
    run(&mut cargo(["deny", "check", "bans", "licenses", "sources"]))
}

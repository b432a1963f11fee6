//! Runs a firmware under QEMU, decodes its log, and adds what its ELF file says about flash.
//!
//! ```text
//! firmware-host FIRMWARE.elf
//! ```
//!
//! What it prints is a function of the ELF file: QEMU counts instructions instead of time.

mod flash;
mod qemu;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let path = PathBuf::from(std::env::args_os().nth(1).context("which firmware?")?);
    let elf = std::fs::read(&path).with_context(|| path.display().to_string())?;
    qemu::run(&path, &elf)?;
    flash::report(&path, &elf)
}

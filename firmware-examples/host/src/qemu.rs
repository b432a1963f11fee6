//! The emulator, and the log that comes out of it.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use defmt_decoder::{DecodeError, Table};

/// A Cortex-M4F. One instruction takes one nanosecond of the board's time, so that its timers count instructions.
const ARGUMENTS: [&str; 10] = [
    "-machine",
    "mps2-an386",
    "-nographic",
    "-monitor",
    "none",
    "-serial",
    "none",
    "-icount",
    "shift=0",
    "-semihosting-config",
];

/// Runs a firmware until it exits and prints its log.
pub fn run(path: &Path, elf: &[u8]) -> Result<()> {
    let table = Table::parse(elf)?.context("the firmware has no defmt section")?;
    let mut decoder = table.new_stream_decoder();
    let mut emulator = Command::new("qemu-system-arm")
        .args(ARGUMENTS)
        .args(["enable=on,target=native", "-kernel"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run qemu-system-arm")?;
    let mut output = emulator.stdout.take().context("no output")?;
    let mut bytes = [0; 4096];
    loop {
        let count = output.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        decoder.received(&bytes[..count]);
        loop {
            match decoder.decode() {
                Ok(frame) => println!("{}", frame.display_message()),
                Err(DecodeError::UnexpectedEof) => break,
                Err(DecodeError::Malformed) => anyhow::bail!("a malformed log frame"),
            }
        }
    }
    let status = emulator.wait()?;
    ensure!(status.success(), "the firmware failed: {status}");
    Ok(())
}

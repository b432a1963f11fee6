//! The firmware under QEMU: what it decodes, and what that takes, is what is committed.

use crate::quickstart::{MODEL, build_program};
use crate::shell::{apt_install, cargo, command, ensure_target, output, root, run, target_dir, works};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use half::f16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::fs;
use std::process::Command;

/// The workspace of the firmware.
const MANIFEST: &str = "firmware-examples/Cargo.toml";
const CONTAINER: &str = "firmware-examples/models/clip-mini.nwc";
const EXPECTED: &str = "firmware-examples/cortex-m/decode_tensor/decode_tensor.out";
const DOCUMENT: &str = "docs/firmware.md";
/// Between these lines of the document stands what the firmware printed, tensors left out.
const MARKS: [&str; 2] = ["<!-- printed by `cargo xtask firmware` -->\n```text\n", "```\n<!-- end -->"];

pub(crate) const TARGET: &str = "thumbv7em-none-eabihf";

#[derive(Args)]
pub(crate) struct Options {
    /// Write down what it printed as what is expected, in the document too
    #[arg(long)]
    bless: bool,
    /// First compress the bundled model again, after a change of the format
    #[arg(long)]
    remake_model: bool,
}

impl Options {
    pub(crate) const CHECK: Self = Self { bless: false, remake_model: false };
}

pub(crate) fn test(options: &Options) -> Result<()> {
    ensure_target(TARGET)?;
    ensure_emulator()?;
    lint()?;
    if options.remake_model {
        let compress = ["compress", MODEL, "-o", CONTAINER, "--bits", "4.0", "--force"];
        let program = build_program()?;
        run(&mut command(&program, compress))?;
        let matrix = target_dir().join("firmware-matrix.safetensors");
        fs::write(&matrix, wide_matrix()).context("cannot write the matrix")?;
        for quantizer in ["scalar", "trellis8"] {
            let container = format!("firmware-examples/models/wide-{quantizer}.nwc");
            let matrix = matrix.to_str().context("the target folder's name is not text")?;
            let options = ["--bits", "4.0", "--quantizer", quantizer, "--force"];
            run(command(&program, ["compress", matrix, "-o", &container]).args(options))?;
        }
    }
    let firmware = ["--locked", "--release", "--target", TARGET, "-p", "decode_tensor"];
    run(cargo_firmware("build").args(firmware))?;
    let elf = target_dir().join("firmware").join(TARGET).join("release/decode_tensor");
    let host = ["--locked", "--quiet", "--profile", "host", "-p", "firmware-host", "--"];
    let printed = output(cargo_firmware("run").args(host).arg(elf))?;

    let (expected, document) = (root().join(EXPECTED), root().join(DOCUMENT));
    let text = fs::read_to_string(&document).context(DOCUMENT)?;
    let numbers =
        |printed: &str| -> String { printed.split_inclusive('\n').filter(|line| !is_tensor(line)).collect() };
    let with_numbers = |printed: &str| {
        let updated = replace_between(&text, &numbers(printed));
        updated.with_context(|| format!("{DOCUMENT} has no place for them"))
    };
    print!("{}", numbers(&printed));
    if options.bless {
        fs::write(expected, &printed)?;
        fs::write(document, with_numbers(&printed)?)?;
        return Ok(());
    }
    let before = fs::read_to_string(expected).unwrap_or_default();
    let lines = compare(&before, &printed);
    let bless = "if that is as it should be: `cargo xtask firmware --bless`";
    ensure!(lines.is_empty(), "not what is in {EXPECTED} (-); {bless}\n{}", lines.join("\n"));
    ensure!(with_numbers(&before)? == text, "the numbers in {DOCUMENT} are others; {bless}");
    Ok(())
}

/// A safetensors file with 512 x 256 normal weights, as many as it takes for the encoder to give a tile all 32 lanes.
fn wide_matrix() -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let header =
        r#"{"matrix.weight":{"dtype":"F16","shape":[512,256],"data_offsets":[0,262144]}}"#.to_owned();
    let header = format!("{header:<80}");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    for _ in 0..512 * 256 {
        let weight: f32 = StandardNormal.sample(&mut rng);
        file.extend(f16::from_f32(0.02 * weight).to_le_bytes());
    }
    file
}

/// The form of this workspace's sources, which the checks of the main one do not see.
fn lint() -> Result<()> {
    run(cargo_firmware("fmt").args(["--all", "--check"]))?;
    let deny = ["--", "-D", "warnings"];
    let programs = ["--locked", "--release", "--target", TARGET, "-p", "decode_tensor", "-p", "no_panic"];
    run(cargo_firmware("clippy").args(programs).args(deny))?;
    run(cargo_firmware("clippy").args(["--locked", "--profile", "host", "-p", "firmware-host"]).args(deny))
}

/// A command of cargo in the firmware's workspace.
pub(crate) fn cargo_firmware(verb: &str) -> Command {
    let mut command = cargo([verb, "--manifest-path", MANIFEST]);
    command.env("CARGO_TARGET_DIR", target_dir().join("firmware"));
    command
}

fn ensure_emulator() -> Result<()> {
    let there = || works("qemu-system-arm", ["--version"]);
    if there() {
        return Ok(());
    }
    let package = "qemu-system-arm";
    if apt_install(&[package]).is_err() {
        // A newer qemu-utils from elsewhere blocks the release's packages, unless it is named and may go back.
        let versions = output(&mut command("apt-cache", ["madison", package]))?;
        let version = versions.split('|').nth(1).context("no package qemu-system-arm")?.trim();
        apt_install(&[package, &format!("qemu-utils={version}")])?;
    }
    if there() { Ok(()) } else { bail!("qemu-system-arm is missing, though it is installed") }
}

/// A line about one tensor: its number comes first.
fn is_tensor(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_digit())
}

/// The document with these numbers; `None` if it has no marks.
fn replace_between(document: &str, numbers: &str) -> Option<String> {
    let [begin, end] = MARKS;
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}{numbers}{end}{after}"))
}

/// The lines that differ, with a sign before them.
fn compare(expected: &str, printed: &str) -> Vec<String> {
    let (mut before, mut after) = (expected.lines(), printed.lines());
    let mut lines = Vec::new();
    loop {
        match (before.next(), after.next()) {
            (None, None) => return lines,
            (Some(a), Some(b)) if same(a, b) => {}
            (a, b) => {
                lines.extend(a.map(|line| format!("- {line}")));
                lines.extend(b.map(|line| format!("+ {line}")));
            }
        }
    }
}

/// Whether two lines say the same. The order in which the linker lays things out follows from hashes of the folder's path: statics may
/// take some bytes more between them, and a clock that ticks every 40 instructions begins elsewhere.
fn same(a: &str, b: &str) -> bool {
    let slack = if a.starts_with("bytes: ") {
        16.0
    } else if a.starts_with("instructions a weight") {
        0.1
    } else {
        0.0
    };
    let number = |word: &str| word.trim_end_matches(',').parse::<f64>().ok();
    a == b
        || a.split(' ').count() == b.split(' ').count()
            && a.split(' ').zip(b.split(' ')).all(|(a, b)| match (number(a), number(b)) {
                (Some(a), Some(b)) => (a - b).abs() <= slack,
                _ => a == b,
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found() {
        assert!(compare("a\nb\n", "a\nb\n").is_empty());
        assert_eq!(compare("a\nb\n", "a\nc\n"), ["- b", "+ c"]);
        assert_eq!(compare("", "a\n"), ["+ a"]);
        assert_eq!(compare("a\nb\n", "b\na\n").len(), 4);
        assert_eq!(compare("a\n", "a\na\n"), ["+ a"]);
    }

    #[test]
    fn what_placement_changes_is_let_pass_and_no_more() {
        assert!(same("bytes: static RAM 2768", "bytes: static RAM 2764"));
        assert!(!same("bytes: static RAM 2768", "bytes: static RAM 2800"));
        assert!(!same("bytes: static RAM 2768", "bytes: peak stack 2768"));
        assert!(same(
            "instructions a weight: symbols 58.12, all 73.58",
            "instructions a weight: symbols 58.1, all 73.5"
        ));
        assert!(!same("instructions a weight: symbols 58.12", "instructions a weight: symbols 58.4"));
        assert!(!same("flash: code 24688", "flash: code 24690"));
        assert!(!same("3 name coded 64 0000000a", "3 name coded 64 0000000b"));
    }

    #[test]
    fn numbers_replace_numbers() {
        let document = format!("x\n{}1\n{}\ny", MARKS[0], MARKS[1]);
        assert_eq!(replace_between(&document, "2\n").unwrap(), document.replace('1', "2"));
        assert_eq!(replace_between("x", "2\n"), None);
    }
}

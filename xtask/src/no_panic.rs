//! No public call of the decoder can panic: a program that makes them all links without a panic handler.

use crate::firmware::{TARGET, cargo_firmware};
use crate::shell::{ensure_target, root, run};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;

const PROGRAM: &str = "firmware-examples/cortex-m/no_panic/src/main.rs";
const DECODER: &str = "nwc-decode-core/src";
/// What the program's panic handler calls and nobody defines.
const HANDLER: &str = "the_decoder_can_panic";

pub(crate) fn check() -> Result<()> {
    ensure_target(TARGET)?;
    let program = fs::read_to_string(root().join(PROGRAM)).context(PROGRAM)?;
    let missing: Vec<String> =
        public_functions()?.into_iter().filter(|name| !calls(&program, name)).collect();
    ensure!(missing.is_empty(), "{PROGRAM} does not call {}", missing.join(", "));

    let build = ["--locked", "--release", "--target", TARGET, "-p", "no_panic"];
    // The check can fail: with something that panics it must, and for want of every mark.
    let output = cargo_firmware("build").args(build).args(["--features", "self_test"]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let wanted: Vec<&str> = std::iter::once(HANDLER).chain(marks(&program)).collect();
    ensure!(wanted.len() > 5, "{PROGRAM} marks no ends");
    for symbol in wanted {
        ensure!(
            !output.status.success() && stderr.contains(&format!("undefined symbol: {symbol}\n")),
            "the self-test was to fail to link for want of {symbol}, but: {}\n{stderr}",
            output.status
        );
    }
    run(cargo_firmware("build").args(build)).context("a public function of the decoder can panic")
}

/// The marks at the ends of the program's functions.
fn marks(program: &str) -> impl Iterator<Item = &str> {
    program.split("end!(").skip(1).filter_map(|rest| rest.split_once(')')).map(|(mark, _)| mark)
}

/// Names of the functions that the decoder exports.
fn public_functions() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root().join(DECODER)).context(DECODER)? {
        let text = fs::read_to_string(entry?.path())?;
        names.extend(text.lines().filter_map(public_function).map(String::from));
    }
    ensure!(names.len() > 50, "only {} public functions found in {DECODER}", names.len());
    Ok(names)
}

/// The name of the function that a line exports.
fn public_function(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub ")?;
    let (_, rest) =
        rest.strip_prefix("fn ").map_or_else(|| rest.split_once("const fn "), |rest| Some(("", rest)))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// Whether the program calls a function of this name.
fn calls(program: &str, name: &str) -> bool {
    program.match_indices(name).any(|(at, _)| {
        let before = program[..at].chars().next_back();
        let after = program[at + name.len()..].chars().next();
        before.is_some_and(|c| !c.is_alphanumeric() && c != '_') && matches!(after, Some('(' | ':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_functions_are_found() {
        assert_eq!(public_function("    pub fn open(file: &[u8])"), Some("open"));
        assert_eq!(public_function("pub const fn len(&self) -> usize {"), Some("len"));
        assert_eq!(public_function("    pub fn decode<T: Element>("), Some("decode"));
        assert_eq!(public_function("    pub(crate) fn inner() {"), None);
        assert_eq!(public_function("pub struct Tile;"), None);
    }

    #[test]
    fn marks_are_found() {
        assert_eq!(marks("a(); end!(one); b(); end!(two);").collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn calls_are_told_from_words() {
        assert!(calls("see(tensor.raw(x))", "raw"));
        assert!(!calls("see(tensor.raw_bits(x))", "raw"));
        assert!(!calls("// raw tensors", "raw"));
        assert!(!calls("draw(1)", "raw"));
    }
}

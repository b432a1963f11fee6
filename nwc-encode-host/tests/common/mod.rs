//! What tests of the program share.
#![allow(dead_code)] // No test takes all of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the program in a folder, with a line of arguments.
pub fn run(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nwc-encode"));
    command.args(line.split(' ')).current_dir(folder).output().unwrap()
}

/// The one line of a call that was refused.
pub fn refusal(folder: &Path, line: &str) -> String {
    let output = run(folder, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{line}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{line}: {stderr}");
    stderr
}

/// The one line, after warnings, of a call that was refused.
pub fn refusal_after_warnings(folder: &Path, line: &str) -> String {
    let output = run(folder, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{line}: {stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("warning: ")).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error: "), "{line}: {stderr}");
    lines[0].to_owned()
}

/// The folder of this package.
pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tiny model with random weights.
pub fn tiny(name: &str) -> PathBuf {
    here().join("../tests/models").join(name)
}

/// The bundled model.
pub fn clip_mini() -> PathBuf {
    here().join("../examples/clip-mini")
}

/// The bundled images.
pub fn images() -> PathBuf {
    here().join("../examples/data/cifar10-test-200.safetensors")
}

/// Where trained models and data are.
pub fn assets() -> Option<PathBuf> {
    let assets = std::env::var_os("NWC_ASSETS").map(PathBuf::from);
    if assets.is_none() {
        println!("skipped: NWC_ASSETS does not say where trained models are");
    }
    assets
}

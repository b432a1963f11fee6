//! A folder with all that a machine with a GPU needs to verify and measure there, without Rust and without a network.

use crate::cuda_example;
use crate::cuda_stub::Stub;
use crate::quickstart::MODEL;
use crate::shell::{command, output, root, run, target_dir};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What is run there, and what measures the peers.
const SCRIPTS: [(&str, &str); 2] =
    [("run.sh", include_str!("gpu_bundle/run.sh")), ("peers.py", include_str!("gpu_bundle/peers.py"))];
const VECTORS: &str = "tests/vectors";
/// A container with matrices that the CUDA C++ example can multiply with.
const CONTAINER: &str = "firmware-examples/models/clip-mini.nwc";
/// The example that multiplies, and the program that makes its input.
const GEMV: &str = "custom_gemv";
/// More is not to be carried to other machines.
const MOST_BYTES: u64 = 40 << 20;

/// Builds everything and packs it.
pub(crate) fn build() -> Result<()> {
    let stub = Stub::ensure()?;
    let release = ["--release", "--features", "cuda"];
    run(stub.cargo("build").args(release).args(["-p", "nwc-encode-host"]))?;
    run(stub.cargo("build").args(release).args(["-p", "nwc-benches", "--example", "gpu"]))?;
    cuda_example::build()?;

    let bundle = target_dir().join("gpu-bundle");
    if bundle.exists() {
        fs::remove_dir_all(&bundle)?;
    }
    for folder in ["bin", "cuda"] {
        fs::create_dir_all(bundle.join(folder))?;
    }
    let built = target_dir().join("release");
    strip(&built.join("nwc-encode"), &bundle.join("bin/nwc-encode"))?;
    strip(&built.join("examples/gpu"), &bundle.join("bin/gpu"))?;
    for entry in fs::read_dir(target_dir().join("cuda-examples"))? {
        let entry = entry?;
        // Beside the programs lie the objects and the library that they were linked from.
        if entry.path().extension().is_none() && entry.metadata()?.permissions().mode() & 0o111 != 0 {
            strip(&entry.path(), &bundle.join("cuda").join(entry.file_name()))?;
        }
    }
    if bundle.join("cuda").join(GEMV).exists() {
        let image = bundle.join("cuda/image.nwci");
        let mut write =
            command("cargo", ["run", "--release", "-p", "nwc-decode-cuda", "--example", "write-image"]);
        // A line for each tensor, with the checksum that the example must find.
        let list = output(write.args(["--", CONTAINER]).arg(&image))?;
        fs::write(bundle.join("cuda/image.txt"), list)?;
    }
    copy(&root().join(VECTORS), &bundle.join("vectors"))?;
    copy(&root().join(MODEL), &bundle.join("model"))?;
    for (name, text) in SCRIPTS {
        fs::write(bundle.join(name), text)?;
    }
    fs::write(bundle.join("commit"), commit()?)?;

    let bytes = size(&bundle)?;
    ensure!(bytes <= MOST_BYTES, "{} has {bytes} bytes, more than {MOST_BYTES}", bundle.display());
    println!("{}: {bytes} bytes; on a machine with a GPU, `sh run.sh OUTDIR`", bundle.display());
    Ok(())
}

/// Copies a program without what only debuggers read.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut strip = command("strip", ["-o"]);
    run(strip.arg(to).arg(from)).context("binutils are needed")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// The commit that the bundle is of; results name it.
fn commit() -> Result<String> {
    Ok(output(&mut command("git", ["describe", "--always", "--dirty", "--exclude", "*"]))?.trim().to_owned())
}

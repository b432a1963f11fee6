//! Building what is linked with the driver's library, libcuda, on machines that have no driver.

use crate::shell::{cargo, output, run, target_dir};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every function of the library returns, as those of NVIDIA's own: `CUDA_ERROR_STUB_LIBRARY`.
const STUB_LIBRARY: u32 = 34;

/// Builds with the feature that needs the driver: a package, and what else cargo must be told.
const LINTED: [&[&str]; 3] = [
    &["-p", "nwc-decode-cuda", "--features", "host", "--all-targets"],
    &["-p", "nwc-encode-host", "--features", "cuda", "--all-targets"],
    &["-p", "nwc-benches", "--features", "cuda", "--all-targets"],
];

/// Lints everything that needs the driver, which `cargo xtask clippy` leaves out, and tries the program's commands as far as they go without a GPU.
pub(crate) fn check() -> Result<()> {
    let stub = Stub::ensure()?;
    for build in LINTED {
        run(stub.cargo("clippy").args(build).args(["--", "-D", "warnings"]))?;
    }
    // The program starts with the library in its path, and is told that it is none.
    let test = ["-p", "nwc-encode-host", "--release", "--features", "cuda", "--test", "device"];
    run(stub.cargo("test").args(test).env("LD_LIBRARY_PATH", stub.0.join("lib64")))
}

/// Makes the library, and says how to build with it.
pub(crate) fn build() -> Result<()> {
    let stub = Stub::ensure()?;
    println!("export {}={}", Stub::VARIABLE, stub.0.display());
    Ok(())
}

/// A library with the names of libcuda, to link with where there is no driver.
pub(crate) struct Stub(PathBuf);

impl Stub {
    /// Where the build script of the bindings looks for `lib64`.
    const VARIABLE: &'static str = "CUDA_LIBRARY_PATH";

    /// The library, built if it is missing or other functions are needed.
    pub(crate) fn ensure() -> Result<Self> {
        let stub = Self(target_dir().join("cuda-stub"));
        let folder = stub.0.join("lib64");
        let library = folder.join("libcuda.so.1");
        let bindings = bindings()?;
        let text = fs::read_to_string(&bindings).with_context(|| bindings.display().to_string())?;
        let names = functions(&text);
        ensure!(names.len() > 100, "only {} functions found in {}", names.len(), bindings.display());

        let source = stub.0.join("stub.c");
        let code = code(&names);
        if library.exists() && fs::read_to_string(&source).is_ok_and(|old| old == code) {
            return Ok(stub);
        }
        fs::create_dir_all(&folder)?;
        compile(&code, &stub.0.join("new.c"), &library)?;
        // For the linker; programs ask for the other name.
        fs::copy(&library, folder.join("libcuda.so"))?;
        // Renamed last: after a failure it is all done again.
        fs::rename(stub.0.join("new.c"), source)?;
        Ok(stub)
    }

    /// Cargo, which finds the library.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let mut command = cargo([verb]);
        command.env(Self::VARIABLE, &self.0);
        command
    }
}

fn compile(code: &str, source: &Path, library: &Path) -> Result<()> {
    fs::write(source, code)?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]).arg("-o").arg(library).arg(source);
    run(&mut cc).context("a C compiler is needed")
}

/// The file that declares what the bindings to libcuda use.
fn bindings() -> Result<PathBuf> {
    let metadata: Value = serde_json::from_str(&output(&mut cargo([
        "metadata",
        "--format-version",
        "1",
        "--all-features",
        "--locked",
    ]))?)?;
    let packages = metadata["packages"].as_array().context("cargo lists no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "cust_raw")
        .and_then(|package| package["manifest_path"].as_str())
        .context("cust_raw is no dependency")?;
    Ok(Path::new(manifest).with_file_name("src").join("cuda.rs"))
}

/// Names of the functions that Rust code declares and that are the driver's.
fn functions(rust: &str) -> BTreeSet<&str> {
    rust.lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub fn "))
        .filter_map(|rest| rest.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("cu"))
        .collect()
}

fn code(names: &BTreeSet<&str>) -> String {
    names.iter().fold(String::new(), |mut code, name| {
        let _ = writeln!(code, "int {name}(void) {{ return {STUB_LIBRARY}; }}");
        code
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_functions_are_found() {
        let rust = "extern \"C\" {\n    pub fn cuInit(Flags: u32) -> CUresult;\n    pub fn cuCtxCreate_v2(\n        pctx: *mut CUcontext,\n    ) -> CUresult;\n    pub fn other();\n}";
        assert_eq!(functions(rust).into_iter().collect::<Vec<_>>(), ["cuCtxCreate_v2", "cuInit"]);
        assert_eq!(code(&functions("pub fn cuInit(")), "int cuInit(void) { return 34; }\n");
    }
}

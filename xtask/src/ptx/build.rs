//! From the kernels' source to PTX: rustc makes bitcode of all crates, and LLVM's own tools link it.
//!
//! The linker that rustc would call for this target, `llvm-bitcode-linker`, is not in every toolchain. Doing its
//! work here on every machine makes the same bytes on every machine.

use crate::shell::{command, output, root, run, target_dir};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The unstable compiler that the committed PTX is made with: as rustup names it, and as it names itself.
const PINNED: (&str, &str) = ("nightly-2026-05-20", "1.97.0-nightly (e50aa6fba 2026-05-19)");
const COMPONENTS: [&str; 2] = ["rust-src", "llvm-tools"];

const TARGET: &str = "nvptx64-nvidia-cuda";
const KERNELS: &str = "nwc-decode-kernels";
/// Understood by every driver since CUDA 12.0; has all that sm_90 can do but for its `wgmma` of later versions.
const PTX_VERSION: &str = "+ptx80";

pub(crate) struct Compiler {
    toolchain: &'static str,
    /// Where its LLVM tools are.
    tools: PathBuf,
}

/// The pinned compiler, installed if it is missing.
pub(crate) fn ensure_compiler() -> Result<Compiler> {
    let (dated, version) = PINNED;
    // Machines whose `nightly` is of that day need no second copy.
    let toolchain = match ["nightly", dated].into_iter().find(|name| is_pinned(name)) {
        Some(toolchain) => toolchain,
        None => {
            let install = ["toolchain", "install", dated, "--profile", "minimal"];
            run(&mut command("rustup", install)).with_context(|| {
                format!("PTX is made with rustc {version}, which rustup has as {dated}, and that cannot be installed")
            })?;
            dated
        }
    };
    let installed =
        output(&mut command("rustup", ["component", "list", "--installed", "--toolchain", toolchain]))?;
    for component in COMPONENTS {
        if !installed.lines().any(|line| line.starts_with(component)) {
            run(&mut command("rustup", ["component", "add", component, "--toolchain", toolchain]))?;
        }
    }
    let rustc = format!("+{toolchain}");
    let host = output(&mut command("rustc", [rustc.as_str(), "-vV"]))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let sysroot = output(&mut command("rustc", [rustc.as_str(), "--print", "sysroot"]))?;
    let tools = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin");
    for tool in ["llvm-ar", "llvm-nm", "llvm-link", "opt", "llc"] {
        ensure!(
            tools.join(tool).exists(),
            "no {tool} in {}, though llvm-tools is installed",
            tools.display()
        );
    }
    Ok(Compiler { toolchain, tools })
}

fn is_pinned(toolchain: &str) -> bool {
    let version = output(&mut command("rustc", [format!("+{toolchain}").as_str(), "-V"]));
    version.is_ok_and(|version| version.trim().strip_prefix("rustc ") == Some(PINNED.1))
}

/// The PTX of the kernels for one architecture; intermediate files go below `folder`.
pub(crate) fn ptx(compiler: &Compiler, architecture: &str, folder: &Path) -> Result<String> {
    let folder = folder.join(architecture);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;

    let mut objects = Vec::new();
    let mut exports = String::new();
    for (name, rlib) in compile(compiler, architecture)? {
        let members = compiler.unpack(&rlib, &folder.join(&name))?;
        if name == KERNELS.replace('-', "_") {
            exports = compiler.exports(&members)?.join(",");
        }
        objects.extend(members);
    }
    ensure!(!exports.is_empty(), "{KERNELS} exports nothing");

    let (linked, optimised, ptx) =
        (folder.join("linked.bc"), folder.join("optimised.bc"), folder.join("kernels.ptx"));
    run(compiler.tool("llvm-link").args(&objects).arg("-o").arg(&linked))?;
    run(compiler
        .tool("opt")
        .arg(format!("--internalize-public-api-list={exports}"))
        .args(["--passes=internalize,globaldce,default<O3>", "-o"])
        .args([&optimised, &linked]))?;
    run(compiler
        .tool("llc")
        .args(["-O3", &format!("-mcpu={architecture}"), &format!("-mattr={PTX_VERSION}"), "-o"])
        .args([&ptx, &optimised]))?;
    fs::read_to_string(&ptx).context("llc wrote no text")
}

/// Bitcode of the kernels and of all that they use, `core` among it: an rlib for each crate, by name.
fn compile(compiler: &Compiler, architecture: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = command("cargo", [format!("+{}", compiler.toolchain).as_str()]);
    cargo.args([
        "rustc",
        "--locked",
        "--release",
        "-Zbuild-std=core",
        "--target",
        TARGET,
        "-p",
        KERNELS,
        "--lib",
    ]);
    // As a cdylib rustc would call the linker that may be missing.
    cargo.args(["--crate-type", "rlib", "--message-format", "json-render-diagnostics"]);
    cargo.env("CARGO_TARGET_DIR", target_dir().join("ptx/cargo"));
    // A panic is a trap, without the code that would say what and where: nobody on a GPU could read it, and the
    // text would hold paths of this machine.
    let flags = ["-Zunstable-options", "-Cpanic=immediate-abort", "-Zlocation-detail=none"];
    cargo.env("RUSTFLAGS", format!("-Ctarget-cpu={architecture} {}", flags.join(" ")));
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    for (setting, value) in [("OPT_LEVEL", "3"), ("CODEGEN_UNITS", "1"), ("DEBUG", "false"), ("LTO", "off")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }

    let mut rlibs = BTreeMap::new();
    for line in output_shown(&mut cargo)?.lines() {
        let message: Value = serde_json::from_str(line).context("cargo's message is no JSON")?;
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for file in files.filter(|file| file.ends_with(".rlib") && file.contains(TARGET)) {
            let name = message["target"]["name"].as_str().context("cargo names no target")?;
            if rlibs.insert(name.to_owned(), file.into()).is_some() {
                bail!("two crates are called {name}: their order would be open");
            }
        }
    }
    Ok(rlibs)
}

/// What a command prints on its standard output; what it says of errors is shown at once.
fn output_shown(command: &mut std::process::Command) -> Result<String> {
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the kernels do not compile");
    Ok(String::from_utf8(output.stdout)?)
}

impl Compiler {
    fn tool(&self, name: &str) -> std::process::Command {
        let mut command = std::process::Command::new(self.tools.join(name));
        command.current_dir(root());
        command
    }

    /// The bitcode in an rlib, in the order of its names.
    fn unpack(&self, rlib: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        output(self.tool("llvm-ar").arg("x").arg(rlib).current_dir(folder))?;
        let members: Result<Vec<PathBuf>, std::io::Error> =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect();
        let mut members = members?;
        members.retain(|path| path.extension().is_some_and(|extension| extension == "o"));
        members.sort();
        Ok(members)
    }

    /// The functions whose names are as they were written: entries, and device functions for other people's kernels.
    fn exports(&self, objects: &[PathBuf]) -> Result<Vec<String>> {
        let list = ["--defined-only", "--extern-only", "--format=just-symbols", "--no-weak", "--quiet"];
        let names = output(self.tool("llvm-nm").args(list).args(objects))?;
        let mut names: Vec<String> = names
            .lines()
            .filter(|name| !name.is_empty() && !name.starts_with("_") && !name.ends_with(':'))
            .map(String::from)
            .collect();
        names.sort();
        Ok(names)
    }
}

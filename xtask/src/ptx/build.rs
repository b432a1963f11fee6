//! From the kernels' source to PTX: rustc makes bitcode of all crates, and LLVM's own tools link and compile it.
//!
//! The linker that rustc would call for this target, `llvm-bitcode-linker`, is not in every toolchain. Doing its
//! work here, everywhere, makes the same bytes on every machine.

use crate::shell::{command, output, root, run, target_dir};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The unstable compiler that the committed PTX is made with: as rustup names it, and as it names itself.
const PINNED: (&str, &str) = ("nightly-2026-05-20", "1.97.0-nightly (e50aa6fba 2026-05-19)");
const COMPONENTS: [&str; 2] = ["rust-src", "llvm-tools"];

const TARGET: &str = "nvptx64-nvidia-cuda";
const KERNELS: &str = "nwc-decode-kernels";
/// How the names of kernels end that undo transforms.
const TRANSFORMS: [&str; 4] = ["_linear", "_layer", "_layers", "_residual"];
/// Every driver for CUDA 12 and later takes it, and it has all instructions of the architectures.
const PTX_VERSION: &str = "+ptx80";
/// Every instruction of a whole warp has one of these in its name: `shfl.sync`, `mma.sync`, `barrier`, `bar.arrive`.
const WARP_WIDE: [&str; 3] = ["sync", "bar", "activemask"];

pub(crate) struct Compiler {
    toolchain: &'static str,
    /// Where its LLVM tools are.
    tools: PathBuf,
}

/// What becomes of the crate: apart, so that nobody pays for what he does not use.
pub(crate) struct Ptx {
    pub(crate) kernels: String,
    /// Kernels for tensors with transforms.
    pub(crate) transforms: String,
    pub(crate) functions: String,
}

/// The pinned compiler, installed if it is missing.
pub(crate) fn ensure_compiler() -> Result<Compiler> {
    let (dated, version) = PINNED;
    // Where `nightly` is that of the day, a second copy is not needed.
    let found = ["nightly", dated].into_iter().find(|name| is_pinned(name));
    let toolchain = found.unwrap_or(dated);
    if found.is_none() {
        run(&mut command("rustup", ["toolchain", "install", dated, "--profile", "minimal"]))
            .with_context(|| format!("PTX is made with rustc {version}, the toolchain {dated}"))?;
    }
    let list = ["component", "list", "--installed", "--toolchain", toolchain];
    let installed = output(&mut command("rustup", list))?;
    for component in COMPONENTS {
        if !installed.lines().any(|line| line.starts_with(component)) {
            run(&mut command("rustup", ["component", "add", component, "--toolchain", toolchain]))?;
        }
    }
    let rustc = format!("+{toolchain}");
    let about = output(&mut command("rustc", [&rustc, "-vV"]))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let sysroot = output(&mut command("rustc", [&rustc, "--print", "sysroot"]))?;
    let tools = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin");
    Ok(Compiler { toolchain, tools })
}

fn is_pinned(toolchain: &str) -> bool {
    let mut rustc = command("rustc", [format!("+{toolchain}").as_str(), "-V"]);
    // Asking for a toolchain that is missing must not install it.
    rustc.env("RUSTUP_AUTO_INSTALL", "0");
    output(&mut rustc).is_ok_and(|version| version.trim().strip_prefix("rustc ") == Some(PINNED.1))
}

impl Compiler {
    /// The PTX for one architecture; intermediate files go below `folder`.
    pub(crate) fn ptx(&self, architecture: &str, folder: &Path) -> Result<Ptx> {
        let folder = folder.join(architecture);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;

        let mut objects = Vec::new();
        let mut exports = Vec::new();
        for (name, rlib) in self.compile(architecture)? {
            let members = self.unpack(&rlib, &folder.join(&name))?;
            if name == KERNELS.replace('-', "_") {
                exports = self.exports(&members)?;
            }
            objects.extend(members);
        }
        let [linked, needed, marked] = ["linked.bc", "needed.ll", "marked.ll"].map(|name| folder.join(name));
        run(self.tool("llvm-link").args(&objects).arg("-o").arg(&linked))?;
        let keep = |names: &[String]| format!("--internalize-public-api-list={}", names.join(","));
        let passes = "--passes=internalize,globaldce";
        run(self.tool("opt").arg(keep(&exports)).args([passes, "-S", "-o"]).args([&needed, &linked]))?;
        let module = mark_convergent(&fs::read_to_string(&needed)?)?;
        fs::write(&marked, &module)?;

        let (kernels, functions): (Vec<_>, Vec<_>) =
            exports.into_iter().partition(|name| is_kernel(&module, name));
        let part = |name: &str, exports: &[String]| {
            ensure!(!exports.is_empty(), "{KERNELS} has no {name}");
            let [optimised, ptx] = ["bc", "ptx"].map(|kind| folder.join(name).with_extension(kind));
            // Loops over the parts of small arrays must unroll, or these would not lie in registers.
            let passes = ["--passes=internalize,globaldce,default<O3>", "--unroll-threshold=3000", "-o"];
            run(self.tool("opt").arg(keep(exports)).args(passes).args([&optimised, &marked]))?;
            run(self
                .tool("llc")
                .args(["-O3", &format!("-mcpu={architecture}"), &format!("-mattr={PTX_VERSION}"), "-o"])
                .args([&ptx, &optimised]))?;
            fs::read_to_string(&ptx).context("llc wrote no text")
        };
        let (transforms, kernels): (Vec<_>, Vec<_>) =
            kernels.into_iter().partition(|name| TRANSFORMS.iter().any(|suffix| name.ends_with(suffix)));
        Ok(Ptx {
            kernels: part("kernels", &kernels)?,
            transforms: part("transforms", &transforms)?,
            functions: part("functions", &functions)?,
        })
    }

    /// Bitcode of the kernels and of all that they use, `core` among it: an rlib for each crate, by name.
    fn compile(&self, architecture: &str) -> Result<BTreeMap<String, PathBuf>> {
        let mut cargo = command("cargo", [format!("+{}", self.toolchain).as_str()]);
        cargo.args(["rustc", "--locked", "--release", "-Zbuild-std=core", "--target", TARGET]);
        // As a cdylib rustc would call the linker that may be missing.
        cargo.args(["-p", KERNELS, "--lib", "--crate-type", "rlib"]);
        cargo.args(["--message-format", "json-render-diagnostics"]);
        cargo.env("CARGO_TARGET_DIR", target_dir().join("ptx/cargo"));
        // A panic is a trap, without the code that would say what and where: nobody on a GPU could read that.
        let silent = "-Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none";
        // LLVM comes later: it must not see inline assembly before that is marked.
        let flags =
            format!("--cfg=nwc_{architecture} -Ctarget-cpu={architecture} -Cno-prepopulate-passes {silent}");
        cargo.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
        for (setting, value) in
            [("OPT_LEVEL", "3"), ("CODEGEN_UNITS", "1"), ("DEBUG", "false"), ("LTO", "off")]
        {
            cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        ensure!(output.status.success(), "the kernels do not compile");

        let mut rlibs = BTreeMap::new();
        for line in String::from_utf8(output.stdout)?.lines() {
            let message: Value = serde_json::from_str(line).context("cargo's message is no JSON")?;
            let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
            // Macros and what they need are for the host.
            let files = files.filter(|file| file.contains(TARGET)).map(PathBuf::from);
            for rlib in files.filter(|file| file.extension().is_some_and(|extension| extension == "rlib")) {
                let name = message["target"]["name"].as_str().context("cargo names no target")?;
                let before = rlibs.insert(name.to_owned(), rlib);
                ensure!(before.is_none(), "two crates are called {name}: their order would be open");
            }
        }
        Ok(rlibs)
    }

    /// The bitcode in an rlib, in the order of its names.
    fn unpack(&self, rlib: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        output(self.tool("llvm-ar").arg("x").arg(rlib).current_dir(folder))?;
        let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
        let mut members = entries.collect::<Result<Vec<PathBuf>>>()?;
        members.retain(|path| path.extension().is_some_and(|extension| extension == "o"));
        members.sort();
        Ok(members)
    }

    /// The functions whose names are as they were written: entries, and device functions for other people's kernels.
    fn exports(&self, objects: &[PathBuf]) -> Result<Vec<String>> {
        let list = ["--defined-only", "--extern-only", "--format=just-symbols", "--no-weak", "--quiet"];
        let names = output(self.tool("llvm-nm").args(list).args(objects))?;
        // Names of Rust are mangled to `_R...`; that of a file ends in a colon.
        let names = names.lines().filter(|name| !name.starts_with('_') && !name.ends_with(':'));
        let mut names: Vec<String> = names.filter(|name| !name.is_empty()).map(String::from).collect();
        names.sort();
        Ok(names)
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.tools.join(name));
        command.current_dir(root());
        command
    }
}

/// Whether an exported function is one that the host launches.
fn is_kernel(module: &str, name: &str) -> bool {
    let call = format!(" @{name}(");
    module.lines().any(|line| line.starts_with("define ptx_kernel ") && line.contains(&call))
}

/// Marks the inline assembly that the threads of a warp must reach together. Clang does so, rustc does not, and LLVM
/// would feel free to copy a vote into both branches of a condition.
fn mark_convergent(module: &str) -> Result<String> {
    let mut text = String::with_capacity(module.len());
    for line in module.split_inclusive('\n') {
        let template = line.split_once(" asm ").and_then(|(_, rest)| rest.split('"').nth(1));
        if template.is_some_and(|template| WARP_WIDE.iter().any(|word| template.contains(word))) {
            let (call, place) =
                line.split_once(", !srcloc").with_context(|| format!("not rustc's: {line}"))?;
            text.extend([call, " convergent, !srcloc", place]);
        } else {
            text += line;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_from_functions() {
        let module =
            "define ptx_kernel void @one(ptr %0) {\n}\ndefine i32 @two() {\n  call void @one(ptr null)\n}\n";
        assert!(is_kernel(module, "one"));
        assert!(!is_kernel(module, "two"));
    }

    #[test]
    fn warp_wide_assembly_is_marked() {
        let vote =
            r#"  %4 = call i32 asm sideeffect "vote.sync.ballot.b32 ${0}, p, -1;", "=r"() #3, !srcloc !48"#;
        let convert = r#"  %3 = call i16 asm "cvt.rn.f16.f32 ${0}, ${1};", "=&h,r"(float %0), !srcloc !49"#;
        let module = format!("{vote}\n{convert}\n  ret void\n");
        assert_eq!(mark_convergent(&module).unwrap(), module.replace(" #3, ", " #3 convergent, "));
        assert!(mark_convergent(r#"call void asm "bar.sync 0;", ""()"#).is_err());
    }
}

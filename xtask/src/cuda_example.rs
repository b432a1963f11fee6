//! CUDA C++ that calls the kernels' device functions: compiled and linked as a user would, no GPU needed.

use crate::cuda_tools::{self, CudaTools};
use crate::ptx;
use crate::shell::{root, run, target_dir};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "nwc-decode-cuda/examples/cuda";
const INCLUDE: &str = "nwc-decode-cuda/include";

/// As a check among others: a person may lack the tools, CI may not, or the check would mean nothing.
pub(crate) fn check() -> Result<()> {
    match cuda_tools::ensure() {
        Err(error) if std::env::var_os("CI").is_none() => {
            println!("skipped: no tools for CUDA C++: {error:#}");
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => build(),
    }
}

/// Makes an executable of each example, with code for every architecture.
pub(crate) fn build() -> Result<()> {
    let tools = cuda_tools::ensure()?;
    let folder = target_dir().join("cuda-examples");
    fs::create_dir_all(&folder)?;
    let library = library(&tools, &folder)?;
    let entries = fs::read_dir(root().join(EXAMPLES)).context(EXAMPLES)?;
    let mut sources = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    ensure!(!sources.is_empty(), "no .cu file in {EXAMPLES}");
    for source in sources {
        let mut nvcc = tools.tool("nvcc");
        nvcc.args(["-O3", "-std=c++17", "-Werror", "all-warnings", "-rdc=true", "-I", INCLUDE]);
        nvcc.args(ptx::ARCHITECTURES.map(code_for));
        // Each member of the library is for one architecture, and the linker warns of it for all others.
        nvcc.args(["-Xnvlink", "--disable-warnings"]);
        nvcc.arg("-L").arg(tools.home.join("lib")).arg(&source).arg(&library);
        run(nvcc.arg("-o").arg(folder.join(source.file_stem().context("a file without a name")?)))?;
    }
    Ok(())
}

/// The device functions as an archive for nvcc's linker: an object for each architecture, from the committed PTX.
fn library(tools: &CudaTools, folder: &Path) -> Result<PathBuf> {
    let mut objects = Vec::new();
    for architecture in ptx::ARCHITECTURES {
        let object = folder.join(format!("nwc_functions_{architecture}.o"));
        let mut nvcc = tools.tool("nvcc");
        run(nvcc
            .args([&code_for(architecture), "-dc"])
            .arg(ptx::functions(architecture))
            .arg("-o")
            .arg(&object))?;
        objects.push(object);
    }
    let library = folder.join("libnwc_functions.a");
    run(tools
        .tool("nvcc")
        .args([&code_for(ptx::ARCHITECTURES[0]), "-lib"])
        .args(objects)
        .arg("-o")
        .arg(&library))?;
    Ok(library)
}

/// Code for this architecture alone, without the PTX that `-arch` would add: a second object could not stand beside it.
fn code_for(architecture: &str) -> String {
    let virtual_architecture = architecture.replace("sm_", "compute_");
    format!("-gencode=arch={virtual_architecture},code={architecture}")
}

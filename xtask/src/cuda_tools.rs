//! NVIDIA's compiler, assembler and linker, as they come from `PyPI`: no CUDA toolkit and no GPU are needed.

use crate::shell::{apt_install, command, root, run, target_dir, works};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of CUDA 13.0: what a newer one makes needs a newer driver.
const REQUIREMENTS: &str = "\
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
";

pub(crate) struct CudaTools {
    /// Has `bin/`, `include/`, `lib/` and `nvvm/`.
    pub(crate) home: PathBuf,
}

/// The tools, installed if they are missing or of another version.
pub(crate) fn ensure() -> Result<CudaTools> {
    let folder = target_dir().join("cuda-tools");
    let tools = CudaTools { home: folder.join("nvidia/cu13") };
    // Written last: a broken installation has none.
    let done = folder.join("requirements.txt");
    if fs::read_to_string(&done).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(tools);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the hashes of NVIDIA's packages are those for Linux on x86-64"
    );
    if !works("python3", ["-m", "pip", "--version"]) {
        apt_install(&["python3-pip"]).context("pip, which installs NVIDIA's packages, is missing")?;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let wanted = folder.join("wanted.txt");
    fs::write(&wanted, REQUIREMENTS)?;
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"];
    run(command("python3", install).arg("--target").arg(&folder).arg("-r").arg(&wanted))
        .context("NVIDIA's packages cannot be installed from PyPI")?;
    fs::rename(wanted, done)?;
    Ok(tools)
}

impl CudaTools {
    /// One of the programs.
    pub(crate) fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.home.join("bin").join(name));
        command.current_dir(root());
        command
    }

    /// Assembles PTX; returns what the assembler says of it.
    pub(crate) fn assemble(
        &self,
        ptx: &Path,
        architecture: &str,
        cubin: &Path,
        options: &[&str],
    ) -> Result<String> {
        let mut ptxas = self.tool("ptxas");
        ptxas.args(options).arg(format!("-arch={architecture}")).arg(ptx).arg("-o").arg(cubin);
        let output = ptxas.output().context("cannot run ptxas")?;
        let log =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "ptxas refuses {}:\n{log}", ptx.display());
        Ok(log)
    }
}

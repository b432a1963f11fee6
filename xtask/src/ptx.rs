//! The GPU kernels and device functions as PTX, what the assembler says they take, and their signatures: all three are committed,
//! so that a user of the library needs neither an unstable compiler nor CUDA.

mod build;
mod header;
mod report;

use crate::cuda_tools;
use crate::shell::{root, target_dir};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};

/// The oldest of each generation that has tensor cores for what the kernels do: A100, H100.
pub(crate) const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

const COMMITTED: &str = "nwc-decode-cuda/ptx";

#[derive(Args)]
pub(crate) struct Options {
    /// Only compare them with those that are there
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.check {
        return compare(&make()?);
    }
    let folder = root().join(COMMITTED);
    fs::create_dir_all(&folder)?;
    for (name, text) in make()? {
        fs::write(folder.join(&name), text).with_context(|| name.clone())?;
    }
    fs::write(root().join(header::PATH), header::text()?).context(header::PATH)?;
    Ok(())
}

/// As a check among others: a person may lack the tools, CI may not, or the check would mean nothing.
pub(crate) fn check() -> Result<()> {
    match build::ensure_compiler().and_then(|_| cuda_tools::ensure()) {
        Err(error) if std::env::var_os("CI").is_none() => {
            println!("skipped: no tools for PTX: {error:#}");
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => compare(&make()?),
    }
}

/// The committed PTX of the device functions for one architecture.
pub(crate) fn functions(architecture: &str) -> PathBuf {
    root().join(COMMITTED).join(functions_name(architecture))
}

fn kernels_name(architecture: &str) -> String {
    format!("nwc_decode_{architecture}.ptx")
}

fn transforms_name(architecture: &str) -> String {
    format!("nwc_transforms_{architecture}.ptx")
}

fn functions_name(architecture: &str) -> String {
    format!("nwc_functions_{architecture}.ptx")
}

/// Every file's name and text.
fn make() -> Result<Vec<(String, String)>> {
    let compiler = build::ensure_compiler()?;
    let tools = cuda_tools::ensure()?;
    let folder = target_dir().join("ptx");
    fs::create_dir_all(&folder)?;

    let mut files = Vec::new();
    let (mut signatures, mut resources) = (Vec::new(), Vec::new());
    for architecture in ARCHITECTURES {
        let ptx = compiler.ptx(architecture, &folder)?;
        let assemble = |name: &str, text: &str, options: &[&str]| {
            let path = folder.join(name);
            fs::write(&path, text)?;
            tools.assemble(&path, architecture, &path.with_extension("cubin"), options)
        };
        let mut used = Vec::new();
        for (name, text) in
            [(kernels_name(architecture), &ptx.kernels), (transforms_name(architecture), &ptx.transforms)]
        {
            used.extend(report::resources(&assemble(&name, text, &["-v"])?)?);
        }
        resources.push((architecture, used));
        assemble(&functions_name(architecture), &ptx.functions, &["-c"])?;
        let parts = [&ptx.kernels, &ptx.transforms, &ptx.functions];
        let callable = parts.map(|text| report::signatures(text)).concat();
        signatures.push((architecture, callable));
        files.push((kernels_name(architecture), ptx.kernels));
        files.push((transforms_name(architecture), ptx.transforms));
        files.push((functions_name(architecture), ptx.functions));
    }
    let resources = report::table(&resources);
    print!("{resources}");
    files.push(("resources.txt".to_owned(), resources));
    files.push(("entries.txt".to_owned(), report::list(&signatures)));
    Ok(files)
}

/// Fails unless the committed files are these and no others.
fn compare(files: &[(String, String)]) -> Result<()> {
    let folder = root().join(COMMITTED);
    let mut stale: Vec<String> = files
        .iter()
        .filter(|(name, text)| fs::read_to_string(folder.join(name)).ok().as_ref() != Some(text))
        .map(|(name, _)| name.clone())
        .collect();
    if fs::read_to_string(root().join(header::PATH)).ok() != Some(header::text()?) {
        stale.push(header::PATH.to_owned());
    }
    stale.extend(names_in(&folder)?.into_iter().filter(|name| files.iter().all(|(made, _)| made != name)));
    ensure!(
        stale.is_empty(),
        "not what the kernels' source gives, for {COMMITTED}: {}; remedy: `cargo xtask ptx`",
        stale.join(", ")
    );
    Ok(())
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

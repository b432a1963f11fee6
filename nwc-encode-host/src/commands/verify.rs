//! `verify`: every checksum, a full decode, and the error against the original.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use nwc_decode_core::{Checks, Coding};
use serde_json::json;

use super::Outcome;
use super::compress::open;
use super::decompress::inflate;
use crate::compress::squared_error;
use crate::progress::Progress;
use crate::restore::{ContainerFile, Decoder, TableMemory, damaged};
use crate::{Error, ErrorKind, Result, seek};

/// Check a container: all checksums and a full decode.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The container
    pub file: PathBuf,
    /// Compare with the model it was made from, tensor by tensor
    #[arg(long, value_name = "MODEL")]
    pub against: Option<PathBuf>,
}

/// Runs the command. A container that fails is not an error of this function: the outcome says so.
///
/// # Errors
/// A file that cannot be read, or the work was interrupted.
pub fn run(args: &VerifyArgs, progress: &dyn Progress) -> Result<Outcome> {
    let file = ContainerFile::open(&args.file)?;
    let original = args.against.as_ref().map(|path| open(path)).transpose()?;
    let by_name: HashMap<&str, usize> = original
        .iter()
        .flat_map(|model| {
            model.tensors().iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index))
        })
        .collect();

    let mut errors: Vec<String> = Vec::new();
    let mut fail = |error: Error| errors.push(error.file(&args.file).to_string());
    let (mut error_sum, mut energy_sum, mut checked) = (0.0, 0.0, 0usize);
    let mut worst: Option<(String, f64)> = None;
    match file.container() {
        Err(error) => fail(error),
        Ok(container) => {
            match container.attachments() {
                Err(error) => fail(damaged(error)),
                Ok(attachments) => {
                    attachments.filter_map(|attachment| inflate(&attachment).err()).for_each(&mut fail);
                }
            }
            progress.begin("verifying", container.tensors().map(|tensor| tensor.elements() as u64).sum());
            let mut memory = TableMemory::default();
            let decoder = Decoder::new(&container, &mut memory).map_err(|error| error.file(&args.file))?;
            if let Err(error) = seek::check(&container, &decoder) {
                fail(error);
            }
            for tensor in decoder.tensors() {
                progress.check()?;
                let name = tensor.name().to_string();
                let bytes = match decoder.decode(tensor, Checks::All) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind == ErrorKind::Interrupted => return Err(error),
                    Err(error) => {
                        fail(error.tensor(name));
                        continue;
                    }
                    Ok(())
                },
            )?;
            if let Some(model) = &original {
                let names: HashSet<String> =
                    container.tensors().map(|tensor| tensor.name().to_string()).collect();
                for missing in model.tensors().iter().filter(|tensor| !names.contains(&tensor.name)) {
                    fail(Error::input("is in the model but not in the container").tensor(&missing.name));
                }
            }
        }
    }

    let ok = errors.is_empty();
    let nmse = original.is_some().then(|| if energy_sum > 0.0 { error_sum / energy_sum } else { 0.0 });
    let json = json!({
        "ok": ok,
        "errors": errors,
        "nmse": nmse,
        "worst": worst.as_ref().map(|(name, nmse)| json!({ "name": name, "nmse": nmse })),
        "tensors": checked,
    });
    let mut text = errors.join("\n");
    if !ok {
        text.push('\n');
    }
    let verdict = if ok { "good" } else { "BAD" };
    let _ = writeln!(
        text,
        "{}: {verdict}, {checked} tensors decoded, {} errors",
        args.file.display(),
        errors.len()
    );
    if let (Some(nmse), Some((name, worst))) = (nmse, &worst) {
        let _ = writeln!(text, "nMSE {nmse:.3e}, largest {worst:.3e} in {name}");
    }
    Ok(Outcome { ok, ..Outcome::new(json, text) })
}

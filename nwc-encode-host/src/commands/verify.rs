//! `verify`: every checksum, a full decode, and the error against the original.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use nwc_decode_core::{Checks, Coding, Tensor};
use serde_json::json;

use super::Outcome;
use super::compress::open;
use crate::compress::squared_error;
use crate::latents::Latents;
use crate::progress::Progress;
use crate::restore::{ContainerFile, Decoder, TableMemory, damaged, inflate};
use crate::{Error, Result, seek};

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
            let latents = Latents::read(&container).unwrap_or_else(|error| {
                fail(error);
                None
            });
            let restored = |index: usize| latents.as_ref().and_then(|latents| latents.get(index));
            progress.begin("verifying", container.tensors().map(|tensor| tensor.elements() as u64).sum());
            let mut memory = TableMemory::default();
            let decoder = Decoder::new(&container, &mut memory).map_err(|error| error.file(&args.file))?;
            if let Err(error) = seek::check(&container, &decoder) {
                fail(error);
            }
            decoder.in_batches(
                0..decoder.tensors().len(),
                |index, tensor| {
                    let bytes = decoder.decode(tensor, Checks::All)?;
                    match (&latents, restored(index)) {
                        (Some(latents), Some(what)) => latents.restore(index, &bytes, what.dtype),
                        _ => Ok(bytes),
                    }
                },
                |index, bytes| {
                    progress.check()?;
                    let tensor = &decoder.tensors()[index];
                    let what = restored(index);
                    let name = what.map_or_else(|| tensor.name().to_string(), |what| what.name.clone());
                    let dtype = what.map_or(tensor.dtype(), |what| what.dtype);
                    let bytes = match bytes {
                        Ok(bytes) => bytes,
                        Err(error) => {
                            fail(error.tensor(name));
                            return Ok(());
                        }
                    };
                    checked += 1;
                    progress.advance(tensor.elements() as u64);
                    let Some(model) = &original else { return Ok(()) };
                    let Some(&index) = by_name.get(name.as_str()) else {
                        fail(Error::input("is not in the model that it is compared with").tensor(name));
                        return Ok(());
                    };
                    let source = &model.tensors()[index];
                    let same_shape = match what {
                        Some(what) => source.shape == what.shape,
                        None => source.shape.iter().map(|&dim| dim as u64).eq(tensor.shape().iter().copied()),
                    };
                    if source.dtype != dtype || !same_shape {
                        fail(
                            Error::input("has another type or shape in the model that it is compared with")
                                .tensor(name),
                        );
                    } else if decoder.resolve(tensor).is_ok_and(|original| original.coding() == Coding::Coded)
                    {
                        let (error, energy) = squared_error(source.dtype, model.bytes(index), &bytes);
                        // A tied tensor counts once, as it was coded once.
                        if tensor.coding() == Coding::Coded {
                            (error_sum, energy_sum) = (error_sum + error, energy_sum + energy);
                        }
                        let nmse = if energy > 0.0 { error / energy } else { 0.0 };
                        if worst.as_ref().is_none_or(|(_, worst)| nmse > *worst) {
                            worst = Some((name, nmse));
                        }
                    } else if model.bytes(index) != bytes {
                        fail(Error::input("differs from the model, though it is stored raw").tensor(name));
                    }
                    Ok(())
                },
            )?;
            if let Some(model) = &original {
                let name = |(index, tensor): (usize, Tensor<'_>)| {
                    restored(index).map_or_else(|| tensor.name().to_string(), |what| what.name.clone())
                };
                let names: HashSet<String> = container.tensors().enumerate().map(name).collect();
                for missing in model.tensors().iter().filter(|tensor| !names.contains(&tensor.name)) {
                    fail(Error::input("is in the model but not in the container").tensor(&missing.name));
                }
            }
        }
    }

    // Damaged attachments are seen by all who read them.
    errors.dedup();
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

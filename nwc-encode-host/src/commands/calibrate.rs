//! `calibrate`: what goes into the linear maps of a model, for `compress --hessians`.

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::Result;
use crate::progress::Progress;

/// Run a model on data and write H = E[x x^T] of the inputs of its linear layers.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
pub struct CalibrateArgs {
    /// The model: a folder with config.json and weights, or a container of one
    #[arg(requires = "data", required_unless_present = "merge", conflicts_with = "merge")]
    pub model: Option<PathBuf>,
    /// A text, a .safetensors file of tokens or images, or a folder of images, perhaps with captions.json or captions.txt
    #[arg(long, value_name = "DATA", requires = "model")]
    pub data: Option<PathBuf>,
    /// Merge files of parts of the data, as if all of it had been one
    #[arg(long, value_name = "H.safetensors", num_args = 1..)]
    pub merge: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "H.safetensors")]
    pub output: PathBuf,
    /// So many sequences or images, spread evenly over the data; all by default
    #[arg(long, value_name = "N", conflicts_with = "merge")]
    pub samples: Option<usize>,
    /// Tokens of a sequence, where a text is cut into such; by default 512, or as many as the model takes if that is less
    #[arg(long, value_name = "N", conflicts_with = "merge")]
    pub length: Option<usize>,
    /// Only the diagonals
    #[arg(long, conflicts_with = "merge")]
    pub diagonal: bool,
    /// How much the outputs of layers matter too, for the model's own predictions: takes about three times as long
    #[arg(long, conflicts_with = "merge")]
    pub outputs: bool,
    /// Where to keep what is done until it is finished; beside the output by default
    #[arg(long, value_name = "DIR", conflicts_with = "merge")]
    pub work_dir: Option<PathBuf>,
    /// Go on from what an interrupted calibration has kept, with the same options
    #[arg(long, conflicts_with = "merge")]
    pub resume: bool,
    /// Overwrite the output if it exists, and what an interrupted calibration has kept
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
///
/// # Errors
/// Always: this program was built without the feature `models`.
#[cfg(not(feature = "models"))]
pub fn run(_args: &CalibrateArgs, _progress: &dyn Progress) -> Result<Outcome> {
    Err(super::without_models())
}

#[cfg(feature = "models")]
pub use with_models::run;

#[cfg(feature = "models")]
mod with_models {
    use std::fmt::Write as _;
    use std::path::Path;
    use std::time::Instant;

    use serde_json::json;

    use super::{CalibrateArgs, Outcome, Progress, Result};
    use crate::atomic::AtomicFile;
    use crate::calibrate::{Report, Settings, Work, calibrate, merge};
    use crate::commands::{check_limits, human_bytes};
    use crate::subject::with_subject;

    /// Runs the command.
    ///
    /// # Errors
    /// Bad usage, bad input, an interruption, or the operating system's.
    pub fn run(args: &CalibrateArgs, progress: &dyn Progress) -> Result<Outcome> {
        let started = Instant::now();
        let limits = check_limits(args.samples, args.length)?;
        // The output first: to find out after an hour of work that it cannot be written helps nobody.
        let output = AtomicFile::create(&args.output, args.force)?;
        let report = if let (Some(model), Some(data)) = (&args.model, &args.data) {
            let folder = args.work_dir.clone().unwrap_or_else(|| Work::beside(&args.output));
            let work = Work { folder, resume: args.resume, force: args.force };
            let settings = Settings { limits, diagonal: args.diagonal, outputs: args.outputs };
            with_subject(model, |subject| calibrate(subject, data, settings, &work, output, progress))?
        } else {
            merge(&args.merge, output, progress)?
        };
        Ok(outcome(&report, &args.output, started.elapsed().as_secs_f64()))
    }

    fn outcome(report: &Report, output: &Path, seconds: f64) -> Outcome {
        let merged = report.towers.is_empty();
        let json = json!({
            "layers": report.layers(),
            "matrices": report.plan.outputs.len(),
            "outputs": report.outputs(),
            "samples": if merged { json!(null) } else { json!(report.samples()) },
            "tokens": if merged { json!(null) } else { json!(report.tokens()) },
            "towers": report.towers,
            "left_out": report.left_out,
            "fallbacks": report.plan.fallbacks,
            "bytes": report.bytes,
            "seconds": seconds,
        });
        let mut text = format!(
            "{}: H of {} tensors, {} matrices, {}, {seconds:.1} s\n",
            output.display(),
            report.layers(),
            report.plan.outputs.len(),
            human_bytes(report.bytes)
        );
        if report.outputs() > 0 {
            let _ = writeln!(text, "  importance of the outputs of {} tensors", report.outputs());
        }
        for tower in &report.towers {
            let _ = writeln!(
                text,
                "  {:<8} {:>8} samples {:>10} tokens",
                tower.tower, tower.samples, tower.tokens
            );
        }
        for tower in &report.left_out {
            let _ = writeln!(text, "  {tower:<8} left out, no data");
        }
        if !report.plan.fallbacks.is_empty() {
            let count = report.plan.fallbacks.len();
            let _ = writeln!(text, "  {count} groups of experts' layers have those of their layer's mixture");
        }
        Outcome::new(json, text)
    }
}

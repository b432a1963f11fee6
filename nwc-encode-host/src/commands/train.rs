//! `train`: weights of models into a codec that has learned from them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use regex::Regex;
use serde::Serialize;

use super::Outcome;
use crate::Result;
use crate::device::Device;
use crate::progress::Progress;
use crate::synthetic::Source;

/// Train a codec: chunks of normalised weights into latents and back.
#[derive(Debug, Args)]
#[group(id = "weights", required = true, multiple = true, args = ["models", "source"])]
pub struct TrainArgs {
    /// Models to learn from: folders with config.json and weights, or .safetensors files
    #[arg(value_name = "MODEL")]
    pub models: Vec<PathBuf>,
    /// The codec to write
    #[arg(short, long, value_name = "CODEC.safetensors")]
    pub output: PathBuf,
    /// The form of the networks
    #[arg(long, value_enum, default_value_t = Profile::Paper)]
    pub profile: Profile,
    /// Hidden units of the compact profile's synthesis
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub width: usize,
    /// What the squared error of a normalised weight costs next to a bit
    #[arg(long, default_value_t = 100.0, allow_negative_numbers = true)]
    pub lambda: f64,
    /// Steps of training
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub steps: usize,
    /// Chunks a step; with the paper's profile a multiple of 4, as many of each level
    #[arg(long, default_value_t = 64, value_name = "CHUNKS")]
    pub batch: usize,
    /// The highest rate of Adam; by default 0.002, or 0.003 for the light profiles
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Steps between two points of the curve, where checkpoints are written too; a twentieth of all by default
    #[arg(long, value_name = "N")]
    pub evaluate_every: Option<usize>,
    /// Seed of all that is random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Learn from a random source, too if there are models
    #[arg(long, value_enum)]
    pub source: Option<Source>,
    /// Learn only from tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    pub include: Option<Regex>,
    /// Leave tensors out whose name matches
    #[arg(long, value_name = "REGEX")]
    pub exclude: Option<Regex>,
    /// Validate with tensors whose name matches, and do not train on them; every fifth by default
    #[arg(long, value_name = "REGEX")]
    pub hold_out: Option<Regex>,
    /// Go on from the checkpoint beside the output, with the same options
    #[arg(long)]
    pub resume: bool,
    /// Overwrite the output if it exists, and the checkpoint of a training that was interrupted
    #[arg(long)]
    pub force: bool,
    /// What trains; cuda needs a build with the feature `burn-cuda`
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
}

/// The form of a codec's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The paper's: residual networks of width 512 both ways, conditioned on four levels of importance
    Paper,
    /// Synthesis is a matrix `[16, 16]` and a hidden layer beside it
    Compact,
    /// Synthesis is a matrix `[16, 16]`
    Linear,
}

/// Runs the command.
///
/// # Errors
/// Always: this program was built without the feature `train`.
#[cfg(not(feature = "train"))]
pub fn run(_args: &TrainArgs, _progress: &dyn Progress) -> Result<Outcome> {
    Err(crate::Error::input("this nwc-encode was built without training")
        .remedy("build it with `cargo build --release -p nwc-encode-host --features train`"))
}

#[cfg(feature = "train")]
pub use with_training::run;

#[cfg(feature = "train")]
mod with_training {
    use std::fmt::Write as _;
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;

    use serde_json::json;

    use super::{Outcome, Profile, Progress, Result, TrainArgs};
    use crate::Error;
    use crate::atomic::AtomicFile;
    use crate::compress::Selection;
    use crate::train::{Data, Network, Origin, Settings, Trained, checkpoint_path, train};

    /// Widths of the compact profile.
    const WIDTHS: std::ops::RangeInclusive<usize> = 16..=64;
    /// More chunks a step are a slip of the keyboard.
    const MAX_BATCH: usize = 1 << 20;

    /// Runs the command.
    ///
    /// # Errors
    /// Bad usage, bad input, a training that diverges, or the operating system's.
    pub fn run(args: &TrainArgs, progress: &dyn Progress) -> Result<Outcome> {
        let settings = settings(args)?;
        // The output first: to find out after an hour of work that it cannot be written helps nobody.
        let mut output = AtomicFile::create(&args.output, args.force)?;
        let checkpoint = checkpoint_path(&args.output);
        if checkpoint.exists() && !args.resume && !args.force {
            return Err(Error::input("an interrupted training left its checkpoint")
                .file(&checkpoint)
                .remedy("add --resume to go on, or --force to start over"));
        }
        let origin = Origin {
            models: &args.models,
            source: args.source,
            seed: args.seed,
            selection: Selection {
                include: args.include.clone(),
                exclude: args.exclude.clone(),
                ..Selection::default()
            },
            hold_out: args.hold_out.as_ref(),
        };
        let data = Data::read(&origin, progress)?;
        let trained = train(&settings, &data, args.device, &checkpoint, args.resume, progress)?;
        output
            .file()
            .write_all(&trained.codec)
            .map_err(|error| Error::io("cannot write", &args.output, error))?;
        output.commit()?;
        // Best effort: a checkpoint that stays takes space only, and the next training names it.
        let _ = fs::remove_file(&checkpoint);
        Ok(outcome(args, &settings, &trained, &args.output))
    }

    fn settings(args: &TrainArgs) -> Result<Settings> {
        let out_of_range = |option: &str, value: &dyn std::fmt::Display, remedy: String| {
            Error::input(format!("{option} {value} is out of range")).remedy(remedy)
        };
        if !WIDTHS.contains(&args.width) {
            let remedy = format!("give {} to {} hidden units", WIDTHS.start(), WIDTHS.end());
            return Err(out_of_range("--width", &args.width, remedy));
        }
        if !(args.lambda > 0.0 && args.lambda <= 1e6) {
            let remedy = "give a number up to 1000000: 100 comes to about 3 bits a weight, 300 to 4";
            return Err(out_of_range("--lambda", &args.lambda, remedy.to_owned()));
        }
        if args.steps == 0 {
            return Err(out_of_range("--steps", &args.steps, "give at least one".to_owned()));
        }
        let network = Network { profile: args.profile, width: args.width };
        if args.batch == 0 || args.batch > MAX_BATCH || !args.batch.is_multiple_of(network.levels()) {
            let remedy = format!("give a multiple of {} up to {MAX_BATCH}", network.levels());
            return Err(out_of_range("--batch", &args.batch, remedy));
        }
        let rate = args.learning_rate.unwrap_or(match args.profile {
            Profile::Paper => 2e-3,
            Profile::Compact | Profile::Linear => 3e-3,
        });
        if !(rate > 0.0 && rate <= 1.0) {
            return Err(out_of_range("--learning-rate", &rate, "give a number up to 1".to_owned()));
        }
        let evaluate_every = args.evaluate_every.unwrap_or(args.steps.div_ceil(20));
        if evaluate_every == 0 {
            return Err(out_of_range("--evaluate-every", &0, "give at least one".to_owned()));
        }
        let (lambda, steps, batch, seed) = (args.lambda, args.steps, args.batch, args.seed);
        Ok(Settings { network, lambda, steps, batch, rate, seed, evaluate_every })
    }

    fn outcome(args: &TrainArgs, settings: &Settings, trained: &Trained, output: &Path) -> Outcome {
        let multiply_adds = settings.network.multiply_adds_per_weight();
        let mixture = trained.mixture;
        let json = json!({
            "profile": args.profile,
            "lambda": args.lambda,
            "steps": args.steps,
            "rate": "cross entropy of rounded latents under the codec's tables, not bytes of a file",
            "bits_per_weight": mixture.bits_per_weight,
            "nmse": mixture.nmse,
            "levels": trained.levels,
            "curve": trained.curve,
            "parameters": trained.sizes,
            "multiply_adds_per_weight": multiply_adds,
            "seconds": trained.seconds,
        });
        let mut text = format!(
            "{}: {:.4} bits per weight by the latents' tables (no bytes of a file), nMSE {:.4e}, {} steps, {:.1} s\n",
            output.display(),
            mixture.bits_per_weight,
            mixture.nmse,
            args.steps,
            trained.seconds
        );
        for (level, point) in trained.levels.iter().enumerate().filter(|_| trained.levels.len() > 1) {
            let _ = writeln!(
                text,
                "  level {level}: {:.4} bits per weight, nMSE {:.4e}",
                point.bits_per_weight, point.nmse
            );
        }
        let _ = writeln!(
            text,
            "synthesis: {} parameters, {multiply_adds} multiply-adds a weight",
            trained.sizes.synthesis
        );
        Outcome::new(json, text)
    }
}

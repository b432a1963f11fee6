//! `eval`: how good a model is, or how far from another.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Outcome;
use crate::Result;
use crate::progress::Progress;

/// Evaluate a model or a container: zero-shot accuracy, perplexity, or fidelity to another model.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The model: a folder with config.json and weights, or a container of one
    pub model: PathBuf,
    /// What to find out
    #[arg(long, value_enum)]
    pub task: Task,
    /// zero-shot: images with classes; perplexity: a text or its tokens; fidelity: as calibrate, random inputs by default
    #[arg(long, value_name = "DATA")]
    pub data: Option<PathBuf>,
    /// fidelity: the model to compare with
    #[arg(long, value_name = "MODEL")]
    pub reference: Option<PathBuf>,
    /// zero-shot: prompts of the classes; prompts.json of the model by default
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// So many sequences or images, spread evenly over the data (of perplexity the first ones); all by default
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Tokens of a sequence, where a text is cut into such; by default 512, or as many as the model takes if that is less
    #[arg(long, value_name = "N")]
    pub length: Option<usize>,
}

/// What is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// Images whose class is the one with the closest prompts, for CLIP and `SigLIP`
    ZeroShot,
    /// How well a language model predicts a text
    Perplexity,
    /// How far the outputs are from those of another model
    Fidelity,
}

/// Runs the command.
///
/// # Errors
/// Always: this program was built without the feature `models`.
#[cfg(not(feature = "models"))]
pub fn run(_args: &EvalArgs, _progress: &dyn Progress) -> Result<Outcome> {
    Err(super::without_models())
}

#[cfg(feature = "models")]
pub use with_models::run;

#[cfg(feature = "models")]
mod with_models {
    use std::fmt::Write as _;
    use std::fs;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::{EvalArgs, Outcome, Progress, Result, Task};
    use crate::Error;
    use crate::commands::check_limits;
    use crate::evaluate::{Prompts, fidelity, perplexity, zero_shot};
    use crate::samples::{Data, Limits};
    use crate::subject::{Subject, with_subject};

    /// Runs the command.
    ///
    /// # Errors
    /// Bad usage, bad input, an interruption, or the operating system's.
    pub fn run(args: &EvalArgs, progress: &dyn Progress) -> Result<Outcome> {
        let started = Instant::now();
        let limits = check_limits(args.samples, args.length)?;
        let of_task = |option: &str, given: bool, task: Task, name: &str| {
            if given && args.task != task {
                return Err(Error::input(format!("{option} is for --task {name} alone"))
                    .remedy(format!("leave {option} out")));
            }
            Ok(())
        };
        of_task("--reference", args.reference.is_some(), Task::Fidelity, "fidelity")?;
        of_task("--prompts", args.prompts.is_some(), Task::ZeroShot, "zero-shot")?;
        let (mut json, mut text) =
            with_subject(&args.model, |subject| evaluate(args, subject, limits, progress))?;
        let seconds = started.elapsed().as_secs_f64();
        json["seconds"] = json!(seconds);
        let _ = writeln!(text, ", {seconds:.1} s");
        Ok(Outcome::new(json, format!("{}: {text}", args.model.display())))
    }

    /// The data, which a task needs.
    fn needed(args: &EvalArgs, what: &str) -> Result<Data> {
        let Some(path) = &args.data else {
            return Err(Error::input("--data is missing").remedy(format!("give {what}")));
        };
        Data::open(path)
    }

    fn evaluate(
        args: &EvalArgs,
        subject: &Subject<'_>,
        limits: Limits,
        progress: &dyn Progress,
    ) -> Result<(Value, String)> {
        // Problems that name no file are of the data.
        let in_data = |error: Error| match &args.data {
            Some(path) => error.file(path),
            None => error,
        };
        match args.task {
            Task::ZeroShot => {
                let data =
                    needed(args, "a .safetensors file with `images` and `labels`, or a folder of classes")?;
                let prompts = match &args.prompts {
                    Some(path) => {
                        let content =
                            fs::read(path).map_err(|error| Error::io("cannot read", path, error))?;
                        Prompts::read(&content).map_err(|error| error.file(path))
                    }
                    None => subject
                        .read("prompts.json", Prompts::read)
                        .map_err(|error| error.remedy("give the prompts of the classes with --prompts")),
                }?;
                let found = zero_shot(subject, &prompts, &data, limits, progress).map_err(in_data)?;
                let value = found.correct as f64 / found.images as f64;
                let json = json!({
                    "task": "zero-shot", "metric": "top1", "value": value, "n": found.images, "correct": found.correct,
                });
                let text = format!("{:.2} % of {} images in their class", value * 100.0, found.images);
                Ok((json, text))
            }
            Task::Perplexity => {
                let data = needed(args, "a text, or a .safetensors file of its tokens")?;
                let found = perplexity(subject, &data, limits, progress).map_err(in_data)?;
                let value = found.per_token();
                let json = json!({
                    "task": "perplexity", "metric": "perplexity_per_token", "value": value, "n": found.tokens,
                    "nll": found.nll, "per_word": found.per_word(), "words": found.words, "length": found.length,
                });
                let mut text = format!("perplexity {value:.4} a token, {} tokens", found.tokens);
                if let Some(per_word) = found.per_word() {
                    let _ = write!(text, ", {per_word:.3} a word");
                }
                Ok((json, text))
            }
            Task::Fidelity => {
                let Some(reference) = &args.reference else {
                    return Err(Error::input("--reference is missing")
                        .remedy("give the model to compare with, mostly the one that was compressed"));
                };
                let data = args.data.as_ref().map(|path| Data::open(path)).transpose()?;
                let found = with_subject(reference, |reference| {
                    fidelity(subject, reference, data.as_ref(), limits, progress).map_err(in_data)
                })?;
                let json = json!({
                    "task": "fidelity", "metric": "cosine", "value": found.cosine(), "n": found.n(),
                    "relative_error": found.relative_error(), "divergence": found.divergence(),
                    "towers": found.towers, "random": found.random,
                });
                let mut text = format!(
                    "mean cosine {:.6}, relative error {:.4e} of {} outputs",
                    found.cosine(),
                    found.relative_error(),
                    found.n()
                );
                if found.random {
                    text.push_str(" of random inputs");
                }
                if let Some(divergence) = found.divergence() {
                    let _ = write!(text, ", divergence {divergence:.6} nats a token");
                }
                Ok((json, text))
            }
        }
    }
}

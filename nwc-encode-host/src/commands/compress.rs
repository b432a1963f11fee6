//! `compress`: a model into a container.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use nwc_decode_core::CHUNK_ROWS;
use regex::Regex;
use serde_json::{Value, json};

use super::{Outcome, human_bytes, split_lines};
use crate::atomic::AtomicFile;
use crate::codec_file::{self, Codec, FloatCodec};
use crate::coding::transform::Transform;
use crate::compress::{
    DEFAULT_QUANTISER, Pin, Report, Selection, Settings, Target, Tuner, Tuning, compress_tuned, quantiser,
};
use crate::container::attachments_section;
use crate::device::Device;
use crate::importance::{Importance, Steps};
use crate::latents;
use crate::model::{Model, SkipReason};
use crate::progress::Progress;
use crate::tensors::TensorSource;
use crate::{Error, Result};

/// The attachment that says how to write the folder back (docs/bitstream.md §11.2).
pub(crate) const SOURCE_MANIFEST: &str = "nwc:source";

/// Compress a model: a Hugging Face folder or a .safetensors file.
#[derive(Debug, Args)]
#[group(id = "rate", multiple = false, args = ["bits", "size", "step"])]
pub struct CompressArgs {
    /// Folder with config.json and weights, or a .safetensors file
    pub model: PathBuf,
    /// The container to write
    #[arg(short, long, value_name = "OUT.nwc", required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    /// Bits per coded weight, all bytes that decoding them needs counted; reached within 0.01, never exceeded
    #[arg(long, allow_negative_numbers = true)]
    pub bits: Option<f64>,
    /// Bytes of the whole file; never exceeded
    #[arg(long, value_name = "BYTES")]
    pub size: Option<u64>,
    /// Quantisation step as a multiple of each row's deviation
    #[arg(long, allow_negative_numbers = true)]
    pub step: Option<f64>,
    /// How weights are coded.
    #[command(flatten)]
    pub coding: CodingArgs,
    /// Store places from which tiles can be decoded on, at least one every so many rows of up to 32 columns; 0 for none
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    pub seek_points: usize,
    /// Calibration on the way.
    #[command(flatten)]
    pub calibration: CalibrationArgs,
    /// Take options from this file as if they were given here, where they are not: `bits = 4.0` for --bits 4, `finetune = true` for --finetune
    #[arg(long, value_name = "FILE.toml")]
    pub recipe: Option<PathBuf>,
    /// Do everything but leave no file
    #[arg(long)]
    pub dry_run: bool,
    /// Overwrite the output if it exists
    #[arg(long)]
    pub force: bool,
}

/// What is learned from data before and while weights are coded.
#[derive(Debug, Args)]
pub struct CalibrationArgs {
    /// Calibrate with these data first, and let steps and feedback follow that: a text, token ids or images with captions, as for `calibrate`; needs the feature `models`. With --hessians, only fine-tune with them
    #[arg(long, value_name = "DATA")]
    pub calib: Option<PathBuf>,
    /// Fine-tune the model while it is coded, with the data of --calib
    #[arg(long, requires = "calib", value_name = "SCOPE", num_args = 0..=1, require_equals = true, default_missing_value = "block")]
    pub finetune: Option<FineTuneScope>,
    /// Passes over the data of --calib after each step of fine-tuning; 5 for blocks and 1 for towers by default
    #[arg(long, requires = "finetune", value_name = "N")]
    pub epochs: Option<usize>,
    /// What fine-tunes; cuda needs a build with the feature `burn-cuda`
    #[arg(long, value_enum, default_value_t = Device::Cpu, requires = "finetune")]
    pub device: Device,
    /// Sequences or images of --calib; all by default
    #[arg(long, value_name = "N", requires = "calib")]
    pub samples: Option<usize>,
    /// Tokens of a sequence of --calib, if it is a text
    #[arg(long, value_name = "N", requires = "calib")]
    pub length: Option<usize>,
    /// Where the calibration and finished blocks are kept; several processes may share the work
    #[arg(long, value_name = "DIR", requires = "calib")]
    pub work_dir: Option<PathBuf>,
    /// Go on from what is in the work directory
    #[arg(long, requires = "work_dir")]
    pub resume: bool,
}

/// What is fine-tuned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FineTuneScope {
    /// Each block for itself, on its output: for models of any size, by any number of processes
    Block,
    /// Each tower (a language model is one), on the model's outputs: better, for models whose training fits into memory
    Tower,
}

/// How weights are coded, whatever the rate.
#[derive(Debug, Args)]
pub struct CodingArgs {
    /// scalar, or trellis8 .. trellis256 by number of states
    #[arg(long, default_value = DEFAULT_QUANTISER, value_name = "NAME")]
    pub quantizer: String,
    /// How indices become weights: identity, hadamard (a transform down each column), or a file that `train` wrote; default is hadamard. All but identity only where they save bits. One of the profile `paper` has a rate of its own
    #[arg(long, default_value = "default", value_name = "NAME or FILE")]
    pub codec: String,
    /// Transform all tensors, also where that saves nothing: to measure
    #[arg(long)]
    pub everywhere: bool,
    /// Times that indices are chosen anew, after what the decoder would make of them, where weights are transformed
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub optimise_codes: usize,
    /// Steps of rows are proportional to their deviation to this power, 0 to 1
    #[arg(long, default_value_t = 1.0, value_name = "POWER", allow_negative_numbers = true)]
    pub row_alpha: f64,
    /// How much the inputs of tensors matter: a .safetensors file with H = E[x x^T] of the inputs, whole or its diagonal, by the names of tensors
    #[arg(long, value_name = "FILE.safetensors")]
    pub hessians: Option<PathBuf>,
    /// How the steps of inputs follow that; continuous if there are Hessians
    #[arg(long, value_name = "HOW")]
    pub importance: Option<ImportanceChoice>,
    /// Make good what a column lost by those coded after it, where the file of Hessians has the whole H of a tensor
    #[arg(long, value_name = "on or off")]
    pub ldlq: Option<Switch>,
    /// Code only tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    pub include: Option<Regex>,
    /// Leave tensors raw whose name matches
    #[arg(long, value_name = "REGEX")]
    pub exclude: Option<Regex>,
    /// Bits per weight of the tensors whose name matches, all of them together; of several the first that matches counts. The other tensors then meet the rate of the model
    #[arg(long, value_name = "REGEX=B", value_parser = pin)]
    pub bits_for: Vec<Pin>,
    /// Leave tensors raw that have fewer weights
    #[arg(long, default_value_t = Selection::default().min_weights, value_name = "N")]
    pub min_weights: usize,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is
    On,
    /// It is not
    Off,
}

/// How steps follow importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImportanceChoice {
    /// All inputs of a tensor have the same step; the weighted errors are reported all the same
    None,
    /// The four levels of the paper
    Levels,
    /// Steps are proportional to the inverse root of H's diagonal
    Continuous,
}

impl CodingArgs {
    fn selection(&self) -> Selection {
        Selection {
            min_weights: self.min_weights,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            ..Selection::default()
        }
    }

    /// How to code for a rate, with a seek point at least every so many rows.
    ///
    /// # Errors
    /// A quantiser, a codec or a power that there is not, a rate or an option that the codec does not have, no rate where one is needed, or what is wrong with the Hessians.
    pub(crate) fn coder(&self, target: Option<Target>, seek_rows: usize) -> Result<Coder> {
        let transform = match self.codec.as_str() {
            "identity" => Transform::Identity,
            "default" | "hadamard" => Transform::Hadamard,
            file => match codec_file::open(Path::new(file))? {
                Codec::Integer(transform) => transform,
                Codec::Float(codec) => {
                    let settings = self.latent_settings(target).map_err(|error| error.file(file))?;
                    return Ok(Coder { settings: Settings { seek_rows, ..settings }, codec: Some(codec) });
                }
            },
        };
        let quantiser = quantiser(&self.quantizer).ok_or_else(|| {
            Error::input(format!("there is no quantizer \"{}\"", self.quantizer))
                .remedy("use scalar, trellis8, trellis16, trellis32, trellis64, trellis128 or trellis256")
        })?;
        let tuning = Tuning { transform_always: self.everywhere, ..Tuning::default() };
        if !(0.0..=1.0).contains(&self.row_alpha) {
            return Err(Error::input(format!("--row-alpha {} is out of range", self.row_alpha))
                .remedy("give a power from 0 (all rows one step) to 1 (rows normalised)"));
        }
        let row_alpha = self.row_alpha;
        let target = target.ok_or_else(no_rate)?;
        let settings = Settings {
            quantiser,
            transform,
            row_alpha,
            seek_rows,
            selection: self.selection(),
            pins: self.bits_for.clone(),
            tuning,
            code_rounds: self.optimise_codes,
            ..Settings::new(target)
        };
        Ok(Coder { settings, codec: None })
    }

    /// The settings for a codec of the paper's, which decides alone what becomes of weights.
    fn latent_settings(&self, target: Option<Target>) -> Result<Settings> {
        let option = match target {
            Some(Target::Bits(_)) => Some("--bits"),
            Some(Target::Size(_)) => Some("--size"),
            Some(Target::Step(_)) => Some("--step"),
            None => None,
        };
        if let Some(option) = option {
            return Err(Error::input(format!("has the rate that it was trained for, which {option} cannot change"))
                .remedy(format!("leave {option} out, or train with another --lambda: 100 comes to about 3 bits a weight, 300 to 4")));
        }
        let unknown = [
            ("--quantizer", ![DEFAULT_QUANTISER, "scalar"].contains(&self.quantizer.as_str())),
            ("--everywhere", self.everywhere),
            ("--optimise-codes", self.optimise_codes > 0),
            ("--bits-for", !self.bits_for.is_empty()),
            ("--row-alpha", (self.row_alpha - 1.0).abs() > 0.0 || self.row_alpha.is_nan()),
            ("--importance continuous", self.importance == Some(ImportanceChoice::Continuous)),
        ];
        if let Some((option, _)) = unknown.into_iter().find(|(_, given)| *given) {
            return Err(Error::input(format!("is a codec of the profile `paper`, which has no {option}"))
                .remedy(format!("leave {option} out, or use another codec")));
        }
        Ok(Settings { selection: self.selection(), ..Settings::new(Target::Step(1.0)) })
    }
}

/// REGEX=B.
fn pin(text: &str) -> std::result::Result<Pin, String> {
    // A name may have an equals sign in it, a number has none.
    let (names, bits) = text.rsplit_once('=').ok_or("give REGEX=B, such as \"lm_head=6\"")?;
    let names = Regex::new(names).map_err(|error| error.to_string())?;
    let bits = bits.parse().map_err(|_| format!("{bits:?} is no number of bits per weight"))?;
    Ok(Pin { names, bits })
}

fn no_rate() -> Error {
    Error::input("no rate is given").remedy("add --bits, --size or --step")
}

/// What compresses.
#[derive(Debug)]
pub(crate) struct Coder {
    settings: Settings,
    /// The paper's, which makes latents; none for integers.
    codec: Option<Box<FloatCodec>>,
}

impl Coder {
    /// Lets steps, and feedback, follow what a file of Hessians says, as the options want it.
    ///
    /// # Errors
    /// What is wrong with the file, or an option that needs one where there is none.
    pub(crate) fn follow(&mut self, coding: &CodingArgs, hessians: Option<&Path>) -> Result<()> {
        let steps = match coding.importance {
            Some(ImportanceChoice::None) => Steps::None,
            Some(ImportanceChoice::Levels) => Steps::Levels,
            // The paper's codec knows its levels only.
            None if self.codec.is_some() => Steps::Levels,
            Some(ImportanceChoice::Continuous) | None => Steps::Continuous,
        };
        if let Some(path) = hessians {
            self.settings.importance = Some(Importance::open(path, steps)?);
            self.settings.ldlq = self.codec.is_none() && coding.ldlq != Some(Switch::Off);
        } else if !matches!(coding.importance, None | Some(ImportanceChoice::None)) {
            let error = Error::input("--importance needs to know what inputs matter")
                .remedy("add --hessians FILE.safetensors");
            return Err(if self.codec.is_some() { error.file(&coding.codec) } else { error });
        }
        Ok(())
    }

    /// Compresses `source` into `out`, with these files attached.
    ///
    /// # Errors
    /// Bad input, a rate out of reach, or the operating system's.
    pub(crate) fn compress(
        &self,
        source: &dyn TensorSource,
        files: Vec<(String, Vec<u8>)>,
        tuner: Option<&dyn Tuner>,
        progress: &dyn Progress,
        out: &mut fs::File,
    ) -> Result<Report> {
        if let Some(codec) = &self.codec {
            if tuner.is_some() {
                return Err(Error::input("blocks cannot be fine-tuned with a codec of the profile `paper`")
                    .remedy("leave --finetune out, or use another codec"));
            }
            return latents::compress(source, files, codec, &self.settings, progress, out);
        }
        let attachments = attachments_section(&files).map_err(|error| {
            Error::input(format!("cannot compress the attachments: {error}")).source(error)
        })?;
        compress_tuned(source, attachments, &self.settings, tuner, progress, out)
    }
}

/// Runs the command.
///
/// # Errors
/// Bad usage, bad input, a rate out of reach, or the operating system's.
pub fn run(args: &CompressArgs, progress: &dyn Progress) -> Result<Outcome> {
    let started = Instant::now();
    let bits = args.bits.map(Target::Bits);
    let target = bits.or(args.size.map(Target::Size)).or(args.step.map(Target::Step));
    if (1..CHUNK_ROWS).contains(&args.seek_points) {
        return Err(Error::input(format!("--seek-points {} is too close", args.seek_points))
            .remedy(format!("give 0 for none, or at least {CHUNK_ROWS}")));
    }
    let mut coder = args.coding.coder(target, args.seek_points)?;
    if args.calibration.calib.is_some()
        && args.coding.hessians.is_some()
        && args.calibration.finetune.is_none()
    {
        return Err(Error::input("--hessians has what --calib would measure")
            .remedy("leave one of them out, or fine-tune the model with --finetune"));
    }
    if args.calibration.calib.is_none() || args.coding.hessians.is_some() {
        coder.follow(&args.coding, args.coding.hessians.as_deref())?;
    }
    // The output first: to find out after an hour of work that it cannot be written helps nobody.
    let mut output = match &args.output {
        Some(path) if !args.dry_run => Some(AtomicFile::create(path, args.force)?),
        _ => None,
    };
    let model = open(&args.model)?;
    let files = attached_files(&model, progress)?;
    let name_file = |error: Error| error.file(&args.model);
    let calibration =
        args.calibration.calib.as_deref().map(|data| Calibration::new(args, data, progress)).transpose()?;
    if let Some(hessians) = calibration.as_ref().and_then(Calibration::hessians) {
        coder.follow(&args.coding, Some(hessians))?;
    }
    let tuner = calibration.as_ref().and_then(Calibration::tuner);
    let report = match &mut output {
        Some(output) => coder.compress(&model, files, tuner, progress, output.file()).map_err(name_file)?,
        None => coder.compress(&model, files, tuner, progress, &mut scratch_file()?).map_err(name_file)?,
    };
    if let Some(output) = output {
        progress.check()?;
        output.commit()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut json = report_json(&report, seconds);
    if let Some(calibration) = &calibration {
        json["finetune"] = calibration.blocks();
    }
    if args.dry_run {
        json["dry_run"] = json!(true);
    }
    let original: usize = (0..model.tensors().len()).map(|index| model.bytes(index).len()).sum();
    let text = text(&report, original as u64, seconds, args.output.as_deref().filter(|_| !args.dry_run));
    Ok(Outcome::new(json, text))
}

#[cfg(feature = "models")]
mod calibrated {
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::{CompressArgs, Error, FineTuneScope, Progress, Result, Tuner};
    use crate::atomic::AtomicFile;
    use crate::calibrate::{Settings, Work, calibrate};
    use crate::commands::check_limits;
    use crate::device::Nothing;
    use crate::finetune::{self, FineTuning};
    use crate::subject::with_subject;

    impl FineTuneScope {
        fn settings(self, epochs: Option<usize>) -> finetune::Settings {
            let settings = match self {
                Self::Block => finetune::Settings::default(),
                Self::Tower => finetune::Settings::tower(),
            };
            finetune::Settings { epochs: epochs.unwrap_or(settings.epochs), ..settings }
        }
    }

    /// What the data of `--calib` gave, and what they are still to be used for.
    pub(super) struct Calibration<'a> {
        /// Of calibration, unless there were some.
        hessians: Option<PathBuf>,
        tuning: Option<FineTuning<'a>>,
        /// Removed with what is in it, if nobody asked for a folder.
        _folder: Option<TempDir>,
    }

    impl<'a> Calibration<'a> {
        pub(super) fn new(
            args: &'a CompressArgs,
            data: &'a Path,
            progress: &'a dyn Progress,
        ) -> Result<Self> {
            let limits = check_limits(args.calibration.samples, args.calibration.length)?;
            args.calibration.device.compute(Nothing)?;
            let (folder, temporary) = if let Some(folder) = &args.calibration.work_dir {
                std::fs::create_dir_all(folder)
                    .map_err(|error| Error::io("cannot make the folder", folder, error))?;
                (folder.clone(), None)
            } else {
                let folder = tempfile::tempdir().map_err(|error| {
                    Error::input(format!("cannot make a temporary folder: {error}"))
                        .source(error)
                        .remedy("set TMPDIR to a folder that you may write to, or give --work-dir")
                })?;
                (folder.path().to_owned(), Some(folder))
            };
            let hessians = args.coding.hessians.is_none().then(|| folder.join("hessians.safetensors"));
            if let Some(hessians) = &hessians {
                // One that was finished is done again, not trusted to be of these data and this model; one that was interrupted goes on.
                let checkpoint = Work::beside(hessians);
                let resume = args.calibration.resume && checkpoint.is_dir();
                let work = Work { folder: checkpoint, resume, force: args.force };
                let output = AtomicFile::create(hessians, args.calibration.resume || args.force)?;
                let settings = Settings { limits, diagonal: false, outputs: true };
                with_subject(&args.model, |subject| {
                    calibrate(subject, data, settings, &work, output, progress)
                })?;
            }
            let tuning = args.calibration.finetune.map(|scope| FineTuning {
                model: &args.model,
                data,
                limits,
                settings: scope.settings(args.calibration.epochs),
                device: args.calibration.device,
                work: args
                    .calibration
                    .work_dir
                    .as_ref()
                    .map(|folder| (folder.join("blocks"), args.calibration.resume)),
                progress,
                report: std::sync::Mutex::default(),
            });
            Ok(Self { hessians, tuning, _folder: temporary })
        }

        /// What calibration wrote.
        pub(super) fn hessians(&self) -> Option<&Path> {
            self.hessians.as_deref()
        }

        pub(super) fn tuner(&self) -> Option<&dyn Tuner> {
            self.tuning.as_ref().map(|tuning| tuning as &dyn Tuner)
        }

        /// What became of the blocks or towers; null if none was fine-tuned.
        pub(super) fn blocks(&self) -> Value {
            let Some(tuning) = &self.tuning else { return Value::Null };
            json!(*tuning.report.lock().expect("nobody panics with it"))
        }
    }
}

#[cfg(not(feature = "models"))]
mod calibrated {
    use std::path::Path;

    use serde_json::Value;

    use super::{CompressArgs, Error, Progress, Result, Tuner};

    /// There is none without models.
    pub(super) enum Calibration {}

    impl Calibration {
        pub(super) fn new(_: &CompressArgs, _: &Path, _: &dyn Progress) -> Result<Self> {
            Err(Error::input("this nwc-encode was built without models, which --calib needs").remedy(
                "build it with `cargo build --release -p nwc-encode-host --features models`, or use --hessians",
            ))
        }

        pub(super) fn hessians(&self) -> Option<&Path> {
            match *self {}
        }

        pub(super) fn tuner(&self) -> Option<&dyn Tuner> {
            match *self {}
        }

        pub(super) fn blocks(&self) -> Value {
            match *self {}
        }
    }
}

use calibrated::Calibration;

/// A file that nobody sees.
pub(crate) fn scratch_file() -> Result<fs::File> {
    tempfile::tempfile().map_err(|error| {
        Error::input(format!("cannot create a temporary file: {error}"))
            .source(error)
            .remedy("set TMPDIR to a folder that you may write to")
    })
}

/// Opens a model, with a hint where a container is given.
pub(crate) fn open(path: &Path) -> Result<Model> {
    if path.extension().is_some_and(|extension| extension == "nwc") {
        return Err(Error::input("is compressed already")
            .file(path)
            .remedy("give the folder or .safetensors file it was made from"));
    }
    Model::open(path)
}

/// The files that travel with the weights, and how to write the folder back.
fn attached_files(model: &Model, progress: &dyn Progress) -> Result<Vec<(String, Vec<u8>)>> {
    for skipped in model.skipped() {
        if matches!(skipped.reason, SkipReason::TooLarge { .. } | SkipReason::Weights | SkipReason::Name) {
            progress.warn(&format!("{} is not taken along: {}", skipped.name, skipped.reason));
        }
    }
    let files: Vec<Value> = model
        .files()
        .iter()
        .map(|file| json!({ "name": file.name, "metadata": file.metadata, "tensors": file.tensors }))
        .collect();
    let mut contents = vec![(SOURCE_MANIFEST.to_owned(), json!({ "files": files }).to_string().into_bytes())];
    for attachment in model.attachments() {
        let content =
            fs::read(&attachment.path).map_err(|error| Error::io("cannot read", &attachment.path, error))?;
        contents.push((attachment.name.clone(), content));
    }
    Ok(contents)
}

/// The keys of docs/cli.md.
pub(crate) fn report_json(report: &Report, seconds: f64) -> Value {
    let tensors: Vec<Value> = report
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "shape": tensor.shape,
                "coding": tensor.coding,
                "bits_per_weight": tensor.bits_per_weight,
                "nmse": tensor.nmse,
                "weighted_nmse": tensor.weighted_nmse,
                "ldlq": tensor.ldlq.map(|ldlq| json!({
                    "lost": ldlq.lost,
                    "lost_without": ldlq.lost_without,
                    "damping": ldlq.damping,
                })),
            })
        })
        .collect();
    json!({
        "bytes": report.split.bytes(),
        "weights": report.weights,
        "bits_per_weight": report.bits_per_weight(),
        "split": report.split,
        "nmse": report.nmse,
        "nmse_mean": report.nmse_mean,
        "weighted_nmse_mean": report.weighted_nmse_mean,
        "symbol_entropy": report.symbol_entropy,
        "seconds": seconds,
        "tensors": tensors,
    })
}

fn text(report: &Report, original: u64, seconds: f64, output: Option<&Path>) -> String {
    let mut text = String::new();
    let to = output.map_or_else(|| "nothing written (dry run)".to_owned(), |path| path.display().to_string());
    let bytes = report.split.bytes();
    let _ = writeln!(
        text,
        "{to}: {} from {} of weights ({:.2} times smaller), {:.4} bits per weight, nMSE {:.3e}, {seconds:.1} s",
        human_bytes(bytes),
        human_bytes(original),
        original as f64 / bytes as f64,
        report.bits_per_weight(),
        report.nmse,
    );
    let coded = report.tensors.iter().filter(|tensor| tensor.coding == "coded").count();
    let _ = writeln!(text, "{coded} of {} tensors coded, {} weights", report.tensors.len(), report.weights);
    text + &split_lines(&report.split)
}

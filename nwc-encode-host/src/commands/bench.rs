//! `bench`: rate and distortion of the codec, and speed of the decoder.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use half::f16;
use nwc_decode_core::{Checks, Coding};
use rayon::prelude::*;
use serde_json::json;

use super::Outcome;
use super::compress::{CodingArgs, open, scratch_file};
use crate::compress::Target;
use crate::device::{Device, Gpu};
use crate::progress::Progress;
use crate::restore::{ContainerFile, Decoder, Restorer, TableMemory, damaged};
use crate::simd::Level;
use crate::synthetic::{Source, ideal_ecsq_nmse};
use crate::tensors::{OwnedTensors, TensorSource, to_f32};
use crate::{Error, Result};

/// Measure the codec.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Rate and distortion of a real container, its bytes counted
    Rd(Box<RdArgs>),
    /// Decoding speed
    Decode(DecodeArgs),
}

/// Rate and distortion.
#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false, args = ["model", "source"])]
pub struct RdArgs {
    /// A model to compress
    pub model: Option<PathBuf>,
    /// A random matrix to compress
    #[arg(long)]
    pub source: Option<Source>,
    /// Number of weights of the random matrix, which is square
    #[arg(long, default_value_t = 4_194_304)]
    pub n: usize,
    /// Bits per weight; a codec of the profile `paper` has its own
    #[arg(long, allow_negative_numbers = true)]
    pub bits: Option<f64>,
    /// Seed of the random matrix
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How weights are coded.
    #[command(flatten)]
    pub coding: CodingArgs,
}

/// Decoding speed.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// The container
    pub file: PathBuf,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub threads: usize,
    /// Instructions to use; `best` is what every other command takes
    #[arg(long, value_enum, default_value_t = Instructions::Best)]
    pub instructions: Instructions,
    /// What decodes; a GPU to its own memory, whatever --threads and --instructions say
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Runs; the median counts
    #[arg(long, default_value_t = 11, value_parser = at_least_one)]
    pub runs: usize,
}

/// Instruction sets by name. One that the processor lacks is replaced by `plain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Instructions {
    Best,
    Plain,
    Avx2,
    Avx512,
}

impl Instructions {
    fn level(self) -> Level {
        let wanted = match self {
            Self::Best => Level::best(),
            Self::Plain => Level::Plain,
            Self::Avx2 => Level::Avx2,
            Self::Avx512 => Level::Avx512,
        };
        if Level::available().contains(&wanted) { wanted } else { Level::Plain }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "give 1 to 1024".to_owned())
}

/// Runs the command.
///
/// # Errors
/// Bad usage or input.
pub fn run(command: &BenchCommand, progress: &dyn Progress) -> Result<Outcome> {
    match command {
        BenchCommand::Rd(args) => rate_distortion(args, progress),
        BenchCommand::Decode(args) => decode(args, progress),
    }
}

fn rate_distortion(args: &RdArgs, progress: &dyn Progress) -> Result<Outcome> {
    let mut coder = args.coding.coder(args.bits.map(Target::Bits), 0)?;
    coder.follow(&args.coding, args.coding.hessians.as_deref())?;
    let mut weights = Vec::new();
    let source: Box<dyn TensorSource> = match (&args.model, args.source) {
        (Some(path), _) => Box::new(open(path)?),
        (None, source) => {
            let side = args.n.isqrt();
            if side * side != args.n || !(32..=1 << 16).contains(&side) {
                return Err(Error::input(format!(
                    "--n {} is not the size of a square matrix that can be measured",
                    args.n
                ))
                .remedy("give a square from 1024 to 4294967296, such as 4194304"));
            }
            weights = source.unwrap_or(Source::Gaussian).matrix(side, side, args.seed);
            let mut tensors = OwnedTensors::default();
            tensors.push_f32("weight", &[side, side], &weights);
            Box::new(tensors)
        }
    };
    let report =
        coder.compress(&*source, Vec::new(), None, progress, &mut scratch_file()?).map_err(|error| {
            match &args.model {
                Some(path) => error.file(path),
                None => error,
            }
        })?;
    if let Some(path) = &args.model {
        // The scalar quantiser is given the coded weights of all tensors at once, each row divided by its deviation as ours are.
        weights = normalised_rows(&*source, &report)
            .ok_or_else(|| Error::input("has no coded tensor").file(path))?;
    }
    if report.weights == 0 {
        return Err(Error::input("no weight is coded").remedy("lower --min-weights, or choose other tensors"));
    }
    let bits = report.bits_per_weight();
    let factor = report.nmse * 4f64.powf(bits);
    let ecsq = ideal_ecsq_nmse(&weights, bits);
    let json = json!({
        "bits_per_weight": bits,
        "nmse": report.nmse,
        "nmse_times_4r": factor,
        "entropy_overhead": bits - report.symbol_entropy,
        "ideal_ecsq_nmse": ecsq,
        "nmse_over_ecsq": report.nmse / ecsq,
        "weights": report.weights,
        "split": report.split,
    });
    let text = format!(
        "{bits:.4} bits per weight, nMSE {:.4e}, nMSE * 4^R {factor:.4}, {:.4} bits above the symbols' entropy, {:.4} of ideal ECSQ\n",
        report.nmse,
        bits - report.symbol_entropy,
        report.nmse / ecsq
    );
    Ok(Outcome::new(json, text))
}

/// The coded tensors' weights, each output row divided by its deviation; `None` if nothing is coded.
fn normalised_rows(source: &dyn TensorSource, report: &crate::compress::Report) -> Option<Vec<f32>> {
    let mut all = Vec::new();
    for (index, tensor) in report.tensors.iter().enumerate().filter(|(_, tensor)| tensor.coding == "coded") {
        let info = source.tensor(index);
        let width = tensor.shape.iter().skip(1).product::<usize>().max(1);
        for row in to_f32(info.dtype, source.bytes(index)).chunks_exact(width) {
            let deviation = (row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / width as f64).sqrt();
            let inverse = if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
            all.extend(row.iter().map(|&w| (f64::from(w) * inverse) as f32));
        }
    }
    (!all.is_empty()).then_some(all)
}

fn decode(args: &DecodeArgs, progress: &dyn Progress) -> Result<Outcome> {
    let file = ContainerFile::open(&args.file)?;
    let container = file.container()?;
    let in_file = |error: nwc_decode_core::Error| damaged(error).file(&args.file);
    let mut memory = TableMemory::default();
    let level = args.instructions.level();
    let decoder =
        Decoder::with_level(&container, &mut memory, level).map_err(|error| error.file(&args.file))?;
    let prepared: Vec<Restorer<'_, '_>> = decoder
        .tensors()
        .iter()
        .filter(|tensor| tensor.coding() == Coding::Coded)
        .map(|tensor| decoder.coded(tensor))
        .collect::<Result<_>>()?;
    let weights: usize = prepared.iter().map(|restorer| restorer.tensor().elements()).sum();
    if weights == 0 {
        return Err(Error::input("has no coded tensor")
            .file(&args.file)
            .remedy("give a container with coded weights"));
    }
    if let Some(gpu) = args.device.open(&container).map_err(|error| error.file(&args.file))? {
        return decode_on_gpu(args, &gpu, progress);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.max(1)).build().map_err(|error| {
        Error::input(format!("cannot start {} threads: {error}", args.threads))
            .source(error)
            .remedy("ask for fewer")
    })?;
    progress.begin("measuring", 2 * args.runs as u64);
    // Every tensor has memory of its own, as a program that uses the weights would have: nothing stays in a cache by being overwritten.
    let mut outputs: Vec<Vec<u8>> =
        prepared.iter().map(|restorer| vec![0; 2 * restorer.tensor().elements()]).collect();
    let mut measure = |whole: bool| -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..args.runs.max(1) {
            progress.check()?;
            let started = Instant::now();
            let decoded = if whole {
                pool.install(|| decode_all(&prepared, &mut outputs))
            } else {
                pool.install(|| prepared.par_iter().try_for_each(Restorer::decode_symbols))
            };
            decoded.map_err(in_file)?;
            times.push(started.elapsed());
            progress.advance(1);
        }
        times.sort();
        Ok(weights as f64 / times[times.len() / 2].max(Duration::from_nanos(1)).as_secs_f64())
    };
    let (symbols, whole) = (measure(false)?, measure(true)?);
    let json = json!({
        "symbols_per_second": symbols,
        "weights_per_second": whole,
        "threads": args.threads,
        "weights": weights,
        "runs": args.runs,
        "instructions": format!("{level:?}").to_lowercase(),
        "device": "cpu",
    });
    let text = format!(
        "{weights} weights, {} threads, {level:?}: entropy and trellis {:.1} million symbols a second, whole decode to f16 {:.1} million weights a second\n",
        args.threads,
        symbols / 1e6,
        whole / 1e6
    );
    Ok(Outcome::new(json, text))
}

fn decode_on_gpu(args: &DecodeArgs, gpu: &Gpu, progress: &dyn Progress) -> Result<Outcome> {
    progress.begin("measuring", args.runs as u64);
    let speed = gpu.speed(args.runs, progress).map_err(|error| error.file(&args.file))?;
    let rate = speed.weights as f64 / speed.seconds.max(1e-9);
    let json = json!({
        "symbols_per_second": null,
        "weights_per_second": rate,
        "threads": null,
        "weights": speed.weights,
        "runs": args.runs,
        "instructions": null,
        "device": gpu.name(),
    });
    let text = format!(
        "{} weights, {}: whole decode to f16 {:.1} million weights a second\n",
        speed.weights,
        gpu.name(),
        rate / 1e6
    );
    Ok(Outcome::new(json, text))
}

/// Decodes everything to f16. Checksums are not part of it.
fn decode_all(prepared: &[Restorer<'_, '_>], outputs: &mut [Vec<u8>]) -> Result<(), nwc_decode_core::Error> {
    prepared
        .par_iter()
        .zip(outputs)
        .try_for_each(|(restorer, out)| restorer.decode::<f16>(Checks::SkipChecksums, out))
}

//! Experiments on the encoder: which trellis is worth its time, and what each choice costs in bits. Prints JSON; `cargo xtask experiment` keeps it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use nwc_encode_host::compress::{Report, Settings, Target, Tuning, compress, quantiser};
use nwc_encode_host::model::Model;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource};
use plotters::prelude::*;
use serde_json::{Value, json};

const SIDE: usize = 2048;
const QUANTISERS: [&str; 7] =
    ["scalar", "trellis8", "trellis16", "trellis32", "trellis64", "trellis128", "trellis256"];
/// Times that each encoding is measured; the fastest counts, because other programs only ever add.
const RUNS: usize = 5;

#[derive(Parser)]
enum Experiment {
    /// Encoding time, one core, against rate and distortion, by quantiser
    Frontier {
        /// Where to draw it
        svg: PathBuf,
        /// Folder with models/
        assets: Option<PathBuf>,
    },
    /// What each part of the codec is worth, at equal rates
    Ablations {
        /// Where to draw it
        svg: PathBuf,
        /// Folder with models/
        assets: Option<PathBuf>,
    },
    /// What steps by importance are worth: none, the paper's levels, continuous
    Importance {
        /// Folder with models/
        assets: Option<PathBuf>,
    },
    /// What a sum of few outer products under the quantiser would be worth
    LowRank {
        /// Folder with models/
        assets: Option<PathBuf>,
    },
    /// Chunks of normalised weights and levels of importance, as learned codecs would get them
    Preprocessing {
        /// Folder with models/
        assets: Option<PathBuf>,
    },
    /// Each tensor against ideal scalar quantisation, and against no transform
    HeldOut {
        /// Folder with models/
        assets: Option<PathBuf>,
    },
    /// Perplexity and zero-shot accuracy at equal bits, step by step and next to baselines
    #[cfg(feature = "models")]
    Accuracy {
        /// Where to draw it
        svg: PathBuf,
        #[command(flatten)]
        choice: accuracy::Choice,
    },
    /// Draws again what it found
    #[cfg(feature = "models")]
    DrawAccuracy {
        /// Its results
        json: PathBuf,
        /// Where to draw them
        svg: PathBuf,
    },
    /// What feedback of errors leaves of what is lost, by layer
    #[cfg(feature = "models")]
    Ldlq(accuracy::Choice),
    /// Perplexity after calibration with other texts
    #[cfg(feature = "models")]
    CalibrationShift(accuracy::Choice),
    /// Encoding time a weight with LDLQ, by the size of the model
    Cost,
    /// What each choice of the encoder and each part of the file costs
    Overhead {
        /// Folder with models/
        assets: Option<PathBuf>,
    },
}

#[path = "experiment/ablations.rs"]
mod ablations;
#[cfg(feature = "models")]
#[path = "experiment/accuracy.rs"]
mod accuracy;
#[cfg(feature = "models")]
#[path = "experiment/baselines.rs"]
mod baselines;
#[path = "experiment/cost.rs"]
mod cost;
#[path = "experiment/held_out.rs"]
mod held_out;
#[path = "experiment/importance.rs"]
mod importance;
#[path = "experiment/low_rank.rs"]
mod low_rank;
#[path = "experiment/preprocessing.rs"]
mod preprocessing;

fn main() -> Result<()> {
    let results = match Experiment::parse() {
        Experiment::Frontier { svg, assets } => {
            let results = frontier(assets.as_deref())?;
            plot(&results, &svg)?;
            results
        }
        Experiment::Ablations { svg, assets } => {
            let results = ablations::run(assets.as_deref())?;
            ablations::plot(&results, &svg)?;
            results
        }
        #[cfg(feature = "models")]
        Experiment::Accuracy { svg, choice } => {
            let results = accuracy::run(&choice)?;
            accuracy::plot(&results, &svg)?;
            results
        }
        #[cfg(feature = "models")]
        Experiment::DrawAccuracy { json, svg } => {
            let record: serde_json::Value = serde_json::from_reader(std::fs::File::open(json)?)?;
            return accuracy::plot(&record["results"], &svg);
        }
        #[cfg(feature = "models")]
        Experiment::Ldlq(choice) => accuracy::ldlq(&choice)?,
        #[cfg(feature = "models")]
        Experiment::CalibrationShift(choice) => accuracy::shift(&choice)?,
        Experiment::Importance { assets } => importance::run(assets.as_deref())?,
        Experiment::LowRank { assets } => low_rank::run(assets.as_deref())?,
        Experiment::Preprocessing { assets } => preprocessing::run(assets.as_deref())?,
        Experiment::HeldOut { assets } => held_out::run(assets.as_deref())?,
        Experiment::Cost => cost::run()?,
        Experiment::Overhead { assets } => overhead(assets.as_deref())?,
    };
    println!("{}", serde_json::to_string_pretty(&results)?);
    Ok(())
}

/// What is compressed: the Gaussian matrix and, where there are assets, trained models.
fn sources(assets: Option<&Path>) -> Result<Vec<(&'static str, Box<dyn TensorSource>)>> {
    let mut gaussian = OwnedTensors::default();
    gaussian.push_f32("weight", &[SIDE, SIDE], &Source::Gaussian.matrix(SIDE, SIDE, 1));
    let mut sources: Vec<(&str, Box<dyn TensorSource>)> = vec![("gaussian", Box::new(gaussian))];
    for model in ["clip-mini", "clip-cifar"] {
        if let Some(assets) = assets {
            let path = assets.join("models").join(model);
            sources.push((model, Box::new(Model::open(&path).map_err(|error| anyhow!("{error}"))?)));
        }
    }
    Ok(sources)
}

fn encode(source: &dyn TensorSource, settings: &Settings) -> Result<Report> {
    let mut file = tempfile::tempfile()?;
    compress(source, Vec::new(), settings, &Silent, &mut file).map_err(|error| anyhow!("{error}"))
}

fn factor(report: &Report) -> f64 {
    report.nmse * 4f64.powf(report.bits_per_weight())
}

fn frontier(assets: Option<&Path>) -> Result<Value> {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let mut rows = Vec::new();
    for (name, source) in sources(assets)? {
        let rates: &[f64] = if name == "gaussian" { &[2.0, 3.0, 4.0] } else { &[4.0] };
        for &bits in rates {
            // Quantisers take turns, so that a slower minute of the machine slows them all.
            let mut best = [f64::MAX; QUANTISERS.len()];
            let mut reports = Vec::new();
            for run in 0..RUNS {
                for (quantizer, best) in QUANTISERS.into_iter().zip(&mut best) {
                    let settings = Settings {
                        quantiser: quantiser(quantizer).context("a quantiser")?,
                        ..Settings::new(Target::Bits(bits))
                    };
                    let started = Instant::now();
                    let report = one.install(|| encode(&*source, &settings))?;
                    *best = best.min(started.elapsed().as_secs_f64());
                    if run == 0 {
                        reports.push(report);
                    }
                }
            }
            for ((quantizer, seconds), report) in QUANTISERS.into_iter().zip(best).zip(reports) {
                let ratio = seconds / best[0];
                eprintln!(
                    "{name:<10} {bits} bits {quantizer:<10} {seconds:.3} s, {ratio:.2} of scalar, nMSE*4^R {:.4}",
                    factor(&report)
                );
                rows.push(json!({
                    "source": name,
                    "bits": bits,
                    "quantizer": quantizer,
                    "seconds": seconds,
                    "seconds_over_scalar": ratio,
                    "bits_per_weight": report.bits_per_weight(),
                    "nmse": report.nmse,
                    "nmse_times_4r": factor(&report),
                    "weights": report.weights,
                    "codec_bytes": report.split.codec,
                }));
            }
        }
    }
    Ok(Value::Array(rows))
}

/// Time against nMSE * 4^R of the trellises, a line for each source and rate.
fn plot(results: &Value, svg: &Path) -> Result<()> {
    let rows = results.as_array().context("a list of results")?;
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for row in rows.iter().filter(|row| row["quantizer"] != "scalar") {
        let name = format!("{}, {} bits", row["source"].as_str().unwrap_or_default(), number(row, "bits"));
        if lines.last().is_none_or(|(last, _)| *last != name) {
            lines.push((name, Vec::new()));
        }
        let point = (number(row, "seconds_over_scalar"), number(row, "nmse_times_4r"));
        lines.last_mut().context("just pushed")?.1.push(point);
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(1.1, f64::max);
    let area = SVGBackend::new(svg, (800, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(1.0..right * 1.05, 1.02..top + 0.01)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("encoding time over that of the scalar quantiser; points: 8, 16, 32, 64, 128, 256 states")
        .y_desc("nMSE * 4^R")
        .draw()?;
    for (place, (name, points)) in lines.into_iter().enumerate() {
        let colour = Palette99::pick(place).to_rgba();
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
        chart
            .draw_series(LineSeries::new(points, colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

/// One choice that differs from the defaults.
type Variant = (&'static str, fn(&mut Tuning));

const VARIANTS: [Variant; 27] = [
    ("precision 10", |tuning| tuning.precisions = 10..=10),
    ("precision 11", |tuning| tuning.precisions = 11..=11),
    ("precision 12", |tuning| tuning.precisions = 12..=12),
    ("precision 13", |tuning| tuning.precisions = 13..=13),
    ("precision 14", |tuning| tuning.precisions = 14..=14),
    ("unions merged", |tuning| tuning.unions = Some(1)),
    ("unions split", |tuning| tuning.unions = Some(2)),
    ("lane of 2048 symbols", |tuning| tuning.lane_symbols = 2048),
    ("lane of 4096 symbols", |tuning| tuning.lane_symbols = 4096),
    ("lane of 16384 symbols", |tuning| tuning.lane_symbols = 16_384),
    ("lane of 32768 symbols", |tuning| tuning.lane_symbols = 32_768),
    ("embeddings: lane of 2048 symbols", |tuning| tuning.lookup_lane_symbols = 2048),
    ("embeddings: lane of 8192 symbols", |tuning| tuning.lookup_lane_symbols = 8192),
    ("at least 512 symbols a lane", |tuning| tuning.min_lane_symbols = 512),
    ("at least 1024 symbols a lane", |tuning| tuning.min_lane_symbols = 1024),
    ("at least 2048 symbols a lane", |tuning| tuning.min_lane_symbols = 2048),
    ("at least 8192 symbols a lane", |tuning| tuning.min_lane_symbols = 8192),
    ("all scales 1 octave apart", |tuning| tuning.scale_shift = Some(0)),
    ("all scales 1/2 octave apart", |tuning| tuning.scale_shift = Some(1)),
    ("all scales 1/4 octave apart", |tuning| tuning.scale_shift = Some(2)),
    ("all scales 1/8 octave apart", |tuning| tuning.scale_shift = Some(3)),
    ("all scales 1/16 octave apart", |tuning| tuning.scale_shift = Some(4)),
    ("no input classes", |tuning| tuning.input_classes = false),
    ("classes 1/8 octave apart", |tuning| tuning.class_spacing = Some(0.125)),
    ("classes 1/4 octave apart", |tuning| tuning.class_spacing = Some(0.25)),
    ("classes 1/2 octave apart", |tuning| tuning.class_spacing = Some(0.5)),
    ("classes 1 octave apart", |tuning| tuning.class_spacing = Some(1.0)),
];

fn overhead(assets: Option<&Path>) -> Result<Value> {
    let mut rows = Vec::new();
    for (name, source) in sources(assets)? {
        let rates: &[f64] = if name == "gaussian" { &[4.0] } else { &[3.0, 4.0] };
        for &bits in rates {
            let settings = Settings::new(Target::Bits(bits));
            let default = encode(&*source, &settings)?;
            let bits_of = |bytes: u64| bytes as f64 * 8.0 / default.weights as f64;
            let per_weight = |count: u64, bits: f64| count as f64 * bits / default.weights as f64;
            let split = &default.split;
            rows.push(json!({
                "source": name,
                "bits": bits,
                "nmse_times_4r": factor(&default),
                "bits_per_weight": default.bits_per_weight(),
                "above_symbol_entropy": default.bits_per_weight() - default.symbol_entropy,
                "not_payload": bits_of(split.counted() - split.payload),
                "row_streams": bits_of(split.side),
                "tables": bits_of(split.tables),
                "codec_without_tables": bits_of(split.codec),
                "stream_ends": per_weight(default.streams, 32.0),
                "stream_checksums": per_weight(default.streams, 32.0),
                "directory_and_padding": bits_of(split.directory) - per_weight(default.streams, 64.0),
                "lane_states_without_content": per_weight(default.lane_states, 24.0),
                "of_which_could_carry_payload": per_weight(default.lane_states, 16.0),
            }));
            for (variant, change) in VARIANTS {
                let mut settings = settings.clone();
                change(&mut settings.tuning);
                let report = encode(&*source, &settings)?;
                // At high rates a factor of 4 in nMSE is a bit.
                let lost = 0.5 * (factor(&report) / factor(&default)).log2();
                eprintln!("{name:<10} {bits} bits {variant:<34} {lost:+.5} bits a weight");
                rows.push(json!({
                    "source": name,
                    "bits": bits,
                    "variant": variant,
                    "nmse_times_4r": factor(&report),
                    "bits_lost_at_equal_nmse": lost,
                    "not_payload": bits_of(report.split.counted() - report.split.payload),
                }));
            }
        }
    }
    Ok(Value::Array(rows))
}

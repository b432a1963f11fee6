//! What the default codec claims, tensor by tensor: how far it is below ideal scalar quantisation, and that it is not above the codec without a transform.
//!
//! The default has nothing that was trained: transforms, classes and tables are chosen for the file at hand. So every tensor of every model is held out.
//!
//! Errors of so few weights differ by chance, from one step to the next too: by about `sqrt(1.6 / weights)`, 0.5 % for 65,536. What that does to a comparison is told by holding the codec
//! without a transform against itself at a slightly finer step.

use std::fmt::Write as _;
use std::io::{Read as _, Seek as _};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use nwc_decode_core::{Container, Limits, Synthesis, Tensor};
use nwc_encode_host::coding::transform::Transform;
use nwc_encode_host::compress::{Report, Selection, Settings, Target, TensorReport, compress};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::{ideal_ecsq_nmse, ideal_ecsq_nmse_of_rows};
use nwc_encode_host::tensors::{OwnedTensors, TensorSource, to_f32};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::ablations::{Matrix, kurtosis};
use super::preprocessing::models;

const BITS: [u32; 5] = [2, 3, 4, 5, 6];
/// The part of ideal ECSQ's nMSE that matrices with fewer weights may have, and those with at least as many.
const LARGE: u64 = 500_000;
const CLAIMED: [f64; 2] = [0.90, 0.85];
/// nMSE over that without a transform, above which it is no rounding.
const ROUNDING: f64 = 1.001;
/// How much finer, in octaves, the step is that tells what chance does: about what transforms save a file, in bits.
const FINER: f64 = 3.0 / 512.0;
/// nMSE over that without a transform: at the rate of the file, of the tensor, and what chance does.
const OF_IDENTITY: [&str; 3] = ["nmse_over_identity_in_file", "nmse_over_identity", "identity_over_identity"];
/// A tensor has a container to itself, or is one of its model's.
const READINGS: [&str; 2] = ["alone", "in_model"];

/// What a container holds of a tensor.
struct Stored {
    transformed: bool,
    /// Bits of the tiles' streams.
    payload: f64,
}

impl Stored {
    fn of(container: &Container<'_>, tensor: &Tensor<'_>) -> Result<Self> {
        let coded = tensor.coded()?;
        let synthesis = container.codec(coded.codec_index())?.synthesis();
        let bytes = tensor.stored_bytes() - coded.record_bytes() - coded.side_bytes();
        Ok(Self {
            transformed: synthesis != Synthesis::Identity && !coded.is_direct(),
            payload: bytes as f64 * 8.0,
        })
    }
}

/// A container that was written.
struct Compressed {
    report: Report,
    /// `None` for what is not coded.
    stored: Vec<Option<Stored>>,
}

impl Compressed {
    fn new(source: &dyn TensorSource, settings: &Settings) -> Result<Self> {
        let mut file = tempfile::tempfile()?;
        let report =
            compress(source, Vec::new(), settings, &Silent, &mut file).map_err(|error| anyhow!("{error}"))?;
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let container = Container::open(&bytes, &Limits::default())?;
        let stored = container
            .tensors()
            .zip(&report.tensors)
            .map(|(tensor, line)| {
                (line.coding == "coded").then(|| Stored::of(&container, &tensor)).transpose()
            })
            .collect::<Result<_>>()?;
        Ok(Self { report, stored })
    }

    /// A tensor's own data, and for each of its weights the same part of what all tensors need: directory and tables. Alone it is charged with all of that.
    fn point(&self, index: usize) -> Option<Point> {
        let tensors = &self.report.tensors;
        let data: f64 = tensors.iter().filter(|tensor| tensor.coding == "coded").map(data_bits).sum();
        let shared = self.report.bits_per_weight() - data / self.report.weights as f64;
        let stored = self.stored[index].as_ref()?;
        let tensor = &tensors[index];
        Some(Point {
            bits_per_weight: tensor.bits_per_weight + shared,
            of_file: self.report.bits_per_weight(),
            payload: stored.payload / weights(tensor),
            nmse: tensor.nmse,
            transformed: stored.transformed,
        })
    }
}

fn weights(tensor: &TensorReport) -> f64 {
    tensor.shape.iter().product::<usize>() as f64
}

fn data_bits(tensor: &TensorReport) -> f64 {
    tensor.bits_per_weight * weights(tensor)
}

/// Rate and nMSE of a tensor in a container.
#[derive(Clone, Copy)]
struct Point {
    /// Everything that decoding needs.
    bits_per_weight: f64,
    /// Bits a weight of the whole file.
    of_file: f64,
    payload: f64,
    nmse: f64,
    transformed: bool,
}

impl Point {
    /// nMSE over another's at the same rate of the tensor: a factor of 4 is a bit, which takes out what the rates differ by.
    fn over(self, other: Self) -> f64 {
        self.nmse / other.nmse * 4f64.powf(self.bits_per_weight - other.bits_per_weight)
    }

    /// The same at the same rate of the file.
    fn over_in_file(self, other: Self) -> f64 {
        self.nmse / other.nmse * 4f64.powf(self.of_file - other.of_file)
    }
}

/// The default codec and the one without a transform.
fn codecs(bits: u32) -> [Settings; 2] {
    let default = Settings::new(Target::Bits(f64::from(bits)));
    [default.clone(), Settings { transform: Transform::Identity, ..default }]
}

/// A tensor as it was, and the width of its rows.
struct Original {
    weights: Vec<f32>,
    width: usize,
}

impl Original {
    fn new(source: &dyn TensorSource, index: usize) -> Result<Self> {
        let tensor = source.tensor(index);
        let view = Selection::default().view(tensor.name, tensor.dtype, tensor.shape);
        let width = view.ok().context("what is coded has a view")?.inputs();
        Ok(Self { weights: to_f32(tensor.dtype, source.bytes(index)), width })
    }

    /// Both codecs, and ideal ECSQ at the rate of the default: with steps as the codec's, in proportion to rows' deviations, with one step, and at the rate of the payload.
    fn compare(&self, default: Point, identity: Point) -> Value {
        let of_rows = |bits: f64| ideal_ecsq_nmse_of_rows(&self.weights, self.width, bits);
        let ecsq = of_rows(default.bits_per_weight);
        let one_step = ideal_ecsq_nmse(&self.weights, default.bits_per_weight);
        json!({
            "bits_per_weight": default.bits_per_weight,
            "payload_bits_per_weight": default.payload,
            "nmse": default.nmse,
            "transformed": default.transformed,
            "ideal_ecsq_nmse": ecsq,
            "nmse_over_ecsq": default.nmse / ecsq,
            "nmse_over_ecsq_of_one_step": default.nmse / one_step,
            "nmse_over_ecsq_at_payload": default.nmse / of_rows(default.payload),
            "identity_bits_per_weight": identity.bits_per_weight,
            "identity_payload_bits_per_weight": identity.payload,
            "identity_nmse": identity.nmse,
            "nmse_over_identity": default.over(identity),
            "nmse_over_identity_in_file": default.over_in_file(identity),
        })
    }
}

/// A container to itself, by both codecs; null where it cannot be as small as the rate asks.
fn alone(original: &Original, source: &dyn TensorSource, bits: u32) -> Value {
    let [default, identity] = codecs(bits).map(|settings| Compressed::new(source, &settings).ok()?.point(0));
    default.zip(identity).map_or(Value::Null, |(default, identity)| original.compare(default, identity))
}

fn only(source: &dyn TensorSource, index: usize) -> OwnedTensors {
    let tensor = source.tensor(index);
    let mut only = OwnedTensors::default();
    only.push(tensor.name, tensor.dtype, tensor.shape, source.bytes(index).to_vec());
    only
}

/// A model in one container, by both codecs, and by the second at a finer step.
struct Whole {
    bits: u32,
    default: Compressed,
    identity: Compressed,
    finer: Compressed,
}

impl Whole {
    fn new(source: &dyn TensorSource, bits: u32) -> Result<Self> {
        let [default, plain] = codecs(bits);
        let identity = Compressed::new(source, &plain)?;
        let step = identity.report.step * (-FINER).exp2();
        let finer = Compressed::new(source, &Settings { target: Target::Step(step), ..plain })?;
        Ok(Self { bits, default: Compressed::new(source, &default)?, identity, finer })
    }
}

/// A line for each rate of a tensor; none if it is not coded.
fn measure(model: &str, source: &dyn TensorSource, index: usize, wholes: &[Whole]) -> Result<Vec<Value>> {
    if wholes.iter().all(|whole| whole.default.stored[index].is_none()) {
        return Ok(Vec::new());
    }
    let (original, only, tensor) = (Original::new(source, index)?, only(source, index), source.tensor(index));
    let kurtosis = kurtosis(&Matrix::all(&only), &Transform::Identity);
    let mut lines = Vec::new();
    for whole in wholes {
        let points = [&whole.default, &whole.identity, &whole.finer].map(|file| file.point(index));
        let [Some(default), Some(identity), Some(finer)] = points else { continue };
        let mut in_model = original.compare(default, identity);
        in_model["identity_over_identity"] = json!(finer.over(identity));
        lines.push(json!({
            "model": model,
            "tensor": tensor.name,
            "shape": tensor.shape,
            "weights": original.weights.len(),
            "kurtosis": kurtosis,
            "bits": whole.bits,
            "alone": alone(&original, &only, whole.bits),
            "in_model": in_model,
        }));
    }
    Ok(lines)
}

/// Measures all tensors of all models, and prints what the documentation says of them.
pub fn run(assets: Option<&Path>) -> Result<Value> {
    let mut lines = Vec::new();
    for (model, source) in models(assets)? {
        let wholes: Vec<Whole> =
            BITS.into_iter().map(|bits| Whole::new(&*source, bits)).collect::<Result<_>>()?;
        let measured: Vec<Vec<Value>> = (0..source.len())
            .into_par_iter()
            .map(|index| measure(&model, &*source, index, &wholes))
            .collect::<Result<_>>()?;
        lines.extend(measured.into_iter().flatten());
        eprintln!("{model}: measured");
    }
    let summary: Vec<Value> = READINGS.into_iter().flat_map(|reading| summarise(&lines, reading)).collect();
    for reading in READINGS {
        eprintln!(
            "\n{reading}: nMSE of ideal ECSQ's, median / worst (misses)\n\n{}",
            table(&summary, reading)?
        );
    }
    lines.retain(is_remarkable);
    Ok(json!({ "summary": summary, "remarkable": lines }))
}

/// Whether a tensor in its model's container misses the claim, or is worse than without a transform by more than a hundredth.
fn is_remarkable(line: &Value) -> bool {
    const WORSE: f64 = 1.01;
    let size = usize::from(line["weights"].as_u64() >= Some(LARGE));
    let above = |key: &str, limit: f64| line["in_model"][key].as_f64() > Some(limit);
    above("nmse_over_ecsq", CLAIMED[size]) || above("nmse_over_identity", WORSE)
}

/// Lines of each model, size and rate together.
fn summarise(lines: &[Value], reading: &str) -> Vec<Value> {
    let mut summary = Vec::new();
    let mut models: Vec<&Value> = lines.iter().map(|line| &line["model"]).collect();
    models.dedup();
    for (model, size, bits) in models.into_iter().flat_map(|model| {
        (0..CLAIMED.len()).flat_map(move |size| BITS.into_iter().map(move |bits| (model, size, bits)))
    }) {
        let group: Vec<&Value> = lines
            .iter()
            .filter(|line| line["model"] == *model && line["bits"] == bits)
            .filter(|line| usize::from(line["weights"].as_u64() >= Some(LARGE)) == size)
            .collect();
        if !group.is_empty() {
            summary.push(summary_of(model, size, bits, &group, reading));
        }
    }
    summary
}

fn summary_of(model: &Value, size: usize, bits: u32, group: &[&Value], reading: &str) -> Value {
    let sorted = |key: &str| {
        let mut all: Vec<f64> = group.iter().filter_map(|line| line[reading][key].as_f64()).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let of_ecsq = sorted("nmse_over_ecsq");
    let above = |all: &[f64], limit: f64| all.iter().filter(|value| **value > limit).count();
    let mut summary = json!({
        "reading": reading,
        "model": model,
        "large": size == 1,
        "bits": bits,
        "tensors": group.len(),
        "out_of_reach": group.len() - of_ecsq.len(),
        "median_over_ecsq": median(&of_ecsq),
        "worst_over_ecsq": of_ecsq.last(),
        "misses": group.len() - of_ecsq.len() + above(&of_ecsq, CLAIMED[size]),
    });
    for key in OF_IDENTITY {
        let ratios = sorted(key);
        summary[key] = json!({ "worst": ratios.last(), "above": above(&ratios, ROUNDING) });
    }
    summary
}

/// Of numbers in ascending order.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let below = sorted.get(middle.wrapping_sub(usize::from(sorted.len().is_multiple_of(2))))?;
    Some(f64::midpoint(*below, *sorted.get(middle)?))
}

/// Markdown: a row for each model and size, and what is worst next to no transform at any rate: that of the file, that of the tensor, and by chance.
fn table(summary: &[Value], reading: &str) -> Result<String> {
    let mut table = String::from("| model, tensors |");
    BITS.iter().try_for_each(|bits| write!(table, " {bits} bits |"))?;
    writeln!(
        table,
        " of no transform | at the tensor's rate | by chance |\n|{}",
        "---|".repeat(BITS.len() + 1 + OF_IDENTITY.len())
    )?;
    let of_reading: Vec<&Value> = summary.iter().filter(|group| group["reading"] == reading).collect();
    for row in of_reading.chunks(BITS.len()) {
        let size = if row[0]["large"] == true { "0.5 M weights and more" } else { "smaller" };
        write!(table, "| {}, {} {size} |", row[0]["model"].as_str().unwrap_or_default(), row[0]["tensors"])?;
        let number = |group: &Value, key: &str| group[key].as_f64().unwrap_or(f64::NAN);
        for group in row {
            let [median, worst] = ["median_over_ecsq", "worst_over_ecsq"].map(|key| number(group, key));
            write!(table, " {median:.3} / {worst:.3} ({}) |", group["misses"])?;
        }
        for key in OF_IDENTITY {
            let ratios = row.iter().map(|group| &group[key]);
            let worst = ratios.clone().map(|ratio| number(ratio, "worst")).fold(0.0, f64::max);
            let above: u64 = ratios.filter_map(|ratio| ratio["above"].as_u64()).sum();
            write!(table, " {worst:.3} ({above}) |")?;
        }
        writeln!(table)?;
    }
    Ok(table)
}

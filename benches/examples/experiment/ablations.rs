//! What each part of the codec is worth: the default, the default without one part, and what does without entropy coding.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use nwc_decode_core::{Checks, Coding, Container, Limits};
use nwc_encode_host::coding::search::LANES;
use nwc_encode_host::coding::transform::Transform;
use nwc_encode_host::compress::{Selection, Settings, Target, compress, quantiser};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::restore::{Decoder, TableMemory};
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource, to_f32};
use plotters::prelude::*;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::preprocessing::models;

/// Rows and columns of the random matrices.
const SIDE: usize = 1024;
const BITS: [u32; 3] = [2, 3, 4];
/// Decodings that are measured; the median counts.
const RUNS: usize = 5;

/// The settings, by name, at a rate.
fn variants(bits: f64) -> Result<Vec<(&'static str, Settings)>> {
    let default = || Settings::new(Target::Bits(bits));
    let quantised = |name| {
        Ok::<_, anyhow::Error>(Settings { quantiser: quantiser(name).context("a quantiser")?, ..default() })
    };
    let mut unconditioned = default();
    unconditioned.tuning.unions = Some(1);
    unconditioned.tuning.input_classes = false;
    let mut everywhere = default();
    everywhere.tuning.transform_always = true;
    Ok(vec![
        ("default", default()),
        ("no trellis", quantised("scalar")?),
        ("trellis of 8 states", quantised("trellis8")?),
        ("no conditioning", unconditioned),
        ("rows not normalised", Settings { row_alpha: 0.0, ..default() }),
        ("identity", Settings { transform: Transform::Identity, ..default() }),
        ("hadamard everywhere", everywhere),
    ])
}

fn sources(assets: Option<&Path>) -> Result<Vec<(String, Box<dyn TensorSource>)>> {
    let mut sources: Vec<(String, Box<dyn TensorSource>)> = Vec::new();
    for (name, source) in
        [("gaussian", Source::Gaussian), ("laplace", Source::Laplace), ("student5", Source::Student5)]
    {
        let mut matrix = OwnedTensors::default();
        matrix.push_f32("weight", &[SIDE, SIDE], &source.matrix(SIDE, SIDE, 1));
        sources.push((name.to_owned(), Box::new(matrix)));
    }
    sources.extend(models(assets)?);
    Ok(sources)
}

/// Compares all variants on all sources.
pub fn run(assets: Option<&Path>) -> Result<Value> {
    let mut rows = Vec::new();
    for (name, source) in sources(assets)? {
        let matrices = Matrix::all(&*source);
        let kurtosis = json!({
            "source": name,
            "kurtosis_of_weights": kurtosis(&matrices, &Transform::Identity),
            "kurtosis_of_hadamard_latents": kurtosis(&matrices, &Transform::Hadamard),
        });
        eprintln!("{kurtosis}");
        rows.push(kurtosis);
        for bits in BITS {
            let mut measured = Vec::new();
            for (variant, settings) in variants(f64::from(bits))? {
                let mut file = tempfile::tempfile()?;
                let report = compress(&*source, Vec::new(), &settings, &Silent, &mut file)
                    .map_err(|error| anyhow!("{error}"))?;
                measured.push((
                    variant,
                    report.bits_per_weight(),
                    report.nmse,
                    Some(decode_speed(&mut file)?),
                ));
            }
            let (rate, nmse) = vector_quantised(&matrices, bits);
            measured.push(("fixed rate, pairs of weights", rate, nmse, None));
            let factor = |rate: f64, nmse: f64| nmse * 4f64.powf(rate);
            let (_, rate, nmse, _) = measured[0];
            let default = factor(rate, nmse);
            for (variant, rate, nmse, speed) in measured {
                // At high rates a factor of 4 in nMSE is a bit.
                let lost = 0.5 * (factor(rate, nmse) / default).log2();
                eprintln!("{name:<12} {bits} bits {variant:<30} {lost:+.4} bits a weight");
                rows.push(json!({
                    "source": name,
                    "bits": bits,
                    "variant": variant,
                    "bits_per_weight": rate,
                    "nmse": nmse,
                    "bits_lost_at_equal_nmse": lost,
                    "decoded_weights_per_second": speed,
                }));
            }
        }
    }
    Ok(Value::Array(rows))
}

/// Weights a second that one core decodes of a container.
fn decode_speed(file: &mut File) -> Result<f64> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let container = Container::open(&bytes, &Limits::default())?;
    let mut memory = TableMemory::default();
    let decoder = Decoder::new(&container, &mut memory).map_err(|error| anyhow!("{error}"))?;
    let coded: Vec<_> = decoder.tensors().iter().filter(|tensor| tensor.coding() == Coding::Coded).collect();
    let weights: u64 = coded.iter().map(|tensor| tensor.elements() as u64).sum();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        one.install(|| {
            coded.iter().try_for_each(|tensor| decoder.decode(tensor, Checks::SkipChecksums).map(drop))
        })
        .map_err(|error| anyhow!("{error}"))?;
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(weights as f64 / times[RUNS / 2])
}

/// A coded matrix [rows, columns] with its rows' deviations.
pub struct Matrix {
    columns: usize,
    /// Of rows that have been divided by their deviation.
    weights: Vec<f32>,
    deviations: Vec<f32>,
}

impl Matrix {
    /// All that the default settings would code, as [out, in].
    pub fn all(source: &dyn TensorSource) -> Vec<Self> {
        let selection = Selection::default();
        (0..source.len())
            .filter_map(|index| {
                let tensor = source.tensor(index);
                let view = selection.view(tensor.name, tensor.dtype, tensor.shape).ok()?;
                let mut weights = to_f32(tensor.dtype, source.bytes(index));
                let columns = view.inputs();
                let deviations = weights.chunks_exact_mut(columns).map(|row| {
                    let square: f64 = row.iter().map(|&w| f64::from(w).powi(2)).sum();
                    let deviation = (square / columns as f64).sqrt() as f32;
                    if deviation > 0.0 {
                        row.iter_mut().for_each(|weight| *weight /= deviation);
                    }
                    deviation
                });
                let deviations = deviations.collect();
                Some(Self { columns, weights, deviations })
            })
            .collect()
    }

    /// Pairs of neighbours in a column, as the paper's chunks lie; what is missing at the end is 0.
    fn pairs(&self) -> impl Iterator<Item = [f32; 2]> {
        self.weights.chunks(2 * self.columns).flat_map(move |rows| {
            (0..self.columns.min(rows.len()))
                .map(move |column| [rows[column], rows.get(self.columns + column).copied().unwrap_or(0.0)])
        })
    }
}

/// Rate and nMSE of vector quantisation without entropy coding: a codebook of 4^bits pairs (Lloyd) for the model, each row's deviation in 16 bits.
fn vector_quantised(matrices: &[Matrix], bits: u32) -> (f64, f64) {
    const TRAINED_ON: usize = 100_000;
    const ROUNDS: usize = 20;
    let pairs: Vec<[f32; 2]> = matrices.iter().flat_map(Matrix::pairs).collect();
    let sample: Vec<[f32; 2]> = pairs.iter().step_by(pairs.len().div_ceil(TRAINED_ON)).copied().collect();
    let words = 1usize << (2 * bits);
    let mut codebook: Vec<[f32; 2]> = (0..words).map(|word| sample[word * sample.len() / words]).collect();
    let nearest = |codebook: &[[f32; 2]], pair: &[f32; 2]| {
        let mut best = (f32::INFINITY, 0);
        for (place, word) in codebook.iter().enumerate() {
            let distance = (pair[0] - word[0]).powi(2) + (pair[1] - word[1]).powi(2);
            if distance < best.0 {
                best = (distance, place);
            }
        }
        best
    };
    for _ in 0..ROUNDS {
        let places: Vec<usize> = sample.par_iter().map(|pair| nearest(&codebook, pair).1).collect();
        let mut sums = vec![(0.0f64, 0.0f64, 0.0f64); codebook.len()];
        for (pair, &place) in sample.iter().zip(&places) {
            let sum = &mut sums[place];
            *sum = (sum.0 + f64::from(pair[0]), sum.1 + f64::from(pair[1]), sum.2 + 1.0);
        }
        for (word, (a, b, count)) in codebook.iter_mut().zip(sums) {
            if count > 0.0 {
                *word = [(a / count) as f32, (b / count) as f32];
            }
        }
    }
    let (mut error, mut energy, mut weights, mut rows) = (0.0, 0.0, 0, 0);
    for matrix in matrices {
        let pairs: Vec<[f32; 2]> = matrix.pairs().collect();
        let errors: Vec<[f32; 2]> = pairs
            .par_iter()
            .map(|pair| {
                let word = codebook[nearest(&codebook, pair).1];
                [pair[0] - word[0], pair[1] - word[1]]
            })
            .collect();
        for (place, error_of_pair) in errors.iter().enumerate() {
            let row = place / matrix.columns * 2;
            for (half, missed) in error_of_pair.iter().enumerate() {
                if let Some(deviation) = matrix.deviations.get(row + half) {
                    error += f64::from(missed * deviation).powi(2);
                }
            }
        }
        let columns = matrix.columns as f64;
        energy += matrix.deviations.iter().map(|d| f64::from(*d).powi(2) * columns).sum::<f64>();
        weights += matrix.weights.len();
        rows += matrix.deviations.len();
    }
    let side = 16.0 * (rows + 2 * codebook.len()) as f64 / weights as f64;
    (f64::from(bits) + side, error / energy)
}

/// Fourth moment over the squared second, of all weights once their rows are normalised, or of what they are transformed to.
pub fn kurtosis(matrices: &[Matrix], transform: &Transform) -> f64 {
    let (mut second, mut fourth, mut count) = (0.0, 0.0, 0.0);
    for matrix in matrices {
        let rows = matrix.deviations.len();
        for first in (0..matrix.columns).step_by(LANES) {
            let lanes = LANES.min(matrix.columns - first);
            let mut group = vec![0.0; rows * LANES];
            for (to, row) in group.chunks_exact_mut(LANES).zip(matrix.weights.chunks_exact(matrix.columns)) {
                to[..lanes].copy_from_slice(&row[first..first + lanes]);
            }
            transform.analyse(&mut group);
            for weight in group.chunks_exact(LANES).flat_map(|row| &row[..lanes]) {
                let square = f64::from(*weight).powi(2);
                second += square;
                fourth += square * square;
            }
            count += (rows * lanes) as f64;
        }
    }
    fourth * count / (second * second)
}

/// Bits that variants lose against the default at equal nMSE, at 3 bits, by source.
pub fn plot(results: &Value, svg: &Path) -> Result<()> {
    let rows: Vec<&Value> = results.as_array().context("a list of results")?.iter().collect();
    let at: Vec<&&Value> =
        rows.iter().filter(|row| row["bits"] == 3 && row["variant"] != "default").collect();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let mut sources: Vec<String> = Vec::new();
    let mut variants: Vec<String> = Vec::new();
    for row in &at {
        for (list, key) in [(&mut sources, "source"), (&mut variants, "variant")] {
            let name = text(row, key);
            if !list.contains(&name) {
                list.push(name);
            }
        }
    }
    let lost = |row: &Value| row["bits_lost_at_equal_nmse"].as_f64().unwrap_or(f64::NAN);
    let top = at.iter().map(|row| lost(row)).fold(0.3, f64::max);
    let bottom = at.iter().map(|row| lost(row)).fold(0.0, f64::min);
    let area = SVGBackend::new(svg, (900, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..sources.len() as f64, bottom - 0.02..top * 1.05)?;
    let label = |x: &f64| sources.get(*x as usize).cloned().unwrap_or_default();
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(sources.len() + 1)
        .x_label_formatter(&label)
        .y_desc("bits a weight lost at equal nMSE, 3 bits")
        .draw()?;
    let width = 0.8 / variants.len() as f64;
    for (place, variant) in variants.iter().enumerate() {
        let colour = Palette99::pick(place).to_rgba();
        let bars = at.iter().filter(|row| text(row, "variant") == *variant).filter_map(|row| {
            let source = sources.iter().position(|name| *name == text(row, "source"))? as f64;
            let left = source + 0.1 + place as f64 * width;
            Some(Rectangle::new([(left, 0.0), (left + width, lost(row))], colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(variant.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}

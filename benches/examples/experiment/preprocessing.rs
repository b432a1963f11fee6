//! What learned codecs would be given: chunks of normalised weights, and levels of importance.

use std::path::Path;

use anyhow::{Result, anyhow};
use nwc_encode_host::chunks::{CHUNK, Chunks, Normalisation};
use nwc_encode_host::compress::Selection;
use nwc_encode_host::importance::levels;
use nwc_encode_host::model::Model;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource, to_f32};
use serde_json::{Value, json};

/// The bundled model, which is always at hand.
const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clip-mini");
/// Rows and columns of the random matrices.
const SIDE: usize = 1024;

type Sources = Vec<(String, Box<dyn TensorSource>)>;

/// Random matrices and models.
fn sources(assets: Option<&Path>) -> Result<Sources> {
    let mut sources: Sources = Vec::new();
    for (name, source) in [("gaussian", Source::Gaussian), ("lognormal rows", Source::LognormalRows)] {
        let mut matrix = OwnedTensors::default();
        matrix.push_f32("weight", &[SIDE, SIDE], &source.matrix(SIDE, SIDE, 1));
        sources.push((name.to_owned(), Box::new(matrix)));
    }
    sources.extend(models(assets)?);
    Ok(sources)
}

/// The bundled model, and the others where they are at hand.
pub fn models(assets: Option<&Path>) -> Result<Sources> {
    let mut sources: Sources = Vec::new();
    let mut models = vec![("clip-mini", BUNDLED.into())];
    if let Some(assets) = assets {
        for model in ["clip-cifar", "siglip-cifar", "llama-tiny", "qwen3-tiny", "mixtral-tiny"] {
            models.push((model, assets.join("models").join(model)));
        }
    }
    for (name, path) in models {
        sources.push((name.to_owned(), Box::new(Model::open(&path).map_err(|error| anyhow!("{error}"))?)));
    }
    Ok(sources)
}

/// Deviations of whole chunks after each normalisation, the levels of columns, and whether all comes back.
pub fn run(assets: Option<&Path>) -> Result<Value> {
    let mut rows = Vec::new();
    for (name, source) in sources(assets)? {
        let selection = Selection::default();
        let matrices: Vec<(usize, Vec<f32>)> = (0..source.len())
            .filter_map(|index| {
                let tensor = source.tensor(index);
                let view = selection.view(tensor.name, tensor.dtype, tensor.shape).ok()?;
                Some((view.inputs(), to_f32(tensor.dtype, source.bytes(index))))
            })
            .collect();
        for normalisation in Normalisation::ALL {
            let mut deviations = Vec::new();
            let mut worst = 0f64;
            for (input, weights) in &matrices {
                let chunks = Chunks::new(weights, *input, normalisation);
                // Chunks that lack rows would look quieter than they are.
                let whole = weights.len() / input / CHUNK * input;
                deviations.extend(chunks.weights()[..whole].iter().map(|chunk| {
                    (chunk.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / CHUNK as f64).sqrt()
                }));
                for (a, b) in weights.iter().zip(chunks.restore()) {
                    if *a != 0.0 {
                        worst = worst.max(f64::from((a - b) / a).abs());
                    }
                }
            }
            let count = deviations.len() as f64;
            let mean = deviations.iter().sum::<f64>() / count;
            let spread = (deviations.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / count).sqrt();
            let within = |part: f64| {
                deviations.iter().filter(|d| (**d / mean - 1.0).abs() <= part).count() as f64 / count
            };
            let (near, half) = (within(0.25), within(0.5));
            eprintln!(
                "{name:<14} {:<8} deviation of chunks {mean:.3} +- {spread:.3}, within 25 % {near:.3}, 50 % {half:.3}, worst error {worst:.1e}",
                normalisation.name(),
            );
            rows.push(json!({
                "source": name,
                "normalisation": normalisation.name(),
                "chunks": deviations.len(),
                "mean_deviation": mean,
                "spread_over_mean": spread / mean,
                "within_25_percent": near,
                "within_50_percent": half,
                "largest_relative_error_of_the_round_trip": worst,
            }));
        }
        // A made-up diagonal: the energy of columns.
        let mut counts = [0u32; 4];
        for (input, weights) in &matrices {
            let diagonal: Vec<f32> =
                (0..*input).map(|c| weights[c..].iter().step_by(*input).map(|w| w * w).sum()).collect();
            levels(&diagonal).into_iter().for_each(|level| counts[usize::from(level)] += 1);
        }
        let columns = f64::from(counts.iter().sum::<u32>());
        let parts = counts.map(|count| f64::from(count) / columns);
        let entropy: f64 = parts.iter().filter(|part| **part > 0.0).map(|part| -part * part.log2()).sum();
        eprintln!("{name:<14} levels 0 to 3 {parts:.4?}, {entropy:.3} bits a column");
        rows.push(json!({
            "source": name,
            "columns": columns,
            "parts_of_levels": parts,
            "parts_asked": [0.889, 0.1, 0.01, 0.001],
            "bits_a_column": 2,
            "bits_a_column_entropy_coded": entropy,
        }));
    }
    Ok(Value::Array(rows))
}

//! What steps that follow importance are worth.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use nwc_encode_host::compress::{Report, Settings, Target};
use nwc_encode_host::importance::{Importance, Steps};
use nwc_encode_host::synthetic::Source;
use serde_json::{Value, json};

use super::{encode, sources};

/// The spreads of H that are tried, as deviations of log2 of its diagonal.
const SPREADS: [f64; 3] = [1.0, 2.0, 3.0];

/// At equal rates, the weighted error of each way to let steps follow importance. The diagonals are made up: log-normal, for each coded tensor another.
pub fn run(assets: Option<&Path>) -> Result<Value> {
    let mut rows = Vec::new();
    for (name, source) in sources(assets)? {
        for spread in SPREADS {
            let diagonals: HashMap<String, Vec<f32>> = (0..source.len())
                .map(|index| source.tensor(index))
                .filter(|tensor| tensor.shape.len() >= 2)
                .enumerate()
                .map(|(seed, tensor)| {
                    let inputs = tensor.shape[1..].iter().product();
                    let normal = Source::Gaussian.matrix(1, inputs, seed as u64);
                    let diagonal = normal.iter().map(|x| (spread * f64::from(*x)).exp2() as f32);
                    (tensor.name.to_owned(), diagonal.collect())
                })
                .collect();
            for bits in [2.0, 3.0, 4.0] {
                let report = |steps: Steps| {
                    let importance =
                        Importance::new(steps, diagonals.clone()).map_err(|error| anyhow!("{error}"))?;
                    let settings =
                        Settings { importance: Some(importance), ..Settings::new(Target::Bits(bits)) };
                    encode(&*source, &settings)
                };
                let error = |report: &Report| {
                    report.weighted_nmse_mean.unwrap_or(f64::NAN) * 4f64.powf(report.bits_per_weight())
                };
                let none = report(Steps::None)?;
                for (how, report) in
                    [("levels", report(Steps::Levels)?), ("continuous", report(Steps::Continuous)?)]
                {
                    let gained = 0.5 * (error(&none) / error(&report)).log2();
                    eprintln!("{name:<10} H 2^{spread} {bits} bits {how:<10} {gained:+.4} bits a weight");
                    rows.push(json!({
                        "source": name,
                        "octaves_of_h": spread,
                        "bits": bits,
                        "importance": how,
                        "bits_per_weight": report.bits_per_weight(),
                        "nmse": report.nmse,
                        "nmse_without": none.nmse,
                        "weighted_nmse_mean": report.weighted_nmse_mean,
                        "weighted_nmse_mean_without": none.weighted_nmse_mean,
                        "bits_gained_at_equal_weighted_nmse": gained,
                    }));
                }
            }
        }
    }
    Ok(Value::Array(rows))
}

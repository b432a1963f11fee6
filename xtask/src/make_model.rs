//! A synthetic transformer in Hugging Face layout, of any size: for speed and memory at scale, where real
//! models would have to be downloaded. Its statistics imitate a trained model coarsely; accuracy is never
//! measured on it.

use crate::shell::target_dir;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal, Normal, StandardNormal, StudentT};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(crate) struct Options {
    /// About how many weights, with a suffix K, M or G if you like: 100M, 1.5G
    #[arg(long, value_parser = parse_count)]
    weights: u64,
    /// The folder to write config.json and model.safetensors to [default: target/models/synthetic-WEIGHTS-SEED]
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Transformer blocks [default: one for each 64 of the width]
    #[arg(long)]
    layers: Option<u64>,
    /// Width of the residual stream, a multiple of 64 [default: from the number of weights]
    #[arg(long)]
    hidden: Option<u64>,
    /// The same seed and shape give the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Options {
    /// That many weights into this folder, everything else by default.
    pub(crate) fn new(weights: u64, folder: PathBuf) -> Self {
        Self { weights, output: Some(folder), layers: None, hidden: None, seed: 0 }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let shape = Shape::fit(options.weights, options.hidden, options.layers)?;
    let folder = match &options.output {
        Some(folder) => folder.clone(),
        None => target_dir().join(format!("models/synthetic-{}-{}", options.weights, options.seed)),
    };
    write_model(&shape, options.seed, &folder)?;
    println!("{}: {} weights, {shape:?}", folder.display(), shape.weights());
    Ok(())
}

fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        Some((at, 'g' | 'G')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    match digits.parse::<f64>() {
        // Up to 2^53 every count is exact in f64.
        Ok(number) if (1.0..9e15).contains(&(number * unit)) => Ok((number * unit).round() as u64),
        _ => Err("give a number of weights such as 250000, 100M or 1.5G".into()),
    }
}

/// A Llama-like transformer with tied embeddings, heads of 64 and no grouped queries.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    hidden: u64,
    layers: u64,
    intermediate: u64,
    vocabulary: u64,
}

const HEAD: u64 = 64;

impl Shape {
    /// The shape whose number of weights is nearest to the one asked for: usual proportions, then the
    /// width of the MLP and last the vocabulary take up what is left, to within half a row of the embedding.
    fn fit(weights: u64, hidden: Option<u64>, layers: Option<u64>) -> Result<Self> {
        // 12 hidden^2 a block (MLP of 8/3 hidden), a block for each 64 of hidden, a tenth for the embedding.
        let usual = (0.9 * weights as f64 * HEAD as f64 / 12.0).cbrt();
        let hidden = hidden.unwrap_or((usual / HEAD as f64).round().max(1.0) as u64 * HEAD);
        ensure!(hidden > 0 && hidden.is_multiple_of(HEAD), "--hidden {hidden} is not a multiple of {HEAD}");
        let layers = layers.unwrap_or(hidden / HEAD);
        ensure!(layers > 0, "--layers 0 leaves nothing to write");

        let too_small = || {
            format!(
                "{weights} weights are too few for {layers} layers of width {hidden}; ask for more, or set --layers"
            )
        };
        let attention = layers * (4 * hidden * hidden + 2 * hidden) + hidden;
        let mlp = (weights - weights / 10).checked_sub(attention).with_context(too_small)?;
        // A multiple of 16, as in nearly every published model.
        let intermediate = mlp / (3 * hidden * layers) / 16 * 16;
        if intermediate == 0 {
            bail!(too_small());
        }
        let blocks = attention + layers * 3 * hidden * intermediate;
        let vocabulary = (weights - blocks + hidden / 2) / hidden;
        Ok(Self { hidden, layers, intermediate, vocabulary })
    }

    fn weights(&self) -> u64 {
        self.tensors().iter().map(Tensor::weights).sum()
    }

    fn tensors(&self) -> Vec<Tensor> {
        let Self { hidden, layers, intermediate, vocabulary } = *self;
        let mut tensors = vec![Tensor::matrix("model.embed_tokens".into(), vocabulary, hidden)];
        for layer in 0..layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                tensors.push(Tensor::matrix(name(&format!("self_attn.{part}")), hidden, hidden));
            }
            tensors.push(Tensor::matrix(name("mlp.gate_proj"), intermediate, hidden));
            tensors.push(Tensor::matrix(name("mlp.up_proj"), intermediate, hidden));
            tensors.push(Tensor::matrix(name("mlp.down_proj"), hidden, intermediate));
            tensors.push(Tensor::norm(name("input_layernorm"), hidden));
            tensors.push(Tensor::norm(name("post_attention_layernorm"), hidden));
        }
        tensors.push(Tensor::norm("model.norm".into(), hidden));
        // Every third output projection, as in trained models, where these have the outliers.
        let outputs =
            tensors.iter_mut().filter(|t| t.name.contains("o_proj") || t.name.contains("down_proj"));
        outputs.step_by(3).for_each(|tensor| tensor.law = Law::Student);
        tensors
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden / HEAD,
            "num_key_value_heads": self.hidden / HEAD,
            "head_dim": HEAD,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true,
            "torch_dtype": "float16",
            "vocab_size": self.vocabulary,
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Law {
    /// Near one, as the scales of a normalisation are.
    Norm,
    Gaussian,
    /// Five degrees of freedom: excess kurtosis 6.
    Student,
}

struct Tensor {
    name: String,
    /// `[out, in]`, or one dimension for a norm.
    shape: Vec<u64>,
    law: Law,
}

impl Tensor {
    fn matrix(module: String, rows: u64, columns: u64) -> Self {
        Self { name: module + ".weight", shape: vec![rows, columns], law: Law::Gaussian }
    }

    fn norm(module: String, width: u64) -> Self {
        Self { name: module + ".weight", shape: vec![width], law: Law::Norm }
    }

    fn weights(&self) -> u64 {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        self.weights() * size_of::<f16>() as u64
    }

    /// Writes the values row by row, so that no more than a row is ever in memory.
    fn write(&self, out: &mut impl Write, mut random: ChaCha8Rng) -> Result<()> {
        let (rows, columns) = match self.shape[..] {
            [rows, columns] => (rows, columns),
            _ => (1, self.weights()),
        };
        // The deviation that keeps a linear layer's outputs at the scale of its inputs.
        let base = 1.0 / (columns as f32).sqrt();
        let spread = LogNormal::new(0.0_f32, 0.3)?;
        let mut row = Vec::with_capacity(columns as usize * size_of::<f16>());
        for _ in 0..rows {
            let scale = base * spread.sample(&mut random);
            match self.law {
                Law::Norm => fill(&mut row, columns, Normal::new(1.0, 0.1)?, 1.0, &mut random),
                Law::Gaussian => fill(&mut row, columns, StandardNormal, scale, &mut random),
                // Its variance is 5/3; the scale brings it to that of the Gaussian rows.
                Law::Student => {
                    let scale = scale * 0.6_f32.sqrt();
                    fill(&mut row, columns, StudentT::new(5.0_f32)?, scale, &mut random);
                }
            }
            out.write_all(&row)?;
        }
        Ok(())
    }
}

fn fill(row: &mut Vec<u8>, columns: u64, law: impl Distribution<f32>, scale: f32, random: &mut impl Rng) {
    row.clear();
    for _ in 0..columns {
        row.extend(f16::from_f32(law.sample(random) * scale).to_le_bytes());
    }
}

/// Writes config.json and model.safetensors. An unfinished model never has the real name, and one that is
/// there is not overwritten: it may be somebody's own.
fn write_model(shape: &Shape, seed: u64, folder: &Path) -> Result<()> {
    let path = folder.join("model.safetensors");
    ensure!(!path.exists(), "{} exists; remove it first", path.display());
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&shape.config())?)?;

    let unfinished = folder.join("model.safetensors.part");
    let tensors = shape.tensors();
    let file = File::create(&unfinished).with_context(|| unfinished.display().to_string())?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let header = safetensors_header(&tensors)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (stream, tensor) in (0..).zip(&tensors) {
        // A stream for each tensor: its values do not depend on the sizes of those before it.
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        tensor.write(&mut out, random)?;
    }
    out.flush()?;
    fs::rename(&unfinished, &path)?;
    Ok(())
}

/// The JSON that states where each tensor lies, padded with spaces so that the data is aligned to 8 bytes.
fn safetensors_header(tensors: &[Tensor]) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let entry = json!({"dtype": "F16", "shape": tensor.shape, "data_offsets": [start, end]});
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&entries)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, SafeTensors};

    #[test]
    fn counts_take_suffixes() {
        let good = [("250000", 250_000), ("64k", 64_000), ("100M", 100_000_000), ("1.5G", 1_500_000_000)];
        for (text, count) in good {
            assert_eq!(parse_count(text), Ok(count), "{text}");
        }
        for text in ["", "M", "0", "-1M", "nan", "infG", "10T", "1e20"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_shape_has_the_weights_asked_for() {
        for weights in [300_000, 1_000_000, 30_000_000, 100_000_000, 1_500_000_000, 70_000_000_000] {
            let shape = Shape::fit(weights, None, None).unwrap();
            assert!(shape.weights().abs_diff(weights) <= shape.hidden / 2, "{weights}: {shape:?}");
            assert!(shape.vocabulary >= 32, "{weights}: {shape:?}");
        }
    }

    #[test]
    fn an_impossible_shape_is_an_error() {
        assert!(Shape::fit(1000, None, None).is_err());
        assert!(Shape::fit(1_000_000, Some(100), None).is_err());
        assert!(Shape::fit(1_000_000, None, Some(0)).is_err());
        assert!(Shape::fit(1_000_000, Some(1024), Some(4)).is_err());
    }

    #[test]
    fn the_file_reads_back_with_the_statistics_intended() {
        let shape = Shape::fit(2_000_000, None, Some(2)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_model(&shape, 1, folder.path()).unwrap();
        let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
        let model = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(model.len(), shape.tensors().len());

        let values = |name: &str| -> Vec<f64> {
            let tensor = model.tensor(name).unwrap();
            assert_eq!(tensor.dtype(), Dtype::F16);
            let halves = tensor.data().chunks_exact(2);
            halves.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;

        let norm = values("model.norm.weight");
        assert!((mean(&norm) - 1.0).abs() < 0.05);

        let gaussian = values("model.layers.0.self_attn.q_proj.weight");
        assert!(mean(&gaussian).abs() < 1e-3);
        let variance = mean(&gaussian.iter().map(|w| w * w).collect::<Vec<_>>());
        // A log-normal row spread of 0.3 has a mean square of exp(2 * 0.3^2).
        let expected = (0.18_f64).exp() / shape.hidden as f64;
        assert!((variance / expected - 1.0).abs() < 0.1, "{variance} instead of {expected}");

        let kurtosis = |name: &str| {
            let moment = |power| mean(&values(name).iter().map(|w| w.powi(power)).collect::<Vec<_>>());
            moment(4) / moment(2).powi(2)
        };
        let (heavy, light) =
            ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight");
        assert!(kurtosis(heavy) > kurtosis(light) + 1.0);
    }

    #[test]
    fn the_seed_decides_every_byte_and_nothing_is_overwritten() {
        let shape = Shape::fit(300_000, None, None).unwrap();
        let file = |seed| {
            let folder = tempfile::tempdir().unwrap();
            write_model(&shape, seed, folder.path()).unwrap();
            assert!(write_model(&shape, seed, folder.path()).is_err());
            fs::read(folder.path().join("model.safetensors")).unwrap()
        };
        let first = file(1);
        assert_eq!(first, file(1));
        assert_ne!(first, file(2));
    }
}

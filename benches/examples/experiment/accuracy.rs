//! What compression costs a model: perplexity of language models, zero-shot accuracy of image models, at equal bits on disk, step by step from
//! no calibration to fine-tuning, next to rounding to the nearest and GPTQ with groups of 128.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nwc_encode_host::Error;
use nwc_encode_host::atomic::AtomicFile;
use nwc_encode_host::calibrate::{self, Work, calibrate};
use nwc_encode_host::compress::{Report, Selection, Settings, Target, Tuner, compress_tuned};
use nwc_encode_host::container::attachments_section;
use nwc_encode_host::device::Device;
use nwc_encode_host::evaluate::{Prompts, fidelity, perplexity, zero_shot};
use nwc_encode_host::finetune::{self, FineTuning};
use nwc_encode_host::importance::{Importance, Steps};
use nwc_encode_host::model::{Attachment, Model};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::samples::{Data, Limits};
use nwc_encode_host::subject::with_subject;
use nwc_encode_host::tensors::{TensorSource as _, to_f32};
use plotters::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::baselines::{gptq, group_bits, round_to_nearest};

/// Rates at which the baselines are measured too.
const BASELINE_BITS: [f64; 2] = [3.0, 4.0];
/// Sequences or images of calibration, and tokens of a sequence.
const SAMPLES: usize = 128;
const IMAGES: usize = 512;
const LENGTH: usize = 512;
/// Passes over them after each step of fine-tuning towers.
const TOWER_EPOCHS: usize = 2;
/// Windows of the text over which divergences are means.
const DIVERGENCE_WINDOWS: usize = 8;

#[expect(clippy::needless_pass_by_value, reason = "it is what errors are mapped by")]
fn told(error: Error) -> anyhow::Error {
    anyhow!("{error}")
}

/// A model with what it is measured by.
struct Case {
    name: String,
    folder: PathBuf,
    calibration: PathBuf,
    test: PathBuf,
    images: bool,
    /// Windows of the text that are predicted; all of them if there is no limit.
    windows: Option<usize>,
}

impl Case {
    fn new(name: &str, assets: &Path, windows: Option<usize>) -> Self {
        let images = name.contains("cifar");
        let [calibration, test] = if images {
            ["cifar10-calib.safetensors", "cifar10-test.safetensors"]
        } else {
            ["wikitext2-valid.txt", "wikitext2-test-tokens.safetensors"]
        };
        let data = assets.join("data");
        Self {
            name: name.to_owned(),
            folder: assets.join("models").join(name),
            calibration: data.join(calibration),
            test: data.join(test),
            images,
            windows,
        }
    }

    fn calibration_limits(&self) -> Limits {
        Limits {
            samples: Some(if self.images { IMAGES } else { SAMPLES }),
            length: Some(LENGTH).filter(|_| !self.images),
        }
    }

    /// Calibrates it with these data.
    fn calibrate(&self, data: &Path, output: &Path) -> Result<()> {
        let work = Work { folder: Work::beside(output), resume: false, force: true };
        let settings =
            calibrate::Settings { limits: self.calibration_limits(), outputs: true, ..Default::default() };
        let file = AtomicFile::create(output, true).map_err(told)?;
        with_subject(&self.folder, |subject| calibrate(subject, data, settings, &work, file, &Silent))
            .map_err(told)?;
        Ok(())
    }

    /// What a model or container is worth.
    fn measure(&self, model: &Path) -> Result<Measured> {
        let data = Data::open(&self.test).map_err(told)?;
        let limits = |samples| Limits { samples, length: Some(LENGTH).filter(|_| !self.images) };
        let found = with_subject(model, |subject| {
            if self.images {
                let prompts = subject.read("prompts.json", Prompts::read)?;
                let found = zero_shot(subject, &prompts, &data, limits(None), &Silent)?;
                let value = 100.0 * found.correct as f64 / found.images as f64;
                return Ok(Measured { value, divergence: None, n: found.images });
            }
            let found = perplexity(subject, &data, limits(self.windows), &Silent)?;
            let windows = limits(Some(DIVERGENCE_WINDOWS));
            let divergence = with_subject(&self.folder, |original| {
                Ok(fidelity(subject, original, Some(&data), windows, &Silent)?.divergence())
            })?;
            Ok(Measured { value: found.per_token(), divergence, n: found.tokens })
        });
        found.map_err(told)
    }

    fn row(
        &self,
        method: &str,
        bits: f64,
        bits_per_weight: f64,
        found: &Measured,
        original: &Measured,
    ) -> Value {
        let (ratio, lost) = if self.images {
            (None, Some(original.value - found.value))
        } else {
            (Some(found.value / original.value), None)
        };
        eprintln!(
            "{:<14} {method:<12} {bits} bits {bits_per_weight:.3} {:.4} {:.4}",
            self.name,
            found.value,
            ratio.or(lost).unwrap_or_default()
        );
        json!({
            "model": self.name, "method": method, "bits": bits, "bits_per_weight": bits_per_weight,
            "metric": if self.images { "top1" } else { "perplexity_per_token" }, "n": found.n,
            "value": found.value, "original": original.value,
            "perplexity_over_original": ratio, "points_lost": lost, "divergence": found.divergence,
        })
    }
}

/// Perplexity of a token, or percent of images in their class.
struct Measured {
    value: f64,
    /// Of predictions from the original's, nats a token.
    divergence: Option<f64>,
    n: usize,
}

/// Each adds something to the one before.
#[derive(Clone, Copy, PartialEq)]
enum Rung {
    DataFree,
    Importance,
    Ldlq,
    Outputs,
    Blocks,
    Towers,
}

impl Rung {
    const ALL: [Self; 6] =
        [Self::DataFree, Self::Importance, Self::Ldlq, Self::Outputs, Self::Blocks, Self::Towers];

    const fn name(self) -> &'static str {
        match self {
            Self::DataFree => "data-free",
            Self::Importance => "importance",
            Self::Ldlq => "LDLQ",
            Self::Outputs => "outputs",
            Self::Blocks => "tuned blocks",
            Self::Towers => "tuned towers",
        }
    }

    /// How it is fine-tuned, if it is.
    fn tuning(self) -> Option<finetune::Settings> {
        match self {
            Self::Blocks => Some(finetune::Settings::default()),
            Self::Towers => Some(finetune::Settings { epochs: TOWER_EPOCHS, ..finetune::Settings::tower() }),
            _ => None,
        }
    }

    fn settings(self, bits: f64, hessians: &Path) -> Result<Settings> {
        let mut settings = Settings::new(Target::Bits(bits));
        if self != Self::DataFree {
            let importance = Importance::open(hessians, Steps::Continuous).map_err(told)?;
            let outputs = matches!(self, Self::Outputs | Self::Blocks | Self::Towers);
            settings.importance = Some(if outputs { importance } else { importance.without_outputs() });
            settings.ldlq = self != Self::Importance;
        }
        Ok(settings)
    }
}

/// Compresses a model into a folder, with the files that evaluation needs.
fn encode(
    case: &Case,
    settings: &Settings,
    tuning: Option<&FineTuning<'_>>,
    folder: &Path,
) -> Result<(PathBuf, Report)> {
    let model = Model::open(&case.folder).map_err(told)?;
    let read = |file: &Attachment| Ok((file.name.clone(), fs::read(&file.path)?));
    let files: Vec<(String, Vec<u8>)> = model.attachments().iter().map(read).collect::<Result<_>>()?;
    let files = attachments_section(&files)?;
    let path = folder.join("model.nwc");
    let mut output = AtomicFile::create(&path, true).map_err(told)?;
    let tuner = tuning.map(|tuning| tuning as &dyn Tuner);
    let report = compress_tuned(&model, files, settings, tuner, &Silent, output.file()).map_err(told)?;
    output.commit().map_err(told)?;
    Ok((path, report))
}

/// What is measured: all of it takes hours.
#[derive(clap::Args)]
pub struct Choice {
    /// Folder with models/ and data/
    assets: PathBuf,
    /// Models of that folder
    #[arg(long, num_args = 1.., default_values = ["llama-tiny", "qwen3-tiny", "mixtral-tiny", "clip-cifar", "siglip-cifar"])]
    models: Vec<String>,
    /// Bits a weight
    #[arg(long, num_args = 1.., default_values = ["1.5", "2", "3", "4"])]
    bits: Vec<f64>,
    /// What to measure; fine-tuning takes hours, and has to be asked for
    #[arg(
        long,
        num_args = 1..,
        value_parser = ["data-free", "importance", "LDLQ", "outputs", "tuned blocks", "tuned towers", "RTN g128", "GPTQ g128"],
        default_values = ["data-free", "importance", "LDLQ", "outputs", "RTN g128", "GPTQ g128"],
    )]
    methods: Vec<String>,
    /// Windows of 512 tokens that are predicted; all of the text by default
    #[arg(long)]
    windows: Option<usize>,
}

/// Perplexity or accuracy of each model, by rate and method.
pub fn run(choice: &Choice) -> Result<Value> {
    let mut rows = Vec::new();
    let wanted = |method: &str| choice.methods.iter().any(|name| name == method);
    for name in &choice.models {
        let case = Case::new(name, &choice.assets, choice.windows);
        let folder = TempDir::new()?;
        let hessians = folder.path().join("h.safetensors");
        case.calibrate(&case.calibration, &hessians)?;
        let original = case.measure(&case.folder)?;
        for &bits in &choice.bits {
            for rung in Rung::ALL.into_iter().filter(|rung| wanted(rung.name())) {
                let settings = rung.settings(bits, &hessians)?;
                let tuning = rung.tuning().map(|settings| FineTuning {
                    model: &case.folder,
                    data: &case.calibration,
                    limits: case.calibration_limits(),
                    settings,
                    device: Device::Cpu,
                    work: None,
                    progress: &Silent,
                    report: std::sync::Mutex::default(),
                });
                let (path, report) = encode(&case, &settings, tuning.as_ref(), folder.path())?;
                let found = case.measure(&path)?;
                let mut row = case.row(rung.name(), bits, report.bits_per_weight(), &found, &original);
                // What feedback leaves of tr(E H E^T).
                row["compensated"] = report
                    .tensors
                    .iter()
                    .filter_map(|tensor| {
                        let ldlq = tensor.ldlq.as_ref()?;
                        Some(json!([tensor.name, ldlq.lost / ldlq.lost_without]))
                    })
                    .collect();
                if let Some(tuning) = tuning {
                    row["finetune"] =
                        json!(*tuning.report.lock().map_err(|_| anyhow!("fine-tuning failed"))?);
                }
                rows.push(row);
            }
            for (method, with_h) in [("RTN g128", false), ("GPTQ g128", true)] {
                if !BASELINE_BITS.contains(&bits) || !wanted(method) {
                    continue;
                }
                let output = folder.path().join("baseline");
                let rate = baseline(&case, bits as u32, with_h.then_some(&hessians), &output)?;
                rows.push(case.row(method, bits, rate, &case.measure(&output)?, &original));
            }
        }
    }
    Ok(Value::Array(rows))
}

/// Writes a model with the weights that a baseline makes of its own; returns bits a weight, as in containers without the tensors that are not coded.
fn baseline(case: &Case, bits: u32, hessians: Option<&PathBuf>, output: &Path) -> Result<f64> {
    let model = Model::open(&case.folder).map_err(told)?;
    let importance =
        hessians.map(|path| Importance::open(path, Steps::Continuous)).transpose().map_err(told)?;
    fs::create_dir_all(output)?;
    for entry in fs::read_dir(&case.folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            fs::copy(&path, output.join(path.file_name().context("a file has a name")?))?;
        }
    }
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let (mut weights, mut stored) = (0.0, 0.0);
    for index in 0..model.len() {
        let tensor = model.tensor(index);
        let mut values = to_f32(tensor.dtype, model.bytes(index));
        if let Ok(view) = Selection::default().view(tensor.name, tensor.dtype, tensor.shape) {
            let inputs = view.inputs();
            // A table that is looked up too has H as well: its rows are rounded with it.
            let ids =
                importance.as_ref().map(|importance| importance.matrices(tensor.name, inputs, view.batch));
            match ids.transpose().map_err(told)?.as_deref() {
                Some(&[id, ..]) if view.batch == 1 => {
                    let h = importance.as_ref().expect("it has an id").matrix(id).map_err(told)?;
                    gptq(&mut values, inputs, bits, &h);
                }
                _ => round_to_nearest(&mut values, inputs, bits),
            }
            weights += values.len() as f64;
            stored += group_bits(inputs, bits) * (values.len() / inputs) as f64;
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((tensor.name.to_owned(), tensor.shape.to_vec(), bytes));
    }
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    fs::write(output.join("model.safetensors"), serialize(views, None)?)?;
    Ok(stored / weights)
}

/// Perplexity of language models after calibration with the text of the models' kind, with other prose, and with tokens at random.
pub fn shift(choice: &Choice) -> Result<Value> {
    let mut rows = Vec::new();
    for name in choice.models.iter().filter(|name| !name.contains("cifar")) {
        let case = Case::new(name, &choice.assets, choice.windows);
        let folder = TempDir::new()?;
        let noise = folder.path().join("noise.safetensors");
        let vocabulary = Model::open(&case.folder).map_err(told)?;
        let vocabulary =
            vocabulary.find("model.embed_tokens.weight").map(|index| vocabulary.tensors()[index].shape[0]);
        write_noise(&noise, vocabulary.context("a language model has an embedding")?)?;
        let original = case.measure(&case.folder)?;
        let data = choice.assets.join("data");
        let texts = [
            ("WikiText-2, validation", data.join("wikitext2-valid.txt")),
            ("other prose", data.join("lm-calib.txt")),
            ("random tokens", noise),
        ];
        for (text, path) in texts {
            let hessians = folder.path().join("h.safetensors");
            case.calibrate(&path, &hessians)?;
            for &bits in &choice.bits {
                let settings = Rung::Outputs.settings(bits, &hessians)?;
                let (path, report) = encode(&case, &settings, None, folder.path())?;
                let found = case.measure(&path)?;
                let mut row = case.row("outputs", bits, report.bits_per_weight(), &found, &original);
                row["calibration"] = json!(text);
                rows.push(row);
            }
        }
    }
    Ok(Value::Array(rows))
}

/// What feedback leaves of tr(E H E^T) at the same steps, by tensor, block and kind of layer.
pub fn ldlq(choice: &Choice) -> Result<Value> {
    let mut rows = Vec::new();
    for name in &choice.models {
        let case = Case::new(name, &choice.assets, choice.windows);
        let folder = TempDir::new()?;
        let hessians = folder.path().join("h.safetensors");
        case.calibrate(&case.calibration, &hessians)?;
        for &bits in &choice.bits {
            let (_, report) = encode(&case, &Rung::Ldlq.settings(bits, &hessians)?, None, folder.path())?;
            // Of the model, each block and each kind: lost with feedback, and without.
            let mut all = [0.0; 2];
            let (mut blocks, mut kinds) = (BTreeMap::new(), BTreeMap::new());
            let mut tensors = BTreeMap::new();
            for tensor in &report.tensors {
                let Some(ldlq) = &tensor.ldlq else { continue };
                let mut parts = tensor.name.rsplit('.').skip(1);
                let kind = parts.next().unwrap_or(&tensor.name).to_owned();
                let block = tensor.name.split('.').find_map(|part| part.parse::<usize>().ok());
                let tower = tensor.name.split(['.', '_']).next().unwrap_or_default();
                let block = block.map(|block| format!("{tower} {block}"));
                let sums = [Some(&mut all), Some(kinds.entry(kind).or_insert([0.0; 2]))];
                let of_block = block.map(|block| blocks.entry(block).or_insert([0.0; 2]));
                for sum in sums.into_iter().chain([of_block]).flatten() {
                    *sum = [sum[0] + ldlq.lost, sum[1] + ldlq.lost_without];
                }
                tensors.insert(&tensor.name, ldlq.lost / ldlq.lost_without);
            }
            let ratio = |[with, without]: [f64; 2]| with / without;
            let ratios = |sums: BTreeMap<String, [f64; 2]>| -> BTreeMap<String, f64> {
                sums.into_iter().map(|(name, sums)| (name, ratio(sums))).collect()
            };
            let worst = tensors.values().copied().fold(0.0, f64::max);
            eprintln!("{name:<14} {bits} bits {:.4}, of a tensor {worst:.4} at most", ratio(all));
            rows.push(json!({
                "model": name, "bits": bits, "bits_per_weight": report.bits_per_weight(),
                "left": ratio(all), "worst": worst, "by_block": ratios(blocks), "by_kind": ratios(kinds),
                "by_tensor": tensors,
            }));
        }
    }
    Ok(Value::Array(rows))
}

/// As many tokens at random as calibration takes.
fn write_noise(path: &Path, vocabulary: usize) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let ids = (0..SAMPLES * LENGTH).map(|_| rng.random_range(0..vocabulary as u32));
    let ids: Vec<u8> = ids.flat_map(u32::to_le_bytes).collect();
    let view = TensorView::new(Dtype::U32, vec![SAMPLES, LENGTH], &ids)?;
    fs::write(path, serialize([("ids", view)], None)?)?;
    Ok(())
}

/// What each method loses against bits a weight, a chart for each model.
pub fn plot(results: &Value, svg: &Path) -> Result<()> {
    let rows = results.as_array().context("a list of results")?;
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let mut models: Vec<String> = rows.iter().map(|row| text(row, "model")).collect();
    models.dedup();
    let mut methods: Vec<String> = Vec::new();
    for method in rows.iter().map(|row| text(row, "method")) {
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    let area = SVGBackend::new(svg, (1000, 360 * models.len().div_ceil(2) as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let parts = area.split_evenly((models.len().div_ceil(2), 2));
    for (model, part) in models.iter().zip(&parts) {
        let of_model: Vec<&Value> = rows.iter().filter(|row| text(row, "model") == *model).collect();
        let images = of_model.iter().any(|row| row["points_lost"].is_f64());
        let lost = |row: &Value| match row["points_lost"].as_f64() {
            Some(points) => points,
            None => row["perplexity_over_original"].as_f64().map_or(f64::NAN, |ratio| 100.0 * (ratio - 1.0)),
        };
        let top = if images { 6.0 } else { 40.0 };
        let mut chart = ChartBuilder::on(part)
            .caption(model, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(50)
            .build_cartesian_2d(1.4..4.3, -0.5..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("bits a weight, on disk")
            .y_desc(if images { "points of top-1 lost" } else { "% of perplexity gained" })
            .draw()?;
        for (place, method) in methods.iter().enumerate() {
            let colour = Palette99::pick(place).to_rgba();
            let points: Vec<(f64, f64)> = of_model
                .iter()
                .filter(|row| text(row, "method") == *method)
                .map(|row| (row["bits_per_weight"].as_f64().unwrap_or(f64::NAN), lost(row).min(top)))
                .collect();
            if points.is_empty() {
                continue;
            }
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
            chart
                .draw_series(LineSeries::new(points, colour))?
                .label(method.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
        }
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    }
    area.present()?;
    Ok(())
}

//! Fine-tuning makes good what coding breaks, is kept only where it does, and gives the same however the work is cut up.
//!
//! With `NWC_ASSETS`, a folder with `models` and `data` in it, the ignored test measures learning rates on trained models.
#![cfg(feature = "models")]

mod common;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use burn::backend::{Autodiff, Flex};
use burn::tensor::Device;
use common::{assets, clip_mini, tiny};
use nwc_decode_core::DType;
use nwc_encode_host::compress::Quantise;
use nwc_encode_host::evaluate::{fidelity, perplexity};
use nwc_encode_host::finetune::{Job, Origin, Report, Scope, Settings, Tuned, Work, passes};
use nwc_encode_host::forward::{Batches, Forward, Overlay, Role, Stage, Tokens, Weights};
use nwc_encode_host::model::Model;
use nwc_encode_host::model::write::FolderWriter;
use nwc_encode_host::parameters::HostTensor;
use nwc_encode_host::progress::{Progress, Silent};
use nwc_encode_host::samples::{Data, Limits, Samples};
use nwc_encode_host::subject::{Subject, with_subject};
use nwc_encode_host::{Error, ErrorKind, Result};

type A = Autodiff<Flex>;
type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Rounds the weights of a row to multiples of a part of their standard deviation.
struct Uniform {
    part: f64,
    /// The coded tensors, with the length of their rows.
    rows: HashMap<String, usize>,
    calls: AtomicUsize,
}

impl Uniform {
    /// Codes all linear maps of blocks but routers.
    fn new(model: &Forward, part: f64) -> Self {
        let linears = model.towers.iter().flat_map(|tower| &tower.blocks).flat_map(Stage::groups).flatten();
        let coded = linears.filter(|linear| linear.role != Role::Router);
        let rows = coded.map(|linear| (linear.tensor.clone(), *linear.shape.last().unwrap())).collect();
        Self { part, rows, calls: AtomicUsize::new(0) }
    }

    /// Codes embeddings and heads too.
    fn whole(model: &Forward, part: f64) -> Self {
        let mut all = Self::new(model, part);
        for tower in &model.towers {
            let mut tensors = tower.embedding.tensors();
            tensors.extend(tower.head.tensors());
            let matrices = tensors.into_iter().filter(|spec| spec.shape.len() > 1);
            all.rows.extend(matrices.map(|spec| (spec.name, *spec.shape.last().unwrap())));
        }
        all
    }
}

impl Quantise for Uniform {
    fn fingerprint(&self) -> u32 {
        0
    }

    fn quantise(&self, name: &str, weights: &[f32]) -> Result<Vec<f32>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let row = |row: &[f32]| {
            let square: f64 = row.iter().map(|&weight| f64::from(weight).powi(2)).sum();
            let step = (self.part * (square / row.len() as f64).sqrt()).max(1e-12);
            row.iter().map(move |&w| ((f64::from(w) / step).round() * step) as f32).collect::<Vec<f32>>()
        };
        Ok(weights.chunks(self.rows[name]).flat_map(row).collect())
    }

    fn is_coded(&self, name: &str) -> bool {
        self.rows.contains_key(name)
    }
}

/// The parts that make about so many bits a weight, ideally coded.
const THREE_BITS: f64 = 0.52;
const TWO_BITS: f64 = 1.07;

fn settings() -> Settings {
    Settings { epochs: 3, learning_rate: 1e-3, ..Settings::default() }
}

/// Inputs of all towers: random ones.
fn inputs(subject: &Subject<'_>, count: usize) -> Result<Vec<(&'static str, Samples<'static>)>> {
    let towers = subject.forward.towers.iter();
    towers
        .map(|tower| {
            Ok((
                tower.name,
                Samples::random(subject, tower, count, subject.context(tower).unwrap_or(16).min(16))?,
            ))
        })
        .collect()
}

fn tune(
    subject: &Subject<'_>,
    inputs: &[(&str, Samples<'_>)],
    quantise: &dyn Quantise,
    settings: &Settings,
    work: Option<&Work>,
    progress: &dyn Progress,
) -> Result<Tuned> {
    let job = Job::<A> {
        forward: &subject.forward,
        original: subject.weights,
        inputs: inputs.iter().map(|(name, samples)| (*name, samples as &dyn Batches<Flex>)).collect(),
        quantise,
        settings: settings.clone(),
        device: Device::<A>::default(),
    };
    job.run(work, progress)
}

/// Fine-tunes a model on random inputs.
fn tuned(folder: &Path, part: f64, settings: &Settings) -> Result<Tuned> {
    with_subject(folder, |subject| {
        let quantise = Uniform::new(&subject.forward, part);
        tune(subject, &inputs(subject, 32)?, &quantise, settings, None, &Silent)
    })
}

/// Fine-tunes the towers of a model, whose tensors are all coded, on random inputs.
fn tuned_towers(subject: &Subject<'_>, settings: &Settings) -> Result<Tuned> {
    let quantise = Uniform::whole(&subject.forward, TWO_BITS);
    tune(subject, &inputs(subject, 48)?, &quantise, settings, None, &Silent)
}

fn tower_settings() -> Settings {
    Settings { epochs: 2, batch: 8, learning_rate: 0.05, ..Settings::tower() }
}

#[test]
fn towers_come_closer_to_the_original() -> TestResult {
    for folder in
        [tiny("llama-scaled"), tiny("mixtral"), tiny("gpt-oss"), tiny("siglip"), tiny("bert"), clip_mini()]
    {
        with_subject(&folder, |subject| {
            let tuned = tuned_towers(subject, &tower_settings())?;
            let towers = subject.forward.towers.iter();
            assert!(
                towers.clone().map(|tower| tower.name).eq(tuned.report.iter().map(|report| &report.name))
            );
            for report in &tuned.report {
                println!("{} {} {:.5} -> {:.5}", folder.display(), report.name, report.before, report.after);
                assert!(report.kept && report.after < 0.95 * report.before, "{report:?}");
            }
            // All that is coded, of which the first is as it was, and what is coded last of each tower.
            let mut coded = Uniform::whole(&subject.forward, 1.0).rows;
            // It is no linear map: it stays as it is.
            coded.retain(|name, _| !name.ends_with("head.probe"));
            assert!(coded.keys().all(|name| tuned.tensors.contains_key(name)));
            for tower in towers {
                let first = tower.embedding.tensors()[0].name.clone();
                let output = tower.head.projection.iter().map(|linear| linear.tensor.clone());
                for name in [first].into_iter().chain(output) {
                    assert!(tuned.tensors[&name] == subject.weights.tensor(&name)?, "{name}");
                }
                let mut last = tower.blocks.last().unwrap().tuning_order();
                last.retain(|linear| linear.role == Role::Down);
                if tower.name == "vision" && subject.forward.model_type == "siglip" {
                    // Of the pooling head.
                    last = tower.head.groups().pop().unwrap();
                }
                assert!(last.iter().all(|linear| tuned.last.contains(&linear.tensor)), "{:?}", tuned.last);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The divergence that the report speaks of, counted in another way, for all sequences: logits of the whole model, coded as a decoder gives it.
#[test]
fn a_tuned_tower_predicts_what_the_original_does() -> TestResult {
    with_subject(&tiny("llama-scaled"), |subject| {
        let tuned = tuned_towers(subject, &tower_settings())?;
        let quantise = Uniform::whole(&subject.forward, TWO_BITS);
        let samples = &inputs(subject, 48)?[0].1;
        let tokens = Batches::<Flex>::tokens(samples, 0).unwrap();
        let shares = |weights: &dyn Weights| -> Result<Vec<f64>> {
            let device = Device::<Flex>::default();
            let logits = subject.forward.load::<Flex>(weights, &device)?.logits(tokens.clone())?;
            let [.., vocabulary] = logits.dims();
            let logits = nwc_encode_host::parameters::values(&logits);
            let row = |row: &[f32]| {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                row.iter().map(|&x| f64::from(x).exp() / sum).collect::<Vec<f64>>()
            };
            Ok(logits.chunks(vocabulary).flat_map(row).collect())
        };
        let original = shares(subject.weights)?;
        let divergence = |tensors: &HashMap<String, HostTensor>| -> Result<f64> {
            let shares = shares(&coded(subject, &quantise, tensors)?)?;
            let sum: f64 = original.iter().zip(&shares).map(|(p, q)| p * (p / q).ln()).sum();
            Ok(sum / tokens.ids().len() as f64)
        };
        let (untuned, after) = (divergence(&HashMap::new())?, divergence(&tuned.tensors)?);
        let report = &tuned.report[0];
        println!("{untuned} {after} {report:?}");
        assert!((untuned / report.before - 1.0).abs() < 0.2, "{untuned} {report:?}");
        assert!(after < 0.9 * untuned, "{after} {untuned}");
        let last = report.steps.last().unwrap();
        let left = if last.kept { last.after } else { last.before };
        assert_eq!(report.after.to_bits(), left.to_bits(), "{report:?}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn an_interrupted_tower_goes_on_to_the_same_end() -> TestResult {
    let dir = tempfile::tempdir()?;
    let settings = Settings { epochs: 1, ..tower_settings() };
    with_subject(&tiny("llama-scaled"), |subject| {
        let quantise = Uniform::whole(&subject.forward, TWO_BITS);
        let inputs = inputs(subject, 24)?;
        let run = |resume, progress: &dyn Progress| {
            let work = work(dir.path(), resume);
            tune(subject, &inputs, &quantise, &settings, Some(&work), progress)
        };
        let names = || -> Vec<String> {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let whole = tune(subject, &inputs, &quantise, &settings, None, &Silent)?;
        // After the embedding, and four steps of the first block, in the second one.
        let stops = Counter { most: Some(6), ..Counter::default() };
        assert_eq!(run(false, &stops).unwrap_err().kind, ErrorKind::Interrupted);
        assert_eq!(names(), ["decoder.stage-1.safetensors"]);
        let counter = Counter::default();
        same(&whole, &run(true, &counter)?);
        assert_eq!(counter.done.load(Ordering::SeqCst), counter.total.load(Ordering::SeqCst));
        assert_eq!(names(), ["decoder.safetensors"]);
        quantise.calls.store(0, Ordering::Relaxed);
        same(&whole, &run(true, &Silent)?);
        assert_eq!(quantise.calls.load(Ordering::Relaxed), 0);
        Ok(())
    })?;
    Ok(())
}

#[test]
fn errors_become_less() -> TestResult {
    for folder in
        [tiny("llama-scaled"), tiny("mixtral"), tiny("gpt-oss"), tiny("siglip"), tiny("bert"), clip_mini()]
    {
        let tuned = tuned(&folder, TWO_BITS, &settings())?;
        with_subject(&folder, |subject| {
            let coded = Uniform::new(&subject.forward, 1.0).rows;
            let blocks = || subject.forward.towers.iter().flat_map(|tower| &tower.blocks);
            assert!(blocks().map(|block| &block.name).eq(tuned.report.iter().map(|report| &report.name)));
            for report in &tuned.report {
                println!(
                    "{} {:.4} -> {:.4} of {:.4?}",
                    report.name, report.before, report.after, report.signal
                );
                assert!(report.kept && report.after < 0.97 * report.before, "{report:?}");
            }
            // Tensors that change: those that are coded but for the first of each block, and norms and biases as they are stored.
            for (name, tensor) in &tuned.tensors {
                let original = subject.weights.tensor(name)?;
                assert_eq!(tensor.shape, original.shape);
                assert!(!name.contains("router") && !name.contains("block_sparse_moe.gate"));
                if coded.contains_key(name) {
                    assert!(*tensor != original, "{name}");
                    continue;
                }
                let dtype = subject.weights.stored(name)?.dtype;
                let as_stored = |x: f32| match dtype {
                    DType::BF16 => half::bf16::from_f32(x).to_f32(),
                    DType::F16 => half::f16::from_f32(x).to_f32(),
                    _ => x,
                };
                assert!(
                    tensor.values.iter().all(|&x| as_stored(x).to_bits() == x.to_bits()),
                    "{name} {dtype}"
                );
            }
            let firsts = blocks().map(|block| &block.attention.value.tensor).collect::<HashSet<_>>();
            assert!(coded.keys().all(|name| tuned.tensors.contains_key(name) != firsts.contains(name)));
            Ok(())
        })?;
    }
    Ok(())
}

/// What the report says is what the weights give.
#[test]
fn tuned_weights_are_better_for_the_model_that_is_run() -> TestResult {
    let folder = clip_mini();
    let tuned = tuned(&folder, TWO_BITS, &settings())?;
    with_subject(&folder, |subject| {
        let quantise = Uniform::new(&subject.forward, TWO_BITS);
        let inputs = inputs(subject, 32)?;
        let original = last_states(subject, subject.weights, &inputs)?;
        let error = |tensors: &HashMap<String, HostTensor>| -> Result<f64> {
            let states = last_states(subject, &coded(subject, &quantise, tensors)?, &inputs)?;
            Ok(states.iter().zip(&original).map(|(a, b)| f64::from(a - b).powi(2)).sum())
        };
        let (untuned, tuned) = (error(&HashMap::new())?, error(&tuned.tensors)?);
        assert!(tuned < 0.95 * untuned, "{tuned} {untuned}");
        Ok(())
    })?;
    Ok(())
}

/// Weights as a decoder gives them.
fn coded<'a>(
    subject: &Subject<'a>,
    quantise: &Uniform,
    tensors: &HashMap<String, HostTensor>,
) -> Result<Overlay<'a>> {
    let mut weights = Overlay::new(subject.weights, tensors.clone());
    for name in quantise.rows.keys() {
        let HostTensor { shape, values } = weights.tensor(name)?;
        weights.replace(name, HostTensor { shape, values: quantise.quantise(name, &values)? });
    }
    Ok(weights)
}

/// What the last blocks put out.
fn last_states(
    subject: &Subject<'_>,
    weights: &dyn Weights,
    inputs: &[(&str, Samples<'_>)],
) -> Result<Vec<f32>> {
    let mut states = Vec::new();
    for (name, samples) in inputs {
        let tower = subject.forward.tower(name)?;
        let device = Device::<Flex>::default();
        let mut stream = nwc_encode_host::forward::Stream::<Flex>::new(tower, weights, samples, &device);
        stream.run_all(&mut nwc_encode_host::forward::Quiet(&Silent))?;
        stream.hidden().iter().for_each(|hidden| {
            states.extend(nwc_encode_host::parameters::values(hidden));
        });
    }
    Ok(states)
}

#[test]
fn harmful_training_changes_nothing() -> TestResult {
    for learning_rate in [1e6, 1e30] {
        let settings = Settings { learning_rate, epochs: 1, ..settings() };
        let tuned = tuned(&tiny("llama-scaled"), THREE_BITS, &settings)?;
        assert_eq!(tuned.report.len(), 2);
        for report in &tuned.report {
            // What was best before training is what is left: the same as untuned.
            assert!(!report.kept && report.after >= report.before, "{report:?}");
        }
        assert!(tuned.tensors.is_empty());
        let settings = Settings { learning_rate, epochs: 1, ..tower_settings() };
        let tuned = with_subject(&tiny("llama-scaled"), |subject| tuned_towers(subject, &settings))?;
        assert!(!tuned.report[0].kept && tuned.tensors.is_empty(), "{tuned:?}");
    }
    Ok(())
}

#[test]
fn experts_of_a_role_are_coded_together() -> TestResult {
    let (model, _) = Forward::open(&tiny("mixtral"))?;
    let quantise = Uniform::new(&model, 1.0);
    let block = &model.tower("decoder")?.blocks[0];
    let settings = Settings { epochs: 3, ..Settings::default() };
    // Of value, query, key, output, and of all experts up, gate and down.
    assert_eq!(passes(block, &quantise, &settings), 7 * 3);
    let (model, _) = Forward::open(&tiny("gpt-oss"))?;
    let quantise = Uniform::new(&model, 1.0);
    assert_eq!(passes(&model.tower("decoder")?.blocks[0], &quantise, &settings), 6 * 3);
    Ok(())
}

/// Counts what is done, and wants to stop after so much.
#[derive(Default)]
struct Counter {
    most: Option<u64>,
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress for Counter {
    fn begin(&self, _: &'static str, total: u64) {
        self.total.store(total, Ordering::SeqCst);
    }

    fn advance(&self, units: u64) {
        self.done.fetch_add(units, Ordering::SeqCst);
    }

    fn warn(&self, _: &str) {}

    fn check(&self) -> Result<()> {
        match self.most {
            Some(most) if self.done.load(Ordering::SeqCst) >= most => Err(Error::interrupted()),
            _ => Ok(()),
        }
    }
}

fn work(folder: &Path, resume: bool) -> Work {
    let [model, data, quantiser] = ["a", "b", "c"].map(str::to_owned);
    Work { folder: folder.to_owned(), resume, origin: Origin { model, data, quantiser } }
}

fn same(a: &Tuned, b: &Tuned) {
    assert!(a.tensors == b.tensors && a.last == b.last);
    let timeless = |tuned: &Tuned| -> Vec<Report> {
        tuned.report.iter().map(|report| Report { seconds: 0.0, ..report.clone() }).collect()
    };
    assert_eq!(timeless(a), timeless(b));
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_end() -> TestResult {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("work");
    let settings = Settings { epochs: 1, ..settings() };
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    with_subject(&clip_mini(), |subject| {
        let quantise = Uniform::new(&subject.forward, TWO_BITS);
        let inputs = inputs(subject, 12)?;
        let run = |settings: &Settings, work: &Work, progress: &dyn Progress| {
            tune(subject, &inputs, &quantise, settings, Some(work), progress)
        };
        let whole = tune(subject, &inputs, &quantise, &settings, None, &Silent)?;
        same(&whole, &tune(subject, &inputs, &quantise, &settings, None, &Silent)?);

        // In the third block.
        let stops = Counter { most: Some(14), ..Counter::default() };
        let error = run(&settings, &work(&folder, false), &stops).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Interrupted);
        assert_eq!(names(&folder).len(), 2, "no claim is left: {:?}", names(&folder));

        let error = run(&settings, &work(&folder, false), &Silent).unwrap_err().to_string();
        assert!(error.contains("is not empty; add --resume"), "{error}");
        let other = Settings { seed: 1, ..settings.clone() };
        let error = run(&other, &work(&folder, true), &Silent).unwrap_err().to_string();
        assert!(error.contains("was made with another settings"), "{error}");
        let mut foreign = work(&folder, true);
        foreign.origin.quantiser = "d".to_owned();
        let error = run(&settings, &foreign, &Silent).unwrap_err().to_string();
        assert!(error.contains("was made with another codec"), "{error}");

        let calls = quantise.calls.swap(0, Ordering::Relaxed);
        assert!(calls > 0);
        let counter = Counter::default();
        same(&whole, &run(&settings, &work(&folder, true), &counter)?);
        assert_eq!(counter.done.load(Ordering::SeqCst), counter.total.load(Ordering::SeqCst));
        assert_eq!(names(&folder).len(), 6);
        let first = quantise.calls.swap(0, Ordering::Relaxed);
        // All is done: nothing is coded.
        same(&whole, &run(&settings, &work(&folder, true), &Silent)?);
        assert!(first > 0 && quantise.calls.load(Ordering::Relaxed) == 0);
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_number_of_threads_changes_nothing() -> TestResult {
    let settings = Settings { epochs: 1, ..settings() };
    let with_threads = |threads| -> Result<Tuned, Box<dyn std::error::Error>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(pool.install(|| tuned(&clip_mini(), TWO_BITS, &settings))?)
    };
    same(&with_threads(1)?, &with_threads(3)?);
    Ok(())
}

#[test]
fn workers_share_blocks() -> TestResult {
    let dir = tempfile::tempdir()?;
    let calls = AtomicUsize::new(0);
    let settings = Settings { epochs: 1, ..settings() };
    let worker = |work: Option<Work>| {
        let tuned = with_subject(&clip_mini(), |subject| {
            let quantise = Uniform::new(&subject.forward, TWO_BITS);
            let tuned = tune(subject, &inputs(subject, 12)?, &quantise, &settings, work.as_ref(), &Silent);
            calls.fetch_add(quantise.calls.load(Ordering::Relaxed), Ordering::SeqCst);
            tuned
        });
        tuned.unwrap()
    };
    let alone = worker(None);
    let needed = calls.swap(0, Ordering::SeqCst);
    let shared = || worker(Some(work(dir.path(), true)));
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(shared);
        let other = scope.spawn(shared);
        (one.join().unwrap(), other.join().unwrap())
    });
    same(&alone, &one);
    same(&alone, &other);
    assert_eq!(calls.load(Ordering::SeqCst), needed, "each block is done once");
    Ok(())
}

#[test]
fn what_cannot_be_tuned_is_said() -> TestResult {
    with_subject(&tiny("llama-scaled"), |subject| {
        let quantise = Uniform::new(&subject.forward, THREE_BITS);
        let error = |settings: &Settings, count| {
            let inputs = inputs(subject, count).unwrap();
            tune(subject, &inputs, &quantise, settings, None, &Silent).unwrap_err().to_string()
        };
        assert!(error(&settings(), 1).contains("1 sequences are too few"));
        let none = Settings { held_out: 0.0, ..settings() };
        assert!(error(&none, 4).contains("0 is no part to hold out"));
        assert!(error(&Settings { epochs: 0, ..settings() }, 4).contains("0 epochs of 4 sequences"));
        let inputs = [("vision", Samples::of_batches(vec![Tokens::new(vec![1, 2], 1)?]))];
        let error = tune(subject, &inputs, &quantise, &settings(), None, &Silent).unwrap_err().to_string();
        assert!(error.contains("have no vision part"), "{error}");
        Ok(())
    })?;
    Ok(())
}

/// Prints errors before and after, and what they do to the model, for some settings: what the defaults rest on.
#[test]
#[ignore = "takes minutes; run it with --release -- --ignored --nocapture"]
fn learning_rates() -> TestResult {
    let Some(assets) = assets() else { return Ok(()) };
    let text = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let numbers = |name: &str, otherwise: &str| -> Vec<f64> {
        text(name, otherwise).split(',').map(|number| number.parse().unwrap()).collect()
    };
    for model in text("NWC_MODELS", "llama-tiny,clip-mini").split(',') {
        let is_language = !["clip", "siglip"].iter().any(|kind| model.starts_with(kind));
        let data = |name: &str| Data::open(&assets.join("data").join(name));
        let (calibration, test) = if is_language {
            (data(&text("NWC_TEXT", "lm-calib.txt"))?, data("wikitext2-test-tokens.safetensors")?)
        } else {
            (data("cifar10-calib.safetensors")?, data("cifar10-test-200.safetensors")?)
        };
        with_subject(&assets.join("models").join(model), |subject| {
            for samples in numbers("NWC_SAMPLES", "64") {
                let length = is_language.then_some(numbers("NWC_LENGTH", "256")[0] as usize);
                let limits = Limits { samples: Some(samples as usize), length };
                for part in numbers("NWC_PARTS", "0.52,1.07") {
                    for epochs in numbers("NWC_EPOCHS", "5") {
                        for learning_rate in numbers("NWC_RATES", "1e-5,1e-4,1e-3") {
                            let scope = match &text("NWC_SCOPE", "block")[..] {
                                "tower" => Settings::tower(),
                                _ => Settings::default(),
                            };
                            let settings = Settings { epochs: epochs as usize, learning_rate, ..scope };
                            measure(subject, (&calibration, &test), limits, part, &settings)?;
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn measure(
    subject: &Subject<'_>,
    (calibration, test): (&Data, &Data),
    limits: Limits,
    part: f64,
    settings: &Settings,
) -> Result<()> {
    let quantise = match settings.scope {
        Scope::Block => Uniform::new(&subject.forward, part),
        Scope::Tower => Uniform::whole(&subject.forward, part),
    };
    let mut inputs = Vec::new();
    for tower in &subject.forward.towers {
        let samples = Samples::new(subject, tower, calibration, limits)?;
        inputs.extend(samples.map(|samples| (tower.name, samples)));
    }
    let tuned = tune(subject, &inputs, &quantise, settings, None, &Silent)?;
    let reports = || tuned.report.iter();
    let ratios: Vec<f64> = reports().map(|report| report.after / report.before).collect();
    let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
    println!(
        "{} {:?} samples {:?} part {part} epochs {} rate {:.0e}: ratio {mean:.4}, of each {:.3?}, before to signal {:.3?}, {:.1} s each, \
         untuned {}, tuned {}",
        subject.path.file_name().unwrap_or_default().display(),
        settings.scope,
        limits.samples,
        settings.epochs,
        settings.learning_rate,
        ratios,
        reports().map(|report| report.before / report.signal.unwrap_or(f64::NAN)).collect::<Vec<f64>>(),
        reports().map(|report| report.seconds).sum::<f64>() / ratios.len() as f64,
        quality(subject, &coded(subject, &quantise, &HashMap::new())?, test)?,
        quality(subject, &coded(subject, &quantise, &tuned.tensors)?, test)?,
    );
    Ok(())
}

/// Perplexity of a language model over 40 windows of 512 tokens, else the relative error of embeddings.
fn quality(subject: &Subject<'_>, weights: &dyn Weights, test: &Data) -> Result<String> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let mut writer = FolderWriter::create(&folder, false)?;
    for entry in std::fs::read_dir(subject.path).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            writer.add_file(path.file_name().unwrap().to_str().unwrap(), &std::fs::read(&path).unwrap())?;
        }
    }
    let model = Model::open(&subject.path.join("model.safetensors"))?;
    let shapes = model.tensors().iter().map(|tensor| (tensor.name.as_str(), DType::F32, &tensor.shape[..]));
    writer.begin_file("model.safetensors", None, &shapes.collect::<Vec<_>>())?;
    for tensor in model.tensors() {
        let values = weights.tensor(&tensor.name)?.values;
        writer.write_tensor(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    writer.end_file()?;
    writer.commit()?;
    with_subject(&folder, |other| {
        if subject.forward.tower("decoder").is_ok() {
            let limits = Limits { samples: Some(40), length: Some(512) };
            return Ok(format!("{:.3}", perplexity(other, test, limits, &Silent)?.per_token()));
        }
        let fidelity = fidelity(other, subject, Some(test), Limits::default(), &Silent)?;
        let towers = fidelity.towers.iter();
        Ok(format!("{:.4?}", towers.map(|tower| tower.relative_error).collect::<Vec<f64>>()))
    })
}

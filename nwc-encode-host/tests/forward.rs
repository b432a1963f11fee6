//! Forward passes give what the models' own library gives: the hidden state after each block, and the final outputs.
//!
//! `tests/models` has tiny models with random weights of each family (`tests/transformers/make_models.py`). With `NWC_ASSETS`, a folder
//! with `models` in it, larger trained ones are run too.
#![cfg(feature = "models")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use burn::backend::{Autodiff, Flex};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use common::{assets, clip_mini, tiny};
use nwc_decode_core::{Checks, Coding, DType};
use nwc_encode_host::forward::preprocess::Preprocessor;
use nwc_encode_host::forward::tokenizer::Tokenizer;
use nwc_encode_host::forward::{
    ContainerWeights, Forward, Input, Linear, NoTaps, Overlay, Part, Role, Stage, Tokens, Tower, Weights,
};
use nwc_encode_host::model::Model;
use nwc_encode_host::parameters::{Parameters, values};
use nwc_encode_host::restore::{ContainerFile, Decoder, TableMemory};
use nwc_encode_host::synthetic::residual_codec;

type B = Flex;
type TestResult = Result<(), Box<dyn std::error::Error>>;

/// The largest relative error of a hidden state or output.
const MOST: f64 = 1e-4;

fn device() -> Device<B> {
    Device::<B>::default()
}

/// What a model should give.
struct Reference(Model);

impl Reference {
    fn open(path: &Path) -> Self {
        Self(Model::open(path).unwrap())
    }

    fn integers(&self, name: &str) -> Vec<u32> {
        let bytes = self.0.bytes(self.0.find(name).unwrap());
        bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
    }

    fn tokens(&self) -> Tokens {
        let shape = &self.0.tensors()[self.0.find("input_ids").unwrap()].shape;
        let tokens = Tokens::new(self.integers("input_ids"), shape[1]).unwrap();
        if self.0.has("attention_mask") {
            let padding = self.integers("attention_mask").into_iter().map(|seen| seen == 0).collect();
            return tokens.with_padding(padding).unwrap();
        }
        tokens
    }

    fn pixels(&self) -> Tensor<B, 4> {
        let tensor = self.0.tensor("pixel_values").unwrap();
        Tensor::from_data(TensorData::new(tensor.values, tensor.shape), &device())
    }
}

/// Compares values with a reference's, and keeps the largest error.
struct Errors<'r> {
    reference: &'r Reference,
    largest: f64,
}

impl<'r> Errors<'r> {
    fn new(reference: &'r Reference) -> Self {
        Self { reference, largest: 0.0 }
    }

    fn check<const D: usize>(&mut self, name: &str, got: &Tensor<B, D>) {
        let want = self.reference.0.tensor(name).unwrap();
        assert_eq!(got.dims().to_vec(), want.shape, "{name}");
        let error = relative_error(&values(got), &want.values);
        assert!(error < MOST, "{name} is off by {error:.1e}");
        self.largest = self.largest.max(error);
    }
}

/// Norm of the difference over the norm.
fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(want).map(|(&a, &b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|&x| square(x)).sum();
    (difference / norm).sqrt()
}

/// Runs a tower block by block, with one block in memory, and gives what the head puts out. Taps must see what the stages list.
fn streamed(
    tower: &Tower,
    weights: &dyn Weights,
    input: &Input<B>,
    errors: &mut Errors<'_>,
    prefix: &str,
) -> Tensor<B, 3> {
    let device = device();
    let mut seen: Vec<Vec<Linear>> = Vec::new();
    let mut tap = |linears: &[&Linear], inputs: &Tensor<B, 2>| {
        assert!(linears.iter().all(|linear| linear.inputs() == inputs.dims()[1]));
        seen.push(linears.iter().copied().cloned().collect());
    };
    let parameters = tower.embedding.load(weights, &device).unwrap();
    let mut hidden = tower.embedding.forward(&parameters, input, &device, &mut tap).unwrap();
    errors.check(&format!("{prefix}hidden.0"), &hidden);
    let tokens = if let Input::Tokens(tokens) = input { Some(tokens) } else { None };
    let padding = tower.padding(tokens, &device);
    for (index, block) in tower.blocks.iter().enumerate() {
        let parameters = block.load(weights, &device).unwrap();
        hidden = block.forward(&parameters, hidden, padding.as_ref(), &mut tap);
        errors.check(&format!("{prefix}hidden.{}", index + 1), &hidden);
    }
    let parameters = tower.head.load(weights, &device).unwrap();
    let output = tower.head.forward(&parameters, hidden, tokens, &mut tap).unwrap();

    let blocks = tower.blocks.iter().flat_map(Stage::groups);
    let listed = tower.embedding.groups().into_iter().chain(blocks).chain(tower.head.groups());
    let listed: Vec<Vec<Linear>> = listed.map(|group| group.into_iter().cloned().collect()).collect();
    // Few tokens may leave out an expert.
    let expected = listed.iter().filter(|group| group[0].expert.is_none() || seen.contains(group));
    assert!(expected.eq(&seen), "the taps of {}", tower.name);
    output
}

fn check_language_model(folder: &Path) -> f64 {
    let (model, weights) = Forward::open(folder).unwrap();
    let reference = Reference::open(&folder.join("reference.safetensors"));
    let mut errors = Errors::new(&reference);
    let tokens = reference.tokens();
    let tower = model.tower("decoder").unwrap();
    let logits = streamed(tower, &weights, &tokens.clone().into(), &mut errors, "");
    let whole = model.load::<B>(&weights, &device()).unwrap().logits(tokens.clone()).unwrap();
    assert_eq!(values(&whole), values(&logits), "streamed and loaded at once");
    errors.check("logits", &logits.slice_dim(1, tokens.length() - 4..tokens.length()));
    errors.largest
}

fn check_image_text_model(folder: &Path, reference: &Path) -> f64 {
    let (model, weights) = Forward::open(folder).unwrap();
    let reference = Reference::open(reference);
    let mut errors = Errors::new(&reference);
    let inputs = [("text", reference.tokens().into()), ("vision", reference.pixels().into())];
    for (name, input) in inputs {
        streamed(model.tower(name).unwrap(), &weights, &input, &mut errors, &format!("{name}."));
    }
    let whole = model.load::<B>(&weights, &device()).unwrap();
    let images = whole.image_embeds(reference.pixels()).unwrap();
    let texts = whole.text_embeds(reference.tokens()).unwrap();
    errors.check("image_embeds", &images);
    errors.check("text_embeds", &texts);
    errors.check("logits_per_image", &whole.logits_per_image(images, texts).unwrap());
    errors.largest
}

#[test]
fn clip_is_exact() {
    let error = check_image_text_model(&clip_mini(), &tiny("clip-mini.safetensors"));
    println!("clip-mini: {error:.1e}");
}

#[test]
fn siglip_is_exact() {
    let folder = tiny("siglip");
    println!("siglip: {:.1e}", check_image_text_model(&folder, &folder.join("reference.safetensors")));
}

#[test]
fn language_models_are_exact() {
    for name in [
        "llama-scaled",
        "qwen3",
        "mixtral",
        "qwen3-moe",
        "qwen3-moe-unnormalised",
        "gpt-oss",
        "gpt-oss-mxfp4",
    ] {
        println!("{name}: {:.1e}", check_language_model(&tiny(name)));
    }
}

#[test]
fn bert_is_exact() {
    let folder = tiny("bert");
    let (model, weights) = Forward::open(&folder).unwrap();
    let reference = Reference::open(&folder.join("reference.safetensors"));
    let mut errors = Errors::new(&reference);
    // The states of padding are compared too: they see what others see.
    let tower = model.tower("encoder").unwrap();
    let pooled = streamed(tower, &weights, &reference.tokens().into(), &mut errors, "");
    let [texts, _, width] = pooled.dims();
    errors.check("pooler_output", &pooled.reshape([texts, width]));
    println!("bert: {:.1e}", errors.largest);
}

#[test]
fn trained_models_are_exact() {
    let Some(assets) = assets() else { return };
    let folder = |name: &str| assets.join("models").join(name);
    for name in ["clip-cifar", "clip-mini", "siglip-cifar"] {
        let error = check_image_text_model(&folder(name), &folder(name).join("reference.safetensors"));
        println!("{name}: {error:.1e}");
    }
    for name in ["llama-tiny", "qwen3-tiny", "mixtral-tiny"] {
        println!("{name}: {:.1e}", check_language_model(&folder(name)));
    }
}

/// The whole protocol of the baseline: prompts, averages of their embeddings, pixels, cosines.
#[test]
fn zero_shot_accuracy_is_the_baseline() -> TestResult {
    const PIXELS: usize = 32 * 32 * 3;
    const BATCH: usize = 500;
    let Some(assets) = assets() else { return Ok(()) };
    let folder = assets.join("models/clip-mini");
    let (model, weights) = Forward::open(&folder)?;
    let whole = model.load::<B>(&weights, &device())?;
    let prompts: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("prompts.json"))?)?;
    let prompts: Vec<Vec<String>> = serde_json::from_value(prompts["prompts"].clone())?;
    let tokenizer = Tokenizer::open(&folder)?;
    let unit = |x: Tensor<B, 2>| x.clone() / x.square().sum_dim(1).sqrt();
    let mut classes = Vec::new();
    for prompts in &prompts {
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        classes.push(unit(whole.text_embeds(tokenizer.texts(&prompts)?)?.mean_dim(0)));
    }
    let classes = Tensor::cat(classes, 0).transpose();

    let data = Model::open(&assets.join("data/cifar10-test.safetensors"))?;
    let bytes = |name: &str| data.bytes(data.find(name).unwrap());
    let preprocessor = Preprocessor::open(&folder)?;
    let mut right = 0;
    for (images, labels) in bytes("images").chunks(BATCH * PIXELS).zip(bytes("labels").chunks(BATCH)) {
        let pixels = preprocessor.pixel_values(images, [labels.len(), 32, 32], &device());
        let cosines = values(&whole.image_embeds(pixels)?.matmul(classes.clone()));
        let guesses = cosines
            .chunks(prompts.len())
            .map(|row| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap());
        right += guesses.zip(labels).filter(|(guess, label)| *guess == usize::from(**label)).count();
    }
    println!("clip-mini: {right} of 10000");
    assert!(right.abs_diff(8126) <= 1, "{right}");
    Ok(())
}

#[test]
fn texts_have_the_tokens_of_the_baseline() -> TestResult {
    let Some(assets) = assets() else { return Ok(()) };
    let tokenizer = Tokenizer::open(&assets.join("models/llama-tiny"))?;
    let text = std::fs::read_to_string(assets.join("data/wikitext2-test.txt"))?;
    let data = Model::open(&assets.join("data/wikitext2-test-tokens.safetensors"))?;
    let expected: Vec<u32> =
        data.bytes(0).as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes).into()).collect();
    assert!(tokenizer.text(&text)? == expected);
    Ok(())
}

/// The whole protocol of the baseline: windows of 512 tokens, each token but the first predicted once.
#[test]
#[ignore = "takes minutes; run it with --release -- --ignored"]
fn perplexity_is_the_baseline() -> TestResult {
    const WINDOW: usize = 512;
    const BATCH: usize = 4;
    let Some(assets) = assets() else { return Ok(()) };
    let data = Model::open(&assets.join("data/wikitext2-test-tokens.safetensors"))?;
    let ids: Vec<u32> =
        data.bytes(0).as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes).into()).collect();
    for name in ["llama-tiny", "qwen3-tiny", "mixtral-tiny"] {
        let folder = assets.join("models").join(name);
        let metrics: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("metrics.json"))?)?;
        let (model, weights) = Forward::open(&folder)?;
        let whole = model.load::<B>(&weights, &device())?;
        let mut loss = 0.0;
        let mut first = 0;
        while first + 1 < ids.len() {
            // Whole windows together; the last one, which is shorter, alone.
            let left = ids.len() - 1 - first;
            let length = left.min(WINDOW);
            let inputs = length * (left / length).min(BATCH);
            let logits = whole.logits(Tokens::new(ids[first..first + inputs].to_vec(), length)?)?;
            let chances = log_softmax(logits, 2);
            let [texts, ..] = chances.dims();
            let targets = ids[first + 1..=first + inputs].iter().copied().map(i64::from).collect();
            let targets = TensorData::new::<i64, _>(targets, [texts, length, 1]);
            let chosen = chances.gather(2, Tensor::from_data(targets, &device()));
            loss -= values(&chosen).into_iter().map(f64::from).sum::<f64>();
            first += inputs;
        }
        let perplexity = (loss / (ids.len() - 1) as f64).exp();
        let baseline = metrics["perplexity_per_token"].as_f64().unwrap();
        println!("{name}: {perplexity:.5}, baseline {baseline:.5}");
        assert!((perplexity / baseline - 1.0).abs() < 1e-5, "{name}: {perplexity}, not {baseline}");
    }
    Ok(())
}

#[test]
fn mxfp4_is_dequantised() {
    let folder = tiny("gpt-oss-mxfp4");
    let weights = Model::open(&folder).unwrap();
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let reference = Reference::open(&folder.join("reference.safetensors"));
    assert!(!weights.contains(name) && weights.has(name));
    assert_eq!(weights.tensor(name).unwrap(), reference.0.tensor("values.gate_up_proj").unwrap());
}

#[test]
fn fine_tuning_takes_linears_in_the_papers_order() {
    let order = |folder: &str, tower: &str| -> Vec<String> {
        let (model, _) = Forward::open(&tiny(folder)).unwrap();
        let block = &model.tower(tower).unwrap().blocks[0];
        let short = |linear: &Linear| linear.tensor.trim_start_matches(&block.name).to_owned();
        block.tuning_order().into_iter().map(short).collect()
    };
    let parts =
        ["self_attn.v", "self_attn.q", "self_attn.k", "self_attn.o", "mlp.up", "mlp.gate", "mlp.down"];
    assert_eq!(order("llama-scaled", "decoder"), parts.map(|part| format!(".{part}_proj.weight")));
    let mixture = order("qwen3-moe-unnormalised", "decoder");
    assert_eq!(mixture[4], ".mlp.gate.weight");
    assert_eq!(mixture[5], ".mlp.experts.0.up_proj.weight");
    assert_eq!(mixture.last().unwrap(), ".mlp.experts.5.down_proj.weight");
}

#[test]
fn experts_are_handed_the_tokens_that_are_sent_to_them() {
    let (model, weights) = Forward::open(&tiny("qwen3-moe-unnormalised")).unwrap();
    let reference = Reference::open(&tiny("qwen3-moe-unnormalised").join("reference.safetensors"));
    let tokens = reference.tokens();
    let mut rows: BTreeMap<String, (Option<usize>, usize)> = BTreeMap::new();
    let mut tap = |linears: &[&Linear], inputs: &Tensor<B, 2>| {
        for linear in linears {
            rows.insert(linear.tensor.clone(), (linear.expert, inputs.dims()[0]));
        }
    };
    let device = device();
    let loaded = model.tower("decoder").unwrap().load::<B>(&weights, &device).unwrap();
    loaded.hidden(&tokens.clone().into(), &device, &mut tap).unwrap();
    let routed = |suffix: &str| -> usize {
        let chosen = rows.iter().filter(|(name, _)| name.contains("layers.1") && name.ends_with(suffix));
        chosen.map(|(_, (expert, rows))| expert.map_or(0, |_| *rows)).sum()
    };
    let all = tokens.ids().len();
    assert_eq!(rows["model.layers.1.mlp.gate.weight"], (None, all));
    assert_eq!((routed("up_proj.weight"), routed("down_proj.weight")), (3 * all, 3 * all));
}

#[test]
fn stacked_and_fused_matrices_say_where_they_lie() {
    let (model, _) = Forward::open(&tiny("gpt-oss")).unwrap();
    let groups = model.tower("decoder").unwrap().blocks[1].groups();
    let linear = groups.concat().into_iter().find(|linear| linear.expert == Some(2)).unwrap();
    assert_eq!((linear.role, &linear.part), (Role::GateUp, &Part::Stacked(2)));
    assert_eq!((linear.outputs(), linear.inputs()), (64, 32));
    let (model, _) = Forward::open(&tiny("siglip")).unwrap();
    let groups = model.tower("vision").unwrap().head.groups();
    assert_eq!(
        groups[1].iter().map(|linear| &linear.part).collect::<Vec<_>>(),
        [&Part::Rows(32..64), &Part::Rows(64..96)]
    );
}

/// Gradients are what the loss does when a weight is changed along them, for weights in every kind of place.
#[test]
fn blocks_can_be_fine_tuned() {
    type A = Autodiff<Flex>;
    for (folder, name) in [
        ("llama-scaled", "model.layers.0.self_attn.k_proj.weight"),
        ("qwen3", "model.layers.0.self_attn.q_proj.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w2.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj"),
        ("gpt-oss", "model.layers.0.self_attn.v_proj.weight"),
    ] {
        let (model, weights) = Forward::open(&tiny(folder)).unwrap();
        let block = &model.tower("decoder").unwrap().blocks[0];
        let reference = Reference::open(&tiny(folder).join("reference.safetensors"));
        let state = |name: &str| {
            let tensor = reference.0.tensor(name).unwrap();
            Tensor::<A, 3>::from_data(TensorData::new(tensor.values, tensor.shape), &device())
        };
        let (input, wanted) = (state("hidden.0"), state("hidden.1"));
        let host: Parameters<B> = block.load(&weights, &device()).unwrap();
        let mut tracked = Parameters::<A>::tracked_where(&host, |other| other == name);
        let loss_at = |tracked: &mut Parameters<A>, weight: Tensor<B, 2>| {
            tracked.set(name, Tensor::from_inner(weight).require_grad());
            let output = block.forward(tracked, input.clone(), None, &mut NoTaps);
            (output - wanted.clone()).square().mean()
        };
        // Somewhat off what gives the wanted output.
        let weight = host.get(name);
        let weight = weight.clone() * 0.9 + weight.flip([1]) * 0.1;
        let loss = loss_at(&mut tracked, weight.clone());
        let gradient = tracked.get(name).grad(&loss.backward()).unwrap();
        let slope = gradient.clone().square().sum().into_scalar();
        // As far as changes the loss by a hundredth, were the slope the same all along.
        let expected = loss.into_scalar() / 100.0;
        let step = gradient * (expected / slope);
        let mut loss_at = |weight| loss_at(&mut tracked, weight).into_scalar();
        let change = (loss_at(weight.clone() + step.clone()) - loss_at(weight - step)) / 2.0;
        assert!((change / expected - 1.0).abs() < 0.02, "{folder} {name}: {change}, not {expected}");
    }
}

#[test]
fn replaced_weights_are_used() -> TestResult {
    let (model, weights) = Forward::open(&tiny("mixtral"))?;
    let tokens = Reference::open(&tiny("mixtral").join("reference.safetensors")).tokens();
    let logits = |weights: &dyn Weights| -> nwc_encode_host::Result<Vec<f32>> {
        Ok(values(&model.load::<B>(weights, &device())?.logits(tokens.clone())?))
    };
    let name = "model.layers.1.self_attn.o_proj.weight";
    let mut tensor = weights.tensor(name)?;
    let mut overlay = Overlay::new(&weights, HashMap::from([(name.to_owned(), tensor.clone())]));
    assert_eq!(logits(&overlay)?, logits(&weights)?);
    tensor.values.fill(0.0);
    overlay.replace(name, tensor.clone());
    assert!(relative_error(&logits(&overlay)?, &logits(&weights)?) > 0.01);
    tensor.shape.reverse();
    tensor.shape[0] /= 2;
    overlay.replace(name, tensor);
    let error = logits(&overlay).unwrap_err().to_string();
    assert!(
        error.contains(name) && error.contains("has the dimensions [32, 32]") && error.contains("[32, 64]"),
        "{error}"
    );
    Ok(())
}

/// A container's model runs from the container; what it does not code, such as MXFP4, comes out byte for byte.
#[test]
fn containers_are_run() -> TestResult {
    let folder = tiny("gpt-oss-mxfp4");
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.nwc");
    compress(&folder, &path, &["--bits", "9"])?;
    let file = ContainerFile::open(&path)?;
    let original = Model::open(&folder)?;

    let mut memory = TableMemory::default();
    let container = file.container()?;
    let decoder = Decoder::new(&container, &mut memory)?;
    let mut packed = 0;
    for (index, tensor) in
        original.tensors().iter().enumerate().filter(|(_, tensor)| tensor.dtype == DType::U8)
    {
        let stored = container.find(&tensor.name).unwrap();
        assert_eq!(stored.coding(), Coding::Raw);
        assert_eq!(decoder.decode(&stored, Checks::All)?, original.bytes(index));
        packed += 1;
    }
    assert_eq!(packed, 8);

    let mut memory = TableMemory::default();
    let weights = ContainerWeights::new(file.container()?, &mut memory, &path)?;
    let model = Forward::read(&weights.attachment("config.json")?, &weights)?;
    let tokens = Reference::open(&folder.join("reference.safetensors")).tokens();
    let logits = |weights: &dyn Weights| -> nwc_encode_host::Result<Vec<f32>> {
        Ok(values(&model.load::<B>(weights, &device())?.logits(tokens.clone())?))
    };
    let error = relative_error(&logits(&weights)?, &logits(&original)?);
    assert!(error > 0.0 && error < 0.1, "{error}");
    let error = weights.attachment("merges.txt").unwrap_err().to_string();
    assert!(error.contains("has no merges.txt"), "{error}");
    Ok(())
}

#[test]
fn prompts_and_pixels_are_prepared_as_the_model_was_trained() -> TestResult {
    let folder = clip_mini();
    let tokenizer = Tokenizer::open(&folder)?;
    let tokens = tokenizer.texts(&["a photo of a cat", "the Frog"])?;
    assert_eq!((tokens.texts(), tokens.length()), (2, 16));
    assert_eq!(tokens.ids()[0], 2);
    assert_eq!(tokens.ids()[15], 0);
    assert_eq!(tokens.ids().iter().filter(|&&id| id == 84).count(), 2);
    assert_eq!(tokenizer.text("a photo of a cat")?, tokens.ids()[1..6]);

    let preprocessor = Preprocessor::open(&folder)?;
    let pixels: Tensor<B, 4> =
        preprocessor.pixel_values(&[255, 0, 51].repeat(32 * 32), [1, 32, 32], &device());
    let found = values(&pixels);
    let value = |byte: f64, mean: f64, deviation: f64| ((byte / 255.0 - mean) / deviation) as f32;
    assert!((found[0] - value(255.0, 0.4914, 0.247)).abs() < 1e-6);
    assert!((found[1024] - value(0.0, 0.4822, 0.2435)).abs() < 1e-6);
    assert!((found[2048] - value(51.0, 0.4465, 0.2616)).abs() < 1e-6);
    Ok(())
}

#[test]
fn what_cannot_be_run_is_said() -> TestResult {
    let (model, weights) = Forward::open(&tiny("llama-scaled"))?;
    let error = |result: nwc_encode_host::Result<Forward>| result.unwrap_err().to_string();
    let read = |text: &str| error(Forward::read(text.as_bytes(), &weights));
    assert!(
        read(r#"{"model_type": "mamba"}"#)
            .contains("\"mamba\" cannot be run; give one of the types bert, clip")
    );
    assert!(read("{").contains("cannot be used as a configuration"));
    assert!(read(r#"{"model_type": "llama"}"#).contains("missing field `hidden_size`"));
    let config = std::fs::read_to_string(tiny("llama-scaled").join("config.json"))?;
    assert!(
        read(&config.replace("\"llama3\"", "\"longrope\"")).contains("type \"longrope\" is not supported")
    );
    assert!(read(&config.replace("\"head_dim\": 16", "\"head_dim\": 15")).contains("15 dimensions"));

    assert!(read(&config.replace("\"hidden_size\": 32", "\"hidden_size\": 0")).contains("hidden_size is 0"));
    let endless = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2000000000");
    assert!(read(&endless).contains("num_hidden_layers is 2000000000, which is not between 0 and 1024"));

    // One block too many.
    let longer = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let longer = Forward::read(longer.as_bytes(), &weights)?;
    let error = longer.load::<B>(&weights, &device()).err().unwrap().to_string();
    assert!(
        error.contains("llama-scaled: tensor \"model.layers.2.") && error.contains("is missing"),
        "{error}"
    );

    let whole = model.load::<B>(&weights, &device())?;
    let error = whole.logits(Tokens::new(vec![64], 1)?).unwrap_err().to_string();
    assert!(error.contains("token 64 is none of the model's 64"), "{error}");
    let error = whole.text_embeds(Tokens::new(vec![1], 1)?).unwrap_err().to_string();
    assert!(error.contains("have no text part; use one of: decoder"), "{error}");
    assert!(Tokens::new(vec![1, 2, 3], 2).is_err());
    Ok(())
}

/// Published files leave out of `text_config` and `vision_config` what is as it is by default.
#[test]
fn what_configurations_leave_out_is_known() -> TestResult {
    let (_, weights) = Forward::open(&tiny("siglip"))?;
    let sizes = |config: &str| -> nwc_encode_host::Result<Vec<(usize, usize, usize)>> {
        let towers = Forward::read(config.as_bytes(), &weights)?.towers;
        let sizes = towers.iter().map(|tower| {
            let specs = tower.embedding.tensors();
            let positions = specs.iter().find(|spec| spec.name.contains("position")).unwrap();
            (tower.blocks.len(), positions.shape[0], positions.shape[1])
        });
        Ok(sizes.collect())
    };
    let base = r#"{"model_type": "siglip", "text_config": {"vocab_size": 7, "no_repeat_ngram_size": 0}, "vision_config": {}}"#;
    assert_eq!(sizes(base)?, [(12, 64, 768), (12, 196, 768)]);
    let large = r#"{"model_type": "siglip", "text_config": {"hidden_size": 1152, "num_attention_heads": 16},
        "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 14, "image_size": 384}}"#;
    assert_eq!(sizes(large)?, [(12, 64, 1152), (12, 729, 1152)]);
    assert_eq!(sizes(r#"{"model_type": "clip"}"#)?, [(12, 77, 512), (12, 50, 768)]);
    Ok(())
}

/// Weights are those that the program writes, those of the paper's codec too, which containers hold as latents.
#[test]
fn containers_give_the_weights_that_are_restored() -> TestResult {
    let folder = clip_mini();
    let dir = tempfile::tempdir()?;
    let (path, restored) = (dir.path().join("model.nwc"), dir.path().join("restored"));
    let codec = dir.path().join("codec.safetensors");
    std::fs::write(&codec, residual_codec(32, 2, 4))?;
    let codec = codec.display().to_string();
    for how in [&["--bits", "4"][..], &["--codec", &codec]] {
        compress(&folder, &path, how)?;
        run(&["decompress".as_ref(), path.as_ref(), "-o".as_ref(), restored.as_ref(), "--force".as_ref()])?;
        let restored = Model::open(&restored)?;
        let (file, mut memory) = (ContainerFile::open(&path)?, TableMemory::default());
        let weights = ContainerWeights::new(file.container()?, &mut memory, &path)?;
        for tensor in restored.tensors() {
            assert_eq!(
                weights.tensor(&tensor.name)?,
                restored.tensor(&tensor.name)?,
                "{} {how:?}",
                tensor.name
            );
        }
    }
    Ok(())
}

/// Compresses a folder as the program does.
fn compress(folder: &Path, to: &Path, how: &[&str]) -> TestResult {
    let how = how.iter().map(OsStr::new);
    run(&["compress".as_ref(), folder.as_ref(), "-o".as_ref(), to.as_ref(), "--force".as_ref()]
        .into_iter()
        .chain(how)
        .collect::<Vec<&OsStr>>())
}

/// Runs the program.
fn run(line: &[&OsStr]) -> TestResult {
    let output = Command::new(env!("CARGO_BIN_EXE_nwc-encode")).args(line).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

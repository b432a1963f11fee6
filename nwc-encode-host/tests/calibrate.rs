//! `calibrate` from outside, and against plain sums over what goes into linear maps.

mod common;

use common::refusal;

#[cfg(not(feature = "models"))]
#[test]
fn a_program_without_models_says_which_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let compress = format!("compress {} --bits 3 -o a.nwc --calib text", common::clip_mini().display());
    for line in ["calibrate model --data text -o h", "eval model --task perplexity", &compress] {
        let text = refusal(folder.path(), line);
        assert!(text.contains("--features models"), "{text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(feature = "models")]
mod with_models {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use burn::backend::Flex;
    use burn::tensor::{Device, Tensor};
    use nwc_encode_host::atomic::AtomicFile;
    use nwc_encode_host::calibrate::{Settings, Work, calibrate};
    use nwc_encode_host::evaluate::fidelity;
    use nwc_encode_host::forward::preprocess::Preprocessor;
    use nwc_encode_host::forward::tokenizer::Tokenizer;
    use nwc_encode_host::forward::{Embedding, Feed, Forward, Input, Linear, Part, Stage, Tokens, Weights};
    use nwc_encode_host::model::Model;
    use nwc_encode_host::parameters::{HostTensor, values};
    use nwc_encode_host::progress::{Progress, Silent};
    use nwc_encode_host::samples::{Data, Limits};
    use nwc_encode_host::subject::with_subject;
    use nwc_encode_host::{Error, ErrorKind, Result};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Normal};
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use serde_json::Value;
    use tempfile::TempDir;

    use super::common::{self, assets, clip_mini, images, refusal_after_warnings, run, tiny};
    use super::refusal;

    /// Tokens below 64, some of them much more often than others.
    fn ids(count: usize, seed: usize) -> Vec<u32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 64 * ((i * i + seed) % 7) / 6) as u32).collect()
    }

    fn write_ids(path: &Path, ids: &[u32], shape: &[usize]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::U32, shape.to_vec(), &bytes).unwrap();
        fs::write(path, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
    }

    /// Images with captions.
    fn write_images(path: &Path, count: usize, side: usize, captions: &[&str]) {
        let bytes: Vec<u8> = (0..count * side * side * 3).map(|i| (i * 7919 / 13 % 251) as u8).collect();
        let view = TensorView::new(Dtype::U8, vec![count, side, side, 3], &bytes).unwrap();
        let metadata = [("captions".to_owned(), serde_json::to_string(captions).unwrap())];
        let metadata = (!captions.is_empty()).then(|| metadata.into());
        fs::write(path, safetensors::serialize([("images", view)], metadata).unwrap()).unwrap();
    }

    /// A file that was written.
    struct Moments(Model);

    impl Moments {
        fn open(path: &Path) -> Self {
            Self(Model::open(path).unwrap())
        }

        fn json(&self, key: &str) -> Value {
            serde_json::from_str(&self.0.files()[0].metadata.as_ref().unwrap()[key]).unwrap()
        }

        /// The matrix of a tensor, or of one that it shares it with.
        fn of(&self, name: &str) -> Vec<f32> {
            let shared = self.json("nwc.shared");
            let first = shared.get(name).map_or(name, |first| first.as_str().unwrap());
            self.0.tensor(first).unwrap().values
        }

        fn names(&self) -> Vec<&str> {
            self.0.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
        }
    }

    fn calibrated(dir: &TempDir, model: &Path, data: &Path, options: &str) -> (Value, Moments) {
        let line =
            format!("calibrate {} --data {} -o h --force --json {options}", model.display(), data.display());
        let output = run(dir.path(), line.trim_end());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        (serde_json::from_slice(&output.stdout).unwrap(), Moments::open(&dir.path().join("h")))
    }

    /// Sums of x x^T in f64, by tensor and the place in it, with the number of rows.
    #[derive(Default)]
    struct Naive(BTreeMap<(String, usize), (Vec<f64>, usize)>);

    impl Naive {
        fn add(&mut self, linears: &[&Linear], inputs: &Tensor<Flex, 2>) {
            let [rows, width] = inputs.dims();
            let x = values(inputs);
            let mut sums = vec![0.0; width * width];
            for row in x.chunks(width) {
                for (i, &a) in row.iter().enumerate() {
                    for (sum, &b) in sums[i * width..][..width].iter_mut().zip(row) {
                        *sum += f64::from(a) * f64::from(b);
                    }
                }
            }
            for linear in linears {
                let at = match &linear.part {
                    Part::Whole => 0,
                    Part::Rows(rows) => rows.start,
                    Part::Stacked(index) => *index,
                };
                let (all, count) = self.0.entry((linear.tensor.clone(), at)).or_default();
                all.resize(width * width, 0.0);
                all.iter_mut().zip(&sums).for_each(|(all, sum)| *all += sum);
                *count += rows;
            }
        }

        fn mean(&self, name: &str, at: usize) -> Vec<f64> {
            let (sums, rows) = &self.0[&(name.to_owned(), at)];
            sums.iter().map(|sum| sum / *rows as f64).collect()
        }

        fn rows(&self, name: &str, at: usize) -> usize {
            self.0.get(&(name.to_owned(), at)).map_or(0, |(_, rows)| *rows)
        }

        /// Of several together.
        fn pooled(&self, names: &[(String, usize)]) -> Vec<f64> {
            let found: Vec<_> = names.iter().filter_map(|key| self.0.get(key)).collect();
            let rows: usize = found.iter().map(|(_, rows)| rows).sum();
            (0..found[0].0.len())
                .map(|i| found.iter().map(|(sums, _)| sums[i]).sum::<f64>() / rows as f64)
                .collect()
        }

        /// Runs a whole tower on inputs.
        fn run(&mut self, model: &Forward, weights: &dyn Weights, tower: &str, inputs: Vec<Input<Flex>>) {
            let device = Device::<Flex>::default();
            let loaded = model.tower(tower).unwrap().load::<Flex>(weights, &device).unwrap();
            let mut tap = |linears: &[&Linear], x: &Tensor<Flex, 2>| self.add(linears, x);
            for input in inputs {
                loaded.run(&input, &device, &mut tap).unwrap();
            }
        }
    }

    /// Norm of the difference over the norm.
    fn relative_error(got: &[f32], want: &[f64]) -> f64 {
        assert_eq!(got.len(), want.len());
        let difference: f64 = got.iter().zip(want).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
        (difference / want.iter().map(|b| b * b).sum::<f64>()).sqrt()
    }

    fn assert_close(name: &str, got: &[f32], want: &[f64]) {
        let error = relative_error(got, want);
        assert!(error < 2e-6, "{name} is off by {error:.1e}");
    }

    /// Symmetric, and nowhere negative.
    fn assert_moments(name: &str, h: &[f32]) {
        let n = h.len().isqrt();
        for i in 0..n {
            assert!(h[i * n + i] >= 0.0, "{name}");
            (0..i).for_each(|j| assert_eq!(h[i * n + j].to_bits(), h[j * n + i].to_bits(), "{name}"));
        }
        let trace: f64 = (0..n).map(|i| f64::from(h[i * n + i])).sum();
        for seed in 1..8 {
            let v: Vec<f64> = (0..n).map(|i| ((i * seed * 7 + seed) % 11) as f64 - 5.0).collect();
            let row = |i: usize| (0..n).map(|j| f64::from(h[i * n + j]) * v[j]).sum::<f64>();
            let quadratic: f64 = (0..n).map(|i| v[i] * row(i)).sum();
            assert!(quadratic >= -1e-5 * trace, "{name}: {quadratic}");
        }
    }

    /// Compares all tensors that are no experts' with plain sums.
    fn assert_naive(moments: &Moments, naive: &Naive, but: &[&str]) {
        for (name, _) in naive.0.keys().filter(|(name, _)| !but.iter().any(|part| name.contains(part))) {
            let h = moments.of(name);
            assert_close(name, &h, &naive.mean(name, 0));
            assert_moments(name, &h);
        }
    }

    fn windows(ids: &[u32], length: usize) -> Vec<Input<Flex>> {
        ids.chunks(length).map(|ids| Tokens::new(ids.to_vec(), ids.len()).unwrap().into()).collect()
    }

    #[test]
    fn moments_of_language_models_are_plain_sums() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("ids.safetensors");
        // The last window is shorter.
        let ids = ids(300, 1);
        write_ids(&data, &ids, &[300]);
        for name in ["llama-scaled", "qwen3", "bert"] {
            let (model, weights) = Forward::open(&tiny(name)).unwrap();
            let (json, moments) = calibrated(&dir, &tiny(name), &data, "--length 16");
            let mut naive = Naive::default();
            let tower = model.towers[0].name;
            naive.run(&model, &weights, tower, windows(&ids, 16));
            assert_naive(&moments, &naive, &[]);
            assert_eq!((&json["samples"], &json["tokens"]), (&19.into(), &300.into()), "{name}");
            assert_eq!(json["layers"], naive.0.len(), "{name}");
            assert_eq!(json["matrices"], moments.names().len(), "{name}");
            assert_eq!(
                (&json["left_out"], &json["fallbacks"]),
                (&Value::Array(vec![]), &Value::Array(vec![]))
            );
            let block = &model.towers[0].blocks[0];
            let (query, key) = (&block.attention.query.tensor, &block.attention.key.tensor);
            assert_eq!(moments.json("nwc.shared")[key], **query);
            assert_eq!(moments.json("nwc.tokens")[query], 300);
            assert_eq!(moments.json("nwc.samples")[query], 19);
            // Nothing stays beside the file.
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn moments_of_images_and_captions_are_plain_sums() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("images.safetensors");
        let captions = ["a photo of a cat", "the frog", "a small photo of the truck in the scene"];
        write_images(&data, 5, 32, &captions);
        let folder = clip_mini();
        let (model, weights) = Forward::open(&folder).unwrap();
        let (json, moments) = calibrated(&dir, &folder, &data, "");
        let mut naive = Naive::default();
        // Nothing that follows the end of a text plays a part: each is run alone, without what follows.
        let texts = Tokenizer::open(&folder).unwrap().texts(&captions).unwrap();
        let mut count = 0;
        let texts = texts.ids().chunks(16).map(|text| {
            let length = text.iter().position(|&id| id == 84).unwrap() + 1;
            count += length;
            Tokens::new(text[..length].to_vec(), length).unwrap().into()
        });
        naive.run(&model, &weights, "text", texts.collect());
        let bytes = Model::open(&data).unwrap();
        let pixels = Preprocessor::open(&folder).unwrap().pixel_values::<Flex>(
            bytes.bytes(bytes.find("images").unwrap()),
            [5, 32, 32],
            &Device::<Flex>::default(),
        );
        naive.run(&model, &weights, "vision", vec![pixels.into()]);
        assert_naive(&moments, &naive, &[]);
        assert_eq!((&json["samples"], &json["tokens"]), (&8.into(), &(count + 5 * 65).into()));
        let patch = "vision_model.embeddings.patch_embedding.weight";
        assert_eq!(moments.0.tensor(patch).unwrap().shape, [48, 48]);
        assert_eq!(moments.0.tensor("visual_projection.weight").unwrap().shape, [96, 96]);
        assert_eq!(moments.json("nwc.tokens")["text_projection.weight"], 3);
    }

    #[test]
    fn without_captions_texts_are_left_out_and_parts_of_a_tensor_are_weighed_by_their_rows() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("images.safetensors");
        let folder = dir.path().join("siglip");
        fs::create_dir(&folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(tiny("siglip").join(file), folder.join(file)).unwrap();
        }
        fs::write(folder.join("preprocessor_config.json"), r#"{"do_resize": false}"#).unwrap();
        let (model, weights) = Forward::open(&folder).unwrap();
        let Input::Pixels(noise) = pixels_of(&model) else { unreachable!() };
        let [.., side] = noise.dims();
        write_images(&data, 3, side, &[]);
        let output = run(dir.path(), "calibrate siglip --data images.safetensors -o h --json");
        assert!(output.status.success(), "{output:?}");
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(
            words.contains("warning: the text part is left out: images.safetensors has nothing"),
            "{words}"
        );
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["left_out"], serde_json::json!(["text"]));
        let moments = Moments::open(&dir.path().join("h"));

        let bytes = Model::open(&data).unwrap();
        let preprocessor = Preprocessor::open(&folder).unwrap();
        let device = Device::<Flex>::default();
        let pixels = preprocessor.pixel_values::<Flex>(bytes.bytes(0), [3, side, side], &device);
        let mut naive = Naive::default();
        naive.run(&model, &weights, "vision", vec![pixels.into()]);
        assert_naive(&moments, &naive, &["in_proj"]);
        let name = "vision_model.head.attention.in_proj_weight";
        let [query, key] = [naive.mean(name, 0), naive.mean(name, 32)];
        let mixed: Vec<f64> = query.iter().zip(&key).map(|(q, k)| (q + 2.0 * k) / 3.0).collect();
        assert_close(name, &moments.of(name), &mixed);
    }

    /// One image of zeros of a model's size.
    fn pixels_of(model: &Forward) -> Input<Flex> {
        let tower = model.tower("vision").unwrap();
        let Embedding::Patches(patches) = &tower.embedding else { unreachable!() };
        let side = patches.image_size;
        Tensor::<Flex, 4>::zeros([1, 3, side, side], &Device::<Flex>::default()).into()
    }

    #[test]
    fn experts_have_their_own_tokens_or_those_of_their_mixture() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("ids.safetensors");
        let ids = ids(72, 3);
        write_ids(&data, &ids, &[3, 24]);
        for name in ["mixtral", "qwen3-moe-unnormalised"] {
            let (model, weights) = Forward::open(&tiny(name)).unwrap();
            let (json, moments) = calibrated(&dir, &tiny(name), &data, "");
            let mut naive = Naive::default();
            naive.run(&model, &weights, "decoder", windows(&ids, 24));
            assert_naive(&moments, &naive, &["experts"]);
            let (mut own, mut starved) = (0, Vec::new());
            for block in &model.towers[0].blocks {
                let Feed::Sparse(experts) = &block.feed else { continue };
                let mut groups = block.groups();
                groups.retain(|group| group[0].expert.is_some());
                let downs: Vec<(String, usize)> =
                    groups.iter().skip(1).step_by(2).map(|group| (group[0].tensor.clone(), 0)).collect();
                for (index, linear) in groups
                    .iter()
                    .enumerate()
                    .flat_map(|(i, group)| group.iter().map(move |linear| (i, linear)))
                {
                    let tensor = &linear.tensor;
                    let h = moments.of(tensor);
                    if naive.rows(tensor, 0) >= linear.inputs() {
                        assert_close(tensor, &h, &naive.mean(tensor, 0));
                        own += 1;
                        continue;
                    }
                    let mixture = if index % 2 == 0 {
                        naive.mean(&experts.router.tensor, 0)
                    } else {
                        naive.pooled(&downs)
                    };
                    assert_close(tensor, &h, &mixture);
                    if groups[index][0].tensor == *tensor {
                        starved.push(serde_json::json!({
                            "tensor": tensor, "inputs": linear.inputs(), "tokens": naive.rows(tensor, 0),
                        }));
                    }
                }
            }
            assert!(own > 0 && !starved.is_empty(), "{name}: {own} {starved:?}");
            assert_eq!(json["fallbacks"], Value::Array(starved), "{name}");
        }
    }

    #[test]
    fn stacked_experts_have_a_matrix_each() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("ids.safetensors");
        let ids = ids(90, 5);
        write_ids(&data, &ids, &[90]);
        for name in ["gpt-oss", "gpt-oss-mxfp4"] {
            let (model, weights) = Forward::open(&tiny(name)).unwrap();
            let (_, moments) = calibrated(&dir, &tiny(name), &data, "--length 30");
            let mut naive = Naive::default();
            naive.run(&model, &weights, "decoder", windows(&ids, 30));
            let (mut own, mut mixed) = (0, 0);
            for layer in 0..2 {
                for part in ["gate_up_proj", "down_proj"] {
                    let tensor = format!("model.layers.{layer}.mlp.experts.{part}");
                    let h = moments.0.tensor(&tensor).unwrap();
                    let [experts, inputs, _] = h.shape[..] else { panic!("{:?}", h.shape) };
                    let all: Vec<(String, usize)> = (0..experts).map(|e| (tensor.clone(), e)).collect();
                    let tokens = &moments.json("nwc.tokens")[&tensor];
                    for expert in 0..experts {
                        let h = &h.values[expert * inputs * inputs..][..inputs * inputs];
                        let rows = naive.rows(&tensor, expert);
                        if rows >= inputs {
                            assert_close(&tensor, h, &naive.mean(&tensor, expert));
                            assert_eq!(tokens[expert], rows);
                            own += 1;
                        } else if part == "down_proj" {
                            assert_close(&tensor, h, &naive.pooled(&all));
                            mixed += 1;
                        } else {
                            let router = format!("model.layers.{layer}.mlp.router.weight");
                            assert_close(&tensor, h, &naive.mean(&router, 0));
                            assert_eq!(tokens[expert], 90);
                            mixed += 1;
                        }
                    }
                }
            }
            assert!(own > 0 && mixed > 0, "{name}: {own} {mixed}");
        }
    }

    #[test]
    fn merged_halves_are_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // Halves of different sizes; some experts have enough tokens in the whole alone.
        let (one, two) = (ids(5 * 12, 3), ids(3 * 12, 9));
        write_ids(&path("one.safetensors"), &one, &[5, 12]);
        write_ids(&path("two.safetensors"), &two, &[3, 12]);
        write_ids(&path("all.safetensors"), &[one, two].concat(), &[8, 12]);
        for (name, options) in
            [("mixtral", ""), ("qwen3-moe-unnormalised", ""), ("gpt-oss", ""), ("gpt-oss", " --diagonal")]
        {
            let folder = tiny(name).display().to_string();
            let mut fallbacks = Vec::new();
            for part in ["one", "two", "all"] {
                let line = format!(
                    "calibrate {folder} --data {part}.safetensors -o {part}.h --force --json{options}"
                );
                let output = run(dir.path(), &line);
                assert!(output.status.success(), "{output:?}");
                let json: Value = serde_json::from_slice(&output.stdout).unwrap();
                fallbacks.push(json["fallbacks"].as_array().unwrap().len());
            }
            assert!(fallbacks[2] < fallbacks[0], "{name}: {fallbacks:?}");
            let output = run(dir.path(), "calibrate --merge one.h two.h -o merged.h --force --json");
            assert!(output.status.success(), "{output:?}");
            let (merged, all) = (Moments::open(&path("merged.h")), Moments::open(&path("all.h")));
            assert_eq!(merged.names(), all.names());
            assert_eq!(merged.0.files()[0].metadata, all.0.files()[0].metadata);
            for tensor in all.names() {
                let want: Vec<f64> =
                    all.0.tensor(tensor).unwrap().values.into_iter().map(f64::from).collect();
                let error = relative_error(&merged.0.tensor(tensor).unwrap().values, &want);
                assert!(error < 1e-6, "{name} {tensor}: {error:.1e}");
            }
        }
        // Of the importance of outputs the mean over samples.
        for part in ["one", "two"] {
            let folder = tiny("llama-scaled").display().to_string();
            let line =
                format!("calibrate {folder} --data {part}.safetensors -o {part}.g --outputs --diagonal");
            assert!(run(dir.path(), &line).status.success());
        }
        let output = run(dir.path(), "calibrate --merge one.g two.g -o merged.g --json");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [one, two, merged] = ["one.g", "two.g", "merged.g"].map(|name| Moments::open(&path(name)));
        assert_eq!(merged.names(), one.names());
        let sums: Vec<&str> = merged.names().into_iter().filter(|name| name.contains('/')).collect();
        assert_eq!(sums.len() as u64, json["outputs"].as_u64().unwrap() + 2);
        for name in sums {
            let [a, b, both] = [&one, &two, &merged].map(|file| file.0.tensor(name).unwrap().values);
            let mean = a.iter().zip(b).map(|(&a, b)| (5.0 * f64::from(a) + 3.0 * f64::from(b)) / 8.0);
            assert_close(name, &both, &mean.collect::<Vec<f64>>());
        }

        let other = format!("calibrate {} --data one.safetensors -o other.h", tiny("qwen3").display());
        assert!(run(dir.path(), &other).status.success());
        let matrices = format!("calibrate {} --data one.safetensors -o full.h", tiny("gpt-oss").display());
        assert!(run(dir.path(), &matrices).status.success());
        for (line, words) in [
            ("one.h other.h -o x", ["other.h: ", "is of another model than one.h"]),
            ("one.h full.h -o x", ["full.h: ", "--diagonal"]),
            ("one.h one.safetensors -o x", ["one.safetensors: ", "nwc-encode calibrate"]),
            ("one.h none.h -o x", ["none.h: ", "cannot open"]),
        ] {
            let text = refusal(dir.path(), &format!("calibrate --merge {line}"));
            assert!(words.iter().all(|word| text.contains(word)), "{line}: {text}");
        }
        assert!(!path("x").exists());
    }

    /// A copy of a model with normal noise on one of its tensors.
    fn with_noise(from: &Path, to: &Path, tensor: &str, deviation: f64, seed: u64) {
        fs::create_dir_all(to).unwrap();
        fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
        let model = Model::open(from).unwrap();
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = model
            .tensors()
            .iter()
            .map(|info| {
                let HostTensor { shape, mut values } = model.tensor(&info.name).unwrap();
                if info.name == tensor {
                    let noise = Normal::new(0.0, deviation).unwrap();
                    let noise = noise.sample_iter(ChaCha8Rng::seed_from_u64(seed));
                    values.iter_mut().zip(noise).for_each(|(w, noise)| *w += noise as f32);
                }
                (info.name.clone(), shape, values.iter().flat_map(|w| w.to_le_bytes()).collect())
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    #[test]
    fn importance_foretells_how_far_predictions_move() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids.safetensors");
        let (windows, length) = (64, 12);
        write_ids(&path, &ids(windows * length, 4), &[windows, length]);
        let data = Data::open(&path).unwrap();
        // No experts: which of them a token is sent to changes at once, which no gradient foretells.
        for name in ["llama-scaled", "qwen3"] {
            let (json, file) = calibrated(&dir, &tiny(name), &path, "--outputs");
            let shared = file.json("nwc.shared");
            let sum = |values: Vec<f32>| values.into_iter().map(f64::from).sum::<f64>();
            let value = |name: String| file.0.tensor(&name).ok().map(|tensor| sum(tensor.values));
            let mut foretold: BTreeMap<&str, f64> = BTreeMap::new();
            for tensor in file.names() {
                let Some((tensor, kind)) = tensor.split_once('/') else { continue };
                let each = match kind {
                    "outputs" => {
                        let first = shared.get(tensor).map_or(tensor, |first| first.as_str().unwrap());
                        let h = file.0.tensor(first).unwrap();
                        let inputs = h.shape[0];
                        let trace: f64 = h.values.iter().step_by(inputs + 1).map(|&h| f64::from(h)).sum();
                        trace * value(format!("{tensor}/outputs")).unwrap()
                    }
                    "rows" => value(format!("{tensor}/rows")).unwrap(),
                    _ => {
                        // Squares, summed over rows first or over columns first.
                        let [rows, columns] =
                            ["rows", "columns"].map(|kind| value(format!("{tensor}/{kind}")));
                        let ratio = rows.unwrap() / columns.unwrap();
                        assert!((ratio - 1.0).abs() < 1e-4, "{name} {tensor}: {ratio}");
                        continue;
                    }
                };
                *foretold.entry(tensor).or_default() += each;
            }
            let of_outputs = file.names().iter().filter(|tensor| tensor.ends_with("/outputs")).count();
            assert_eq!(json["outputs"], of_outputs, "{name}");
            for (tensor, squares) in foretold {
                // A thousandth of a nat a sample, if all is right.
                let deviation = (2.0 * 1e-3 / squares).sqrt();
                let draws = 6;
                let mut moved = 0.0;
                for seed in 0..draws {
                    let noisy = dir.path().join("noisy");
                    with_noise(&tiny(name), &noisy, tensor, deviation, seed);
                    let found = with_subject(&noisy, |noisy| {
                        with_subject(&tiny(name), |original| {
                            fidelity(noisy, original, Some(&data), Limits::default(), &Silent)
                        })
                    });
                    moved += found.unwrap().divergence().unwrap() * length as f64 / draws as f64;
                }
                assert!(
                    (0.7e-3..1.5e-3).contains(&moved),
                    "{name} {tensor}: {moved:.2e} for {deviation:.1e}"
                );
            }
        }
    }

    #[test]
    fn diagonals_are_those_of_the_matrices() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("ids.safetensors");
        write_ids(&data, &ids(300, 2), &[300]);
        for name in ["llama-scaled", "mixtral", "gpt-oss"] {
            let (_, full) = calibrated(&dir, &tiny(name), &data, "--length 30");
            let (_, diagonals) = calibrated(&dir, &tiny(name), &data, "--length 30 --diagonal");
            assert_eq!(full.names(), diagonals.names());
            for tensor in full.names() {
                let (h, diagonal) = (full.0.tensor(tensor).unwrap(), diagonals.0.tensor(tensor).unwrap());
                let n = *h.shape.last().unwrap();
                assert_eq!(diagonal.shape, h.shape[..h.shape.len() - 1]);
                let of_h: Vec<f64> =
                    h.values.chunks(n).enumerate().map(|(row, values)| values[row % n].into()).collect();
                assert_close(tensor, &diagonal.values, &of_h);
            }
        }
    }

    /// Stops at the check of this number.
    struct Stops(AtomicUsize);

    impl Progress for Stops {
        fn begin(&self, _: &'static str, _: u64) {}
        fn advance(&self, _: u64) {}
        fn warn(&self, _: &str) {}
        fn check(&self) -> Result<()> {
            match self.0.fetch_sub(1, Ordering::Relaxed) {
                0 => Err(Error::interrupted()),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn an_interrupted_calibration_goes_on_to_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("images.safetensors");
        write_images(&data, 70, 32, &["a photo of a cat", "the frog"]);
        let work = |resume| Work { folder: dir.path().join("work"), resume, force: false };
        let settings = Settings { outputs: true, ..Settings::default() };
        let run = |name: &str, resume: bool, progress: &dyn Progress| -> Result<Vec<u8>> {
            let path = dir.path().join(name);
            let output = AtomicFile::create(&path, true)?;
            with_subject(&clip_mini(), |subject| {
                calibrate(subject, &data, settings, &work(resume), output, progress)
            })?;
            assert!(!dir.path().join("work").exists());
            Ok(fs::read(path).unwrap())
        };
        let whole = run("whole", false, &Silent).unwrap();
        // Before anything is done there is nothing to go on from.
        let error = run("part", false, &Stops(0.into())).unwrap_err();
        assert!(error.kind == ErrorKind::Interrupted && !dir.path().join("work").exists(), "{error}");
        // On the way through the text part and back, and through the vision part and back.
        let mut resumed = false;
        for stop in [2, 3, 2, 4, 5, 9, 6, 3, 100] {
            match run("part", resumed, &Stops(stop.into())) {
                Ok(bytes) => assert!(stop == 100 && bytes == whole),
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Interrupted);
                    assert!(error.to_string().contains("add --resume"), "{error}");
                    assert!(stop < 100);
                }
            }
            resumed = true;
        }
        // What was begun is neither overwritten unasked nor continued with other options.
        run("part", false, &Stops(5.into())).unwrap_err();
        let line = format!("calibrate {} --data images.safetensors -o part --force", clip_mini().display());
        let text = refusal(dir.path(), &line.replace(" --force", " --work-dir work"));
        assert!(text.contains("part: exists"), "{text}");
        let text = refusal(dir.path(), &line.replace("part --force", "new --work-dir work"));
        assert!(text.contains("add --resume to go on, or --force"), "{text}");
        let text = refusal(dir.path(), &format!("{line} --work-dir work --resume --samples 4"));
        assert!(text.contains("was written with --samples none, now it is 4"), "{text}");
        let text = refusal(dir.path(), &format!("{line} --work-dir work --resume"));
        assert!(text.contains("was written with --outputs true, now it is false"), "{text}");
        let output = common::run(dir.path(), &format!("{line} --work-dir work --resume --outputs --jobs 1"));
        assert!(output.status.success() && fs::read(dir.path().join("part")).unwrap() == whole);
    }

    #[test]
    fn captions_and_images_come_from_folders() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("images");
        fs::create_dir(&folder).unwrap();
        let pixels: Vec<u8> = (0..40 * 32 * 3).map(|i| (i * 31 % 256) as u8).collect();
        let picture = image::RgbImage::from_raw(40, 32, pixels).unwrap();
        for name in ["b.png", "a.png", "c.jpg"] {
            picture.save(folder.join(name)).unwrap();
        }
        fs::write(folder.join("captions.txt"), "a photo of a cat\n\nthe frog\n").unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(clip_mini().join(file), model.join(file)).unwrap();
        }
        fs::write(
            model.join("preprocessor_config.json"),
            r#"{"size": {"shortest_edge": 32}, "do_center_crop": true, "crop_size": 32}"#,
        )
        .unwrap();
        let towers = |expected: [u64; 2]| {
            let (json, _) = calibrated(&dir, &model, &folder, "");
            let counts: Vec<u64> =
                json["towers"].as_array().unwrap().iter().map(|t| t["samples"].as_u64().unwrap()).collect();
            assert_eq!(counts, expected, "{json}");
        };
        towers([2, 3]);
        fs::write(
            folder.join("captions.json"),
            r#"{"a.png": ["a photo of a cat", "the cat"], "b.png": "x"}"#,
        )
        .unwrap();
        towers([3, 3]);
        fs::write(folder.join("captions.json"), "[1]").unwrap();
        let line = "calibrate model --data images -o x";
        let text = refusal(dir.path(), line);
        assert!(text.contains("captions.json: is no list of captions"), "{text}");
        fs::remove_file(folder.join("captions.json")).unwrap();
        fs::write(folder.join("d.png"), "no image").unwrap();
        // The text part is done by then.
        let stderr = String::from_utf8(common::run(dir.path(), line).stderr).unwrap();
        assert!(stderr.contains("error: images/d.png: ") && stderr.contains("PNG or JPEG"), "{stderr}");
        assert!(stderr.contains("warning: x.checkpoint: 4 of 10 steps are kept; add --resume"), "{stderr}");
        fs::remove_file(folder.join("d.png")).unwrap();
        let text = refusal(dir.path(), &format!("{line} --resume"));
        assert!(text.contains("x.checkpoint/state.safetensors: was written with --data "), "{text}");
        let output = common::run(dir.path(), &format!("{line} --force"));
        assert!(output.status.success() && !dir.path().join("x.checkpoint").exists(), "{output:?}");
    }

    #[test]
    fn what_cannot_be_calibrated_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        write_ids(&folder.join("ids.safetensors"), &ids(60, 1), &[5, 12]);
        write_ids(&folder.join("large.safetensors"), &[1, 64], &[2]);
        write_ids(&folder.join("cube.safetensors"), &[1; 8], &[2, 2, 2]);
        write_images(&folder.join("small.safetensors"), 2, 16, &[]);
        fs::write(folder.join("there"), "").unwrap();
        fs::write(folder.join("bytes"), [0xff, 0xfe]).unwrap();
        fs::write(folder.join("empty.txt"), "").unwrap();
        fs::create_dir(folder.join("images")).unwrap();
        let llama = tiny("llama-scaled").display().to_string();
        let clip = clip_mini().display().to_string();
        let weights = clip_mini().join("model.safetensors").display().to_string();
        for (line, words) in [
            (format!("{llama} --data ids.safetensors -o x --samples 0"), ["--samples 0", "at least one"]),
            (
                format!("{llama} --data ids.safetensors -o x --length 16"),
                ["ids.safetensors: ", "leave --length out"],
            ),
            (format!("{llama} --data ids.safetensors -o there"), ["there: exists", "--force"]),
            (format!("{llama} --data ids.safetensors -o none/x"), ["none/x: ", "create it first"]),
            (format!("{llama} --data ids.safetensors -o x --resume"), ["x.checkpoint", "no checkpoint"]),
            (format!("{llama} --data none -o x"), ["none: ", "check the path"]),
            (format!("{llama} --data bytes -o x"), ["bytes: is no text", "UTF-8"]),
            (format!("{llama} --data images -o x"), ["images: has no images", "PNG or JPEG"]),
            (format!("{llama} --data empty.txt -o x"), ["tokenizer.json: ", "cannot read"]),
            (
                format!("{llama} --data large.safetensors -o x --length 1"),
                ["large.safetensors: token 64 is none", "tokenizer.json"],
            ),
            (
                format!("{llama} --data large.safetensors -o x --length 300"),
                ["300 tokens do not fit", "1 to 256"],
            ),
            (
                format!("{llama} --data cube.safetensors -o x"),
                ["cube.safetensors: tensor \"ids\": ", "[n, length]"],
            ),
            (
                format!("{llama} --data small.safetensors -o x"),
                ["small.safetensors: has nothing for a model", "a text"],
            ),
            (
                format!("{clip} --data small.safetensors -o x"),
                ["small.safetensors: images are 3 x 16 x 16", "3 x 32 x 32"],
            ),
            (
                format!("{weights} --data ids.safetensors -o x"),
                ["model.safetensors: has weights alone", "config.json"],
            ),
            ("none --data ids.safetensors -o x".to_owned(), ["none: ", "check the path"]),
            ("ids.safetensors --data ids.safetensors -o x".to_owned(), ["ids.safetensors: ", "config.json"]),
        ] {
            let text = refusal_after_warnings(folder, &format!("calibrate {line}"));
            assert!(words.iter().all(|word| text.contains(word)), "{line}: {text}");
        }
        assert!(!folder.join("x").exists());
        for line in ["calibrate -o x", "calibrate m -o x", "calibrate m --data d --merge a -o x"] {
            assert_eq!(run(folder, line).status.code(), Some(2), "{line}");
        }
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|name| name.to_string_lossy().contains("checkpoint"));
        assert!(names.is_empty(), "{names:?}");
    }

    /// A container's moments are those of what it decodes to.
    #[test]
    fn containers_are_calibrated() {
        let dir = tempfile::tempdir().unwrap();
        let clip = clip_mini().display().to_string();
        for line in [format!("compress {clip} -o c.nwc --bits 4"), "decompress c.nwc -o restored".to_owned()]
        {
            assert!(run(dir.path(), &line).status.success(), "{line}");
        }
        let (_, of_container) = calibrated(&dir, &dir.path().join("c.nwc"), &images(), "--samples 8");
        let found: Vec<Vec<f32>> = of_container.names().iter().map(|name| of_container.of(name)).collect();
        let (_, of_folder) = calibrated(&dir, &dir.path().join("restored"), &images(), "--samples 8");
        assert_eq!(found, of_folder.names().iter().map(|name| of_folder.of(name)).collect::<Vec<_>>());
    }

    /// `--calib` is `calibrate` and `--hessians` in one; `--finetune` changes blocks, and what it makes up for is what the container loses.
    #[test]
    fn compression_calibrates_and_fine_tunes() {
        let dir = tempfile::tempdir().unwrap();
        let model = clip_mini().display().to_string();
        let compress = |options: &str| -> Value {
            let line = format!("compress {model} --bits 3 -o a.nwc --force --json {options}");
            let output = run(dir.path(), line.trim_end());
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let fidelity = || -> f64 {
            let line = format!(
                "eval a.nwc --task fidelity --reference {model} --data {} --json",
                images().display()
            );
            let output = run(dir.path(), &line);
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            report["relative_error"].as_f64().unwrap()
        };
        let data = images().display().to_string();
        calibrated(&dir, &clip_mini(), &images(), "--samples 64 --outputs");
        compress("--hessians h");
        let by_file = fs::read(dir.path().join("a.nwc")).unwrap();
        let report = compress(&format!("--calib {data} --samples 64"));
        assert!(fs::read(dir.path().join("a.nwc")).unwrap() == by_file);
        assert_eq!(report["finetune"], Value::Null);
        let coded = fidelity();

        let options = format!("--calib {data} --samples 64 --finetune --work-dir work");
        let report = compress(&options);
        assert!((2.99..=3.0).contains(&report["bits_per_weight"].as_f64().unwrap()));
        let blocks = report["finetune"].as_array().unwrap();
        // There are no captions: texts are left alone.
        assert_eq!(blocks.len(), 4);
        for block in blocks {
            assert!(block["kept"] == false || block["after"].as_f64() < block["before"].as_f64(), "{block}");
        }
        let tuned = fidelity();
        assert!(tuned < 0.95 * coded, "{tuned} fine-tuned, {coded} without");
        let once = fs::read(dir.path().join("a.nwc")).unwrap();

        // Finished blocks are taken as they are, unless they are of something else.
        let refused = |line: &str| {
            let output = run(dir.path(), line);
            assert_eq!(output.status.code(), Some(2), "{line}");
            String::from_utf8(output.stderr).unwrap()
        };
        let line = format!("compress {model} --bits 3 -o b.nwc --force {options}");
        assert!(refused(&line).contains("--resume"));
        compress(&format!("{options} --resume"));
        assert!(fs::read(dir.path().join("a.nwc")).unwrap() == once);
        let line = line.replace("--bits 3", "--bits 4") + " --resume";
        assert!(refused(&line).contains("codec"));

        // The data can be for fine-tuning alone, on some device.
        compress(&format!("--hessians h --calib {data} --samples 64 --finetune"));
        assert!(fs::read(dir.path().join("a.nwc")).unwrap() == once);
        let line = format!("compress {model} --bits 3 -o c.nwc --calib {data} --hessians h");
        assert!(refused(&line).contains("--finetune"));
        if !cfg!(feature = "burn-cuda") {
            assert!(refused(&format!("{line} --finetune --device cuda")).contains("burn-cuda"));
        }
        assert!(!dir.path().join("c.nwc").exists());

        // A tower has few outputs, and so needs more data.
        let line = format!("compress {model} --bits 2 -o a.nwc --force --json --calib {data}");
        let report = |line: &str| -> Value {
            serde_json::from_slice(&run(dir.path(), line).stdout).unwrap_or_else(|_| panic!("{line} failed"))
        };
        report(&line);
        let coded = fidelity();
        let report = report(&format!("{line} --finetune=tower"));
        assert!((1.99..=2.0).contains(&report["bits_per_weight"].as_f64().unwrap()));
        let towers = report["finetune"].as_array().unwrap();
        assert!(
            towers.len() == 1 && towers[0]["name"] == "vision" && towers[0]["kept"] == true,
            "{towers:?}"
        );
        let tuned = fidelity();
        assert!(tuned < 0.9 * coded, "{tuned} fine-tuned, {coded} without");
    }

    /// What calibration writes is what compression reads: shared matrices, experts, stacks of them either way, and those of an expert that had too few tokens.
    #[test]
    fn compression_takes_every_file() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("ids.safetensors");
        write_ids(&data, &ids(256, 3), &[16, 16]);
        let mut models = vec![(clip_mini(), images())];
        models.extend(
            ["llama-scaled", "mixtral", "qwen3-moe", "gpt-oss"].map(|name| (tiny(name), data.clone())),
        );
        for (model, data) in models {
            let (_, moments) = calibrated(&dir, &model, &data, "");
            let line = format!("compress {} --bits 6 --hessians h -o a.nwc --force --json", model.display());
            let output = run(dir.path(), &line);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !stderr.contains("of the importance"), "{line}: {stderr}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let shared = moments.json("nwc.shared");
            let mut compensated = 0;
            for tensor in report["tensors"].as_array().unwrap() {
                let name = tensor["name"].as_str().unwrap();
                let known = moments.names().contains(&name) || shared.get(name).is_some();
                let matrix = tensor["shape"].as_array().unwrap().len() == 2 && !name.contains("embed");
                if tensor["coding"] == "coded" && known && matrix {
                    let [lost, without] = ["lost", "lost_without"].map(|key| tensor["ldlq"][key].as_f64());
                    assert!(lost.unwrap() < 1.05 * without.unwrap(), "{name}: {lost:?}, {without:?}");
                    compensated += 1;
                }
            }
            assert!(compensated >= 4, "{}: {compensated}", model.display());
        }
    }

    #[test]
    fn trained_models_are_calibrated() {
        let Some(assets) = assets() else { return };
        let dir = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(assets.join("data/lm-calib.txt")).unwrap();
        let data = dir.path().join("text");
        fs::write(&data, &text[..text.floor_char_boundary(4000)]).unwrap();
        for name in ["llama-tiny", "qwen3-tiny", "mixtral-tiny"] {
            let folder = assets.join("models").join(name);
            let (model, weights) = Forward::open(&folder).unwrap();
            let (json, moments) = calibrated(&dir, &folder, &data, "--length 128");
            let ids = Tokenizer::open(&folder).unwrap().text(&fs::read_to_string(&data).unwrap()).unwrap();
            assert_eq!(json["tokens"], ids.len(), "{name}");
            let mut naive = Naive::default();
            naive.run(&model, &weights, "decoder", windows(&ids, 128));
            assert_naive(&moments, &naive, &["experts"]);
        }
        for name in ["clip-cifar", "siglip-cifar"] {
            let folder = assets.join("models").join(name);
            let data = assets.join("data/cifar10-calib.safetensors");
            let (json, moments) = calibrated(&dir, &folder, &data, "--samples 20");
            assert_eq!(json["samples"], 40);
            assert_eq!(json["left_out"], serde_json::json!([]));
            for name in moments.names() {
                assert_moments(name, &moments.of(name));
            }
        }
    }
}

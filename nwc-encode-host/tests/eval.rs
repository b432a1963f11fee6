//! `eval` from outside, against the protocols of the baselines.
#![cfg(feature = "models")]

mod common;

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use common::{assets, run};
use nwc_encode_host::forward::{Forward, Tokens};
use nwc_encode_host::model::Model;
use nwc_encode_host::parameters::values;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

fn tiny(name: &str) -> String {
    common::tiny(name).display().to_string()
}

fn clip_mini() -> String {
    common::clip_mini().display().to_string()
}

fn images() -> String {
    common::images().display().to_string()
}

fn succeed(folder: &Path, line: &str) {
    let output = run(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a successful call printed, but for the time that it took.
fn eval(folder: &Path, line: &str) -> Value {
    let output = run(folder, &format!("eval {line} --json"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let mut json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["seconds"].take().as_f64().unwrap() > 0.0);
    json
}

/// Tokens below 64.
fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 37 + i * i / 5) % 64) as u32).collect()
}

fn write_ids(path: &Path, ids: &[u32]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::U32, vec![ids.len()], &bytes).unwrap();
    fs::write(path, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
}

/// The negative logarithm of the likelihood, window by window, with the whole model in memory.
fn nll(folder: &Path, ids: &[u32], length: usize) -> f64 {
    let (model, weights) = Forward::open(folder).unwrap();
    let device = Device::<Flex>::default();
    let whole = model.load::<Flex>(&weights, &device).unwrap();
    let mut nll = 0.0;
    for first in (0..ids.len() - 1).step_by(length) {
        let end = (first + length).min(ids.len() - 1);
        let logits = whole.logits(Tokens::new(ids[first..end].to_vec(), end - first).unwrap()).unwrap();
        let targets = ids[first + 1..=end].iter().copied().map(i64::from).collect();
        let targets = TensorData::new::<i64, _>(targets, [1, end - first, 1]);
        let chosen = log_softmax(logits, 2).gather(2, Tensor::from_data(targets, &device));
        nll -= values(&chosen).into_iter().map(f64::from).sum::<f64>();
    }
    nll
}

#[test]
fn zero_shot_accuracy_is_that_of_the_protocol() {
    let dir = tempfile::tempdir().unwrap();
    let (clip, images) = (clip_mini(), images());
    let json = eval(dir.path(), &format!("{clip} --task zero-shot --data {images}"));
    assert_eq!((&json["task"], &json["metric"]), (&"zero-shot".into(), &"top1".into()));
    assert_eq!((&json["correct"], &json["n"], &json["value"]), (&164.into(), &200.into(), &0.82.into()));

    // Some of each class.
    let json = eval(dir.path(), &format!("{clip} --task zero-shot --data {images} --samples 20"));
    assert_eq!(json["n"], 20);
    assert!(json["correct"].as_u64().unwrap() >= 12, "{json}");

    // Other prompts, and those of classes in another order.
    let prompts: Value =
        serde_json::from_slice(&fs::read(Path::new(&clip).join("prompts.json")).unwrap()).unwrap();
    let one = serde_json::json!({ "classes": prompts["classes"], "templates": ["a photo of a {}"] });
    fs::write(dir.path().join("one.json"), one.to_string()).unwrap();
    let line = format!("{clip} --task zero-shot --data {images} --prompts one.json");
    let json = eval(dir.path(), &line);
    assert!(json["correct"].as_u64().unwrap().abs_diff(164) <= 6, "{json}");
    let mut classes = prompts["classes"].as_array().unwrap().clone();
    classes.reverse();
    let reversed = serde_json::json!({ "classes": classes, "templates": ["a photo of a {}"] });
    fs::write(dir.path().join("one.json"), reversed.to_string()).unwrap();
    let json = eval(dir.path(), &line);
    assert!(json["value"].as_f64().unwrap() < 0.2, "{json}");
}

#[test]
fn classes_come_from_folders() {
    let dir = tempfile::tempdir().unwrap();
    let file = Model::open(Path::new(&images())).unwrap();
    let bytes = |name: &str| file.bytes(file.find(name).unwrap());
    let all = bytes("images").chunks(32 * 32 * 3).zip(bytes("labels"));
    for (index, (pixels, label)) in all.enumerate() {
        let folder = dir.path().join(format!("data/{label}"));
        fs::create_dir_all(&folder).unwrap();
        let picture = image::RgbImage::from_raw(32, 32, pixels.to_vec()).unwrap();
        picture.save(folder.join(format!("{index:03}.png"))).unwrap();
    }
    let json = eval(dir.path(), &format!("{} --task zero-shot --data data", clip_mini()));
    assert_eq!((&json["correct"], &json["n"]), (&164.into(), &200.into()));
}

#[test]
fn perplexity_is_that_of_windows() {
    let dir = tempfile::tempdir().unwrap();
    let ids = ids(300);
    write_ids(&dir.path().join("ids.safetensors"), &ids);
    for name in ["llama-scaled", "mixtral", "gpt-oss"] {
        let folder = tiny(name);
        for (options, length, end) in
            [("", 256, 300), (" --length 16", 16, 300), (" --length 16 --samples 3", 16, 49)]
        {
            let json =
                eval(dir.path(), &format!("{folder} --task perplexity --data ids.safetensors{options}"));
            let expected = nll(Path::new(&folder), &ids[..end], length);
            let found = json["nll"].as_f64().unwrap();
            assert!((found / expected - 1.0).abs() < 1e-6, "{name}{options}: {found}, not {expected}");
            assert_eq!((&json["n"], &json["length"]), (&(end - 1).into(), &length.into()));
            let value = json["value"].as_f64().unwrap();
            assert!((value / (expected / (end - 1) as f64).exp() - 1.0).abs() < 1e-5, "{json}");
            assert_eq!((&json["per_word"], &json["metric"]), (&Value::Null, &"perplexity_per_token".into()));
        }
    }
}

/// A container gives exactly what the folder does that it is restored to.
#[test]
fn containers_are_as_good_as_what_they_decode_to() {
    let dir = tempfile::tempdir().unwrap();
    write_ids(&dir.path().join("ids.safetensors"), &ids(200));
    let images = images();
    for (name, folder, task) in [
        ("clip", clip_mini(), format!("--task zero-shot --data {images}")),
        ("mixtral", tiny("mixtral"), "--task perplexity --data ids.safetensors --length 64".to_owned()),
        ("gpt-oss-mxfp4", tiny("gpt-oss-mxfp4"), "--task perplexity --data ids.safetensors".to_owned()),
    ] {
        succeed(dir.path(), &format!("compress {folder} -o {name}.nwc --bits 4.5 --min-weights 4096"));
        succeed(dir.path(), &format!("decompress {name}.nwc -o {name}"));
        let container = eval(dir.path(), &format!("{name}.nwc {task}"));
        assert_eq!(container, eval(dir.path(), &format!("{name} {task}")));
        let near = eval(dir.path(), &format!("{name}.nwc --task fidelity --reference {folder}"));
        let same = eval(dir.path(), &format!("{name}.nwc --task fidelity --reference {name}"));
        assert_eq!((&same["relative_error"], &same["random"]), (&0.0.into(), &true.into()));
        let [near_cosine, same_cosine] = [near, same].map(|json| json["value"].as_f64().unwrap());
        assert!((same_cosine - 1.0).abs() < 1e-12, "{same_cosine}");
        assert!(near_cosine > 0.8 && near_cosine <= 1.0, "{name}: {near_cosine}");
    }
}

#[test]
fn fidelity_is_of_each_part_that_has_data() {
    let dir = tempfile::tempdir().unwrap();
    let clip = clip_mini();
    succeed(dir.path(), &format!("compress {clip} -o c.nwc --bits 3"));
    let line = format!("c.nwc --task fidelity --reference {clip}");
    let random = eval(dir.path(), &line);
    assert_eq!(random["towers"].as_array().unwrap().len(), 2);
    assert_eq!((&random["n"], &random["metric"]), (&32.into(), &"cosine".into()));
    assert_eq!(random, eval(dir.path(), &line));
    let images = eval(dir.path(), &format!("{line} --data {} --samples 50", images()));
    let towers = images["towers"].as_array().unwrap();
    assert_eq!((towers.len(), &towers[0]["tower"], &towers[0]["n"]), (1, &"vision".into(), &50.into()));
    // Of embeddings of length one, the square of a difference is twice what the cosine lacks of one.
    let [cosine, error] = ["cosine", "relative_error"].map(|key| towers[0][key].as_f64().unwrap());
    assert!(cosine < 1.0 && (2.0 * (1.0 - cosine) / (error * error) - 1.0).abs() < 1e-3, "{images}");
    assert_eq!((&images["value"], &images["random"]), (&towers[0]["cosine"], &false.into()));
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (clip, llama, images) = (clip_mini(), tiny("llama-scaled"), images());
    write_ids(&dir.path().join("ids.safetensors"), &ids(20));
    write_ids(&dir.path().join("one.safetensors"), &[1]);
    write_ids(&dir.path().join("large.safetensors"), &[1, 64]);
    fs::write(dir.path().join("bad.json"), r#"{"prompts": [[]]}"#).unwrap();
    fs::write(dir.path().join("few.json"), r#"{"prompts": [["a cat"]]}"#).unwrap();
    succeed(dir.path(), &format!("compress {clip}/model.safetensors -o weights.nwc --bits 4"));
    for (line, words) in [
        (format!("{clip} --task zero-shot"), ["--data is missing", "`images`"]),
        (format!("{llama} --task perplexity"), ["--data is missing", "text"]),
        (format!("{llama} --task fidelity"), ["--reference is missing", "compare"]),
        (
            format!("{llama} --task perplexity --data ids.safetensors --reference x"),
            ["--reference is for", "fidelity"],
        ),
        (
            format!("{llama} --task perplexity --data ids.safetensors --prompts x"),
            ["--prompts is for", "zero-shot"],
        ),
        (format!("{llama} --task perplexity --data ids.safetensors --length 0"), ["--length 0", "at least"]),
        (format!("{llama} --task perplexity --data one.safetensors"), ["one.safetensors: ", "longer"]),
        (
            format!("{llama} --task perplexity --data large.safetensors"),
            ["large.safetensors: token 64", "none of"],
        ),
        (
            format!("{llama} --task perplexity --data {images}"),
            ["test-200.safetensors: is no text", "tokens"],
        ),
        (format!("{clip} --task perplexity --data ids.safetensors"), ["clip-mini: ", "no decoder part"]),
        (format!("{llama} --task zero-shot --data {images} --prompts few.json"), ["llama-scaled: ", "CLIP"]),
        (format!("{llama} --task zero-shot --data {images}"), ["prompts.json: ", "--prompts"]),
        (
            format!("{clip} --task zero-shot --data {images} --prompts bad.json"),
            ["bad.json: ", "`templates`"],
        ),
        (format!("{clip} --task zero-shot --data {images} --prompts few.json"), ["has class 1", "--prompts"]),
        (format!("{clip} --task zero-shot --data ids.safetensors"), ["ids.safetensors: ", "`labels`"]),
        (format!("{clip} --task fidelity --reference {llama}"), ["llama-scaled: ", "no text part"]),
        (
            format!("{llama} --task fidelity --reference {llama} --data {images}"),
            ["has nothing for this model", "random"],
        ),
        (
            "weights.nwc --task perplexity --data ids.safetensors".to_owned(),
            ["weights.nwc: ", "has no config.json"],
        ),
        ("ids.safetensors --task fidelity".to_owned(), ["ids.safetensors: ", "config.json"]),
    ] {
        let output = run(dir.path(), &format!("eval {line}"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{line}: {stderr}");
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("warning: ")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with("error: "), "{line}: {stderr}");
        assert!(words.iter().all(|word| lines[0].contains(word)), "{line}: {stderr}");
    }
}

/// The first windows of the protocol; `forward` has the whole of it.
#[test]
fn trained_language_models_predict_as_they_should() {
    let Some(assets) = assets() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = assets.join("data/wikitext2-test-tokens.safetensors");
    let file = Model::open(&data).unwrap();
    let ids: Vec<u32> =
        file.bytes(0).as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes).into()).collect();
    for name in ["llama-tiny", "qwen3-tiny", "mixtral-tiny"] {
        let folder = assets.join("models").join(name);
        let line = |data: &Path| {
            format!("{} --task perplexity --data {} --samples 5", folder.display(), data.display())
        };
        let json = eval(dir.path(), &line(&data));
        let expected = nll(&folder, &ids[..=5 * 512], 512);
        let found = json["nll"].as_f64().unwrap();
        println!("{name}: {:.4}", json["value"].as_f64().unwrap());
        assert!((found / expected - 1.0).abs() < 1e-6, "{name}: {found}, not {expected}");
        assert_eq!(eval(dir.path(), &line(&assets.join("data/wikitext2-test.txt"))), json);
    }
}

#[test]
fn trained_image_models_classify_as_they_should() {
    let Some(assets) = assets() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = assets.join("data/cifar10-test.safetensors");
    for (name, percent) in [("clip-cifar", 84), ("siglip-cifar", 80)] {
        let folder = assets.join("models").join(name);
        let line = format!("{} --task zero-shot --data {} --samples 500", folder.display(), data.display());
        let json = eval(dir.path(), &line);
        println!("{name}: {}", json["value"]);
        assert!((json["value"].as_f64().unwrap() * 100.0 - f64::from(percent)).abs() < 5.0, "{name}: {json}");
    }
}

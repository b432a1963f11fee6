//! The paper's codec in containers, from outside: with a small network that nobody trained.

mod common;

use std::fs;
use std::path::Path;

use common::{refusal_after_warnings as refusal, run};
use half::{bf16, f16};
use nwc_encode_host::codec_file;
use nwc_encode_host::compress::{Settings, Target, compress};
use nwc_encode_host::container::attachments_section;
use nwc_encode_host::importance;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::{Source, residual_codec};
use nwc_encode_host::tensors::OwnedTensors;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn json(folder: &Path, line: &str) -> Value {
    let output = run(folder, &format!("{line} --json"));
    assert!(output.status.success(), "{line}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(json: &Value) -> f64 {
    json.as_f64().unwrap_or_else(|| panic!("{json} is no number"))
}

type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn save(path: &Path, tensors: &[Stored]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn random(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    Source::LognormalRows.matrix(rows, columns, seed).iter().map(|weight| weight * 0.03).collect()
}

/// Matrices whose rows fill no chunk, an embedding, a stack of experts, and what is not coded.
fn tensors() -> Vec<Stored> {
    let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let halves = |values: Vec<f32>| values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let brains = |values: Vec<f32>| values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let mut quiet = random(40, 48, 1);
    quiet[48..96].fill(0.0);
    vec![
        ("experts", Dtype::F32, vec![2, 20, 32], f32s(&random(40, 32, 2))),
        ("model.embed_tokens.weight", Dtype::BF16, vec![50, 24], brains(random(50, 24, 3))),
        ("norm", Dtype::F16, vec![48], halves(random(1, 48, 4))),
        ("q_proj", Dtype::F16, vec![40, 48], halves(quiet)),
        ("tied", Dtype::BF16, vec![50, 24], brains(random(50, 24, 3))),
    ]
}

fn sandbox() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("model")).unwrap();
    save(&folder.path().join("model/model.safetensors"), &tensors());
    fs::write(folder.path().join("model/config.json"), "{}").unwrap();
    fs::write(folder.path().join("paper.safetensors"), residual_codec(32, 2, 4)).unwrap();
    folder
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F16 => halves().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => halves().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    }
}

/// What the codec makes of a matrix `[out, in]`, chunk by chunk.
fn through_the_codec(weights: &[f32], input: usize, levels: &[u8]) -> Vec<f32> {
    let codec = codec_file::residual(&residual_codec(32, 2, 4)).unwrap();
    let rows: Vec<&[f32]> = weights.chunks_exact(input).collect();
    let deviation = |row: &&[f32]| {
        let square = row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / input as f64;
        bf16::from_f64(square.sqrt()).to_f32()
    };
    let deviations: Vec<f32> = rows.iter().map(deviation).collect();
    let mut restored = vec![0.0; weights.len()];
    for first in (0..rows.len()).step_by(16) {
        for column in 0..input {
            let mut chunk = [[0.0; 16]];
            for row in first..rows.len().min(first + 16) {
                let divisor = if deviations[row] > 0.0 { deviations[row] } else { 1.0 };
                chunk[0][row - first] = rows[row][column] / divisor;
            }
            codec.analysis.apply(&mut chunk, &levels[column..=column]);
            chunk[0] = chunk[0].map(f32::round_ties_even);
            codec.synthesis.apply(&mut chunk, &levels[column..=column]);
            for row in first..rows.len().min(first + 16) {
                restored[row * input + column] = chunk[0][row - first] * deviations[row];
            }
        }
    }
    restored
}

#[test]
fn weights_come_back_as_the_network_makes_them_and_all_commands_agree() {
    let folder = sandbox();
    let folder = folder.path();
    let report = json(folder, "compress model -o a.nwc --codec paper.safetensors");
    let bytes = fs::metadata(folder.join("a.nwc")).unwrap().len();
    let split: u64 = report["split"].as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum();
    assert_eq!((split, report["bytes"].as_u64()), (bytes, Some(bytes)));
    // The tied tensor counts once.
    assert_eq!(report["weights"], 40 * 48 + 2 * 20 * 32 + 50 * 24);
    let part = |key: &str| report["split"][key].as_u64().unwrap();
    let counted = bytes - part("raw") - part("attachments");
    let rate = counted as f64 * 8.0 / number(&report["weights"]);
    assert!((rate - number(&report["bits_per_weight"])).abs() < 1e-9, "{report}");
    // The network is most of it: 3,888 parameters of two bytes.
    assert!(part("codec") > 6000 && part("side") > 200 && part("attachments") < 1000, "{report}");
    let nmse = number(&report["nmse"]);
    assert!((0.001..0.05).contains(&nmse), "{nmse}");
    let codings: Vec<&str> =
        report["tensors"].as_array().unwrap().iter().map(|t| t["coding"].as_str().unwrap()).collect();
    assert_eq!(codings.iter().filter(|coding| **coding == "coded").count(), 3, "{report}");

    let inspected = json(folder, "inspect a.nwc");
    for key in ["bytes", "weights", "bits_per_weight", "split"] {
        assert_eq!(inspected[key], report[key], "{key}");
    }
    assert_eq!(inspected["float_synthesis"]["width"], 32);
    assert!(inspected["tensors"].as_array().unwrap().iter().any(|tensor| {
        tensor["name"] == "q_proj.latents"
            && tensor["shape"] == serde_json::json!([48, 48])
            && tensor["restored"]["shape"] == serde_json::json!([40, 48])
    }));
    let text = String::from_utf8(run(folder, "inspect a.nwc").stdout).unwrap();
    assert!(text.contains("floating point") && text.contains("not promised"), "{text}");
    let verified = json(folder, "verify a.nwc --against model");
    assert_eq!((&verified["ok"], &verified["nmse"]), (&true.into(), &report["nmse"]));

    json(folder, "decompress a.nwc -o out");
    assert_eq!(fs::read(folder.join("out/config.json")).unwrap(), b"{}");
    assert_eq!(fs::read_dir(folder.join("out")).unwrap().count(), 2);
    let restored = fs::read(folder.join("out/model.safetensors")).unwrap();
    let restored = SafeTensors::deserialize(&restored).unwrap();
    assert_eq!(restored.len(), 5);
    for (name, dtype, shape, bytes) in tensors() {
        let after = restored.tensor(name).unwrap();
        assert_eq!((after.dtype(), after.shape()), (dtype, &shape[..]), "{name}");
        if name == "norm" {
            assert_eq!(after.data(), bytes);
            continue;
        }
        let input = *shape.last().unwrap();
        let matrix = if name == "experts" { 20 } else { shape[0] } * input;
        let expected: Vec<f32> = values(dtype, &bytes)
            .chunks_exact(matrix)
            .flat_map(|matrix| through_the_codec(matrix, input, &vec![0; input]))
            .collect();
        let expected: Vec<u8> = match dtype {
            Dtype::F16 => expected.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect(),
            Dtype::BF16 => expected.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect(),
            _ => expected.iter().flat_map(|w| w.to_le_bytes()).collect(),
        };
        assert!(after.data() == expected, "{name} differs");
    }
    json(folder, "decompress a.nwc -o wide --dtype f32");
    let wide = fs::read(folder.join("wide/model.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&wide).unwrap().tensor("q_proj").unwrap().dtype(), Dtype::F32);

    // Neither threads nor chance change the file.
    json(folder, "compress model -o b.nwc --codec paper.safetensors --jobs 1");
    assert!(fs::read(folder.join("a.nwc")).unwrap() == fs::read(folder.join("b.nwc")).unwrap());
}

#[test]
fn levels_follow_the_importance_of_columns() {
    let folder = sandbox();
    let folder = folder.path();
    let diagonal: Vec<u8> = (0..48u8).flat_map(|k| (f32::from(k) + 1.0).to_le_bytes()).collect();
    save(&folder.join("h.safetensors"), &[("q_proj", Dtype::F32, vec![48], diagonal)]);
    let line = "compress model -o a.nwc --codec paper.safetensors --hessians h.safetensors";
    let report = json(folder, line);
    assert!(number(&report["weighted_nmse_mean"]) > 0.0, "{report}");
    json(folder, "decompress a.nwc -o out --dtype f32");
    let restored = fs::read(folder.join("out/model.safetensors")).unwrap();
    let restored = SafeTensors::deserialize(&restored).unwrap();
    let levels = importance::levels(&(0..48u8).map(f32::from).collect::<Vec<_>>());
    assert_eq!(levels.iter().filter(|&&level| level > 0).count(), 5);
    let (_, dtype, _, bytes) = &tensors()[3];
    let expected = through_the_codec(&values(*dtype, bytes), 48, &levels);
    let after = values(Dtype::F32, restored.tensor("q_proj").unwrap().data());
    assert!(after == expected);
    json(folder, &format!("{line} --importance none --force"));
}

#[test]
fn options_that_such_a_codec_does_not_have_are_refused() {
    let folder = sandbox();
    let folder = folder.path();
    let compress = "compress model -o a.nwc --codec paper.safetensors";
    for (options, words) in [
        ("--bits 3", ["--bits", "--lambda"]),
        ("--size 10000", ["--size", "--lambda"]),
        ("--step 0.5", ["--step", "--lambda"]),
        ("--quantizer trellis8", ["--quantizer", "paper"]),
        ("--everywhere", ["--everywhere", "paper"]),
        ("--optimise-codes 2", ["--optimise-codes", "paper"]),
        ("--row-alpha 0.5", ["--row-alpha", "paper"]),
        ("--importance continuous", ["--importance continuous", "paper"]),
        ("--importance levels", ["--importance", "--hessians"]),
    ] {
        let text = refusal(folder, &format!("{compress} {options}"));
        assert!(
            text.contains("paper.safetensors: ") && words.iter().all(|word| text.contains(word)),
            "{text}"
        );
    }
    assert!(refusal(folder, "compress model -o a.nwc").contains("--bits"));
    save(
        &folder.join("clash.safetensors"),
        &[
            ("q", Dtype::F32, vec![40, 32], random(40, 32, 1).iter().flat_map(|w| w.to_le_bytes()).collect()),
            ("q.latents", Dtype::U8, vec![1], vec![0]),
        ],
    );
    let text = refusal(folder, "compress clash.safetensors -o a.nwc --codec paper.safetensors");
    assert!(text.contains("tensor \"q.latents\": ") && text.contains("--exclude"), "{text}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 3, "nothing is left behind");
}

#[test]
fn codecs_that_are_none_are_told_by_file_and_tensor() {
    let folder = sandbox();
    let folder = folder.path();
    let good = residual_codec(32, 2, 4);
    let good = SafeTensors::deserialize(&good).unwrap();
    let entry = "synthesis.blocks.1.norm.bias";
    // A change of one tensor: which, its shape, its values.
    let changed = |name: &str, shape: Option<(Vec<usize>, Vec<f32>)>| {
        let bytes: Vec<u8>;
        let mut tensors: Vec<(String, TensorView<'_>)> = good.tensors();
        tensors.retain(|(known, _)| known != name);
        if let Some((shape, values)) = shape {
            bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((name.to_owned(), TensorView::new(Dtype::F32, shape, &bytes).unwrap()));
            return safetensors::serialize(tensors, None).unwrap();
        }
        safetensors::serialize(tensors, None).unwrap()
    };
    let mut far = vec![0.0; 32];
    far[7] = 1e6;
    for (name, shape, word) in [
        (entry, None, "missing"),
        (entry, Some((vec![31], vec![0.0; 31])), "[32]"),
        (entry, Some((vec![32], vec![f32::NAN; 32])), "NaN"),
        (entry, Some((vec![32], far)), "F16"),
        ("levels", None, "missing"),
        ("levels", Some((vec![128], vec![1.0; 128])), "[levels, width]"),
        ("levels", Some((vec![0, 32], vec![])), "[levels, width]"),
        ("analysis.in.weight", None, "missing"),
        ("synthesis.out.weight", Some((vec![16, 33], vec![0.0; 528])), "[16, 32]"),
    ] {
        fs::write(folder.join("bad.safetensors"), changed(name, shape)).unwrap();
        let text = refusal(folder, "compress model -o a.nwc --codec bad.safetensors");
        let start = format!("error: bad.safetensors: tensor \"{name}\": ");
        assert!(text.starts_with(&start) && text.contains(word) && text.contains("; use a file"), "{text}");
    }
    // Networks that run out of numbers.
    let huge = vec![3e4; 4 * 32];
    fs::write(folder.join("bad.safetensors"), changed("levels", Some((vec![4, 32], huge)))).unwrap();
    let wide: Vec<u8> = random(40, 48, 1).iter().flat_map(|w| (w * 1e30).to_le_bytes()).collect();
    save(&folder.join("wide.safetensors"), &[("wide", Dtype::F32, vec![40, 48], wide)]);
    let text = refusal(folder, "compress wide.safetensors -o a.nwc --codec bad.safetensors");
    assert!(
        text.contains("tensor \"wide\": ") && text.contains("NaN") && text.contains("--exclude"),
        "{text}"
    );
    assert!(!folder.join("a.nwc").exists());
}

/// A container of one tensor of latents `[16, 8]`, or what is to be one, with these attachments.
fn container(path: &Path, name: &str, files: &[(&str, Vec<u8>)]) {
    let mut model = OwnedTensors::default();
    model.push_f32(name, &[16, 8], &[4.0; 128]);
    let files: Vec<(String, Vec<u8>)> =
        files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
    let mut file = fs::File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
    let settings = Settings::new(Target::Step(0.1));
    compress(&model, attachments_section(&files).unwrap(), &settings, &Silent, &mut file).unwrap();
}

/// The attachment `nwc:latents`, with this list of tensors, number of deviations and levels.
fn description(list: &str, deviations: &[bf16], levels: &[u8]) -> Vec<u8> {
    let bytes: Vec<u8> = deviations.iter().flat_map(|deviation| deviation.to_le_bytes()).collect();
    let views = [
        ("deviations", TensorView::new(Dtype::BF16, vec![deviations.len()], &bytes).unwrap()),
        ("levels", TensorView::new(Dtype::U8, vec![levels.len()], levels).unwrap()),
    ];
    let metadata = std::collections::HashMap::from([("nwc:latents".to_owned(), list.to_owned())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn attachments_that_lie_are_errors_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let network = codec_file::residual(&residual_codec(32, 1, 2)).unwrap().stored;
    let entry = r#"{"index":0,"dtype":"F16","shape":[12,8],"batched":false}"#;
    let list = format!("[{entry}]");
    let (deviations, levels) = (vec![bf16::ONE; 12], vec![1; 8]);
    let good = description(&list, &deviations, &levels);
    let both = |description: Vec<u8>| vec![("nwc:synthesis", network.clone()), ("nwc:latents", description)];
    container(&folder.join("good.nwc"), "q.latents", &both(good.clone()));
    assert_eq!(json(folder, "verify good.nwc")["ok"], true);
    json(folder, "decompress good.nwc -o good");

    let lists = [
        String::new(),
        "[".to_owned(),
        "{}".to_owned(),
        format!("[{entry},{entry}]"),
        list.replace("\"index\":0", "\"index\":1"),
        list.replace("\"index\":0", "\"index\":-1"),
        list.replace("F16", "I64"),
        list.replace("[12,8]", "[]"),
        list.replace("[12,8]", "[0,8]"),
        list.replace("[12,8]", "[17,8]"),
        list.replace("[12,8]", "[12,9]"),
        list.replace("[12,8]", "[18446744073709551615,8]"),
        list.replace("[12,8]", "[9223372036854775808,2]"),
        list.replace("[12,8]", "[4294967296,4294967296,4294967296]"),
        list.replace("[12,8]", "[18446744073709551615]"),
        list.replace("[12,8]", "[1e30,8]"),
        list.replace("false", "true"),
        list.replace("[12,8]", "[12]").replace("false", "true"),
        "[]".to_owned(),
    ];
    let mut bad: Vec<Vec<(&str, Vec<u8>)>> =
        lists.iter().map(|list| both(description(list, &deviations, &levels))).collect();
    let mut broken = deviations.clone();
    broken[3] = bf16::NAN;
    bad.push(both(description(&list, &broken, &levels)));
    bad.push(both(description(&list, &deviations[1..], &levels)));
    bad.push(both(description(&list, &[deviations.clone(), deviations.clone()].concat(), &levels)));
    bad.push(both(description(&list, &deviations, &levels[1..])));
    bad.push(both(description(&list, &deviations, &[0, 0, 0, 0, 0, 0, 0, 2])));
    // A network that gives numbers out of range.
    let huge = vec![bf16::MAX; 12];
    bad.push(both(description(&list.replace("F16", "F32"), &huge, &levels)));
    bad.push(vec![("nwc:synthesis", network.clone())]);
    bad.push(vec![("nwc:latents", good.clone())]);
    bad.push([both(good.clone()), both(good.clone())].concat());
    bad.push(vec![("nwc:synthesis", residual_codec(32, 1, 1)), ("nwc:latents", good.clone())]);
    for cut in [0, 7, 8, 50, network.len() / 2, network.len() - 1] {
        bad.push(vec![("nwc:synthesis", network[..cut].to_vec()), ("nwc:latents", good.clone())]);
    }
    for cut in [0, 7, 8, 50, good.len() - 1] {
        bad.push(both(good[..cut].to_vec()));
    }
    for at in (0..network.len()).step_by(97) {
        let mut network = network.clone();
        network[at] ^= 0xFF;
        // Some of these are other networks.
        container(
            &folder.join("a.nwc"),
            "q.latents",
            &[("nwc:synthesis", network), ("nwc:latents", good.clone())],
        );
        let code = run(folder, "verify a.nwc").status.code();
        assert!(matches!(code, Some(0 | 1)), "{at}: {code:?}");
    }
    for (number, files) in bad.iter().enumerate() {
        container(&folder.join("a.nwc"), "q.latents", files);
        eprintln!("attachments {number}");
        let text = refusal(folder, "decompress a.nwc -o out");
        assert!(text.contains("a.nwc: ") && text.contains("; "), "{number}: {text}");
        let verified = run(folder, "verify a.nwc --json");
        assert_eq!(verified.status.code(), Some(1), "{number}: {verified:?}");
        assert!(matches!(run(folder, "inspect a.nwc").status.code(), Some(0 | 2)), "{number}");
    }
    // A tensor that is not called one of latents.
    container(&folder.join("a.nwc"), "q", &both(good.clone()));
    assert!(refusal(folder, "decompress a.nwc -o out").contains("latents"));
    let mut left: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["a.nwc", "good", "good.nwc"]);
}

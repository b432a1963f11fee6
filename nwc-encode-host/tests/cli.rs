//! The program from outside: what it prints, what it writes, how it ends.
//!
//! Each test works in a folder of its own, which is the program's current folder, so that command lines are written as a user would.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use half::{bf16, f16};
use nwc_decode_core::{Checks, Coding, Container, DType, Limits};
use nwc_encode_host::compress::{Settings, Target, compress};
use nwc_encode_host::container::attachments_section;
use nwc_encode_host::model::FolderWriter;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::{Source, network};
use nwc_encode_host::tensors::OwnedTensors;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// How one call of the program ended.
#[derive(Debug)]
struct Run {
    #[expect(dead_code, reason = "failed assertions print it")]
    line: String,
    /// `None` if a signal ended it.
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    /// What a successful call with `--json` printed, which must be one line.
    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.any_json()
    }

    fn any_json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        let json: Value = serde_json::from_str(&self.stdout).unwrap();
        assert_eq!(json["schema_version"], 1);
        json
    }

    /// The text of a successful call.
    fn text(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// The one line, after warnings, of a call that was refused.
    fn error(&self) -> &str {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let mut lines = self.stderr.lines().skip_while(|line| line.starts_with("warning: "));
        let line = lines.next().unwrap_or_default();
        assert!(line.starts_with("error: ") && lines.next().is_none(), "{self:?}");
        line
    }
}

/// A temporary folder in which the program runs.
struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With a copy of the bundled model in `clip`; `None` where it is not at hand, as in a packaged crate.
    fn with_clip() -> Option<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/clip-mini");
        if !source.join("model.safetensors").is_file() {
            eprintln!("{} is not here, so this test has nothing to work on", source.display());
            return None;
        }
        let sandbox = Self::new();
        fs::create_dir(sandbox.path("clip")).unwrap();
        for entry in fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), sandbox.path("clip").join(entry.file_name())).unwrap();
        }
        Some(sandbox)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// The program with the words of `line` as its arguments; `{DIR}` stands for the folder's path.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nwc-encode"));
        let dir = self.dir.path().to_str().unwrap();
        command
            .args(line.split_whitespace().map(|word| word.replace("{DIR}", dir)))
            .current_dir(self.dir.path());
        command
    }

    fn run(&self, line: &str) -> Run {
        let output = self.command(line).output().unwrap();
        Run {
            line: line.to_owned(),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Everything in the folder, hidden and temporary files included.
    fn listing(&self) -> BTreeSet<String> {
        fn walk(folder: &Path, prefix: &str, names: &mut BTreeSet<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), names);
                }
                names.insert(name);
            }
        }
        let mut names = BTreeSet::new();
        walk(self.dir.path(), "", &mut names);
        names
    }

    /// Writes a model folder: weight files, then others.
    fn model(&self, folder: &str, files: &[WeightFile], others: &[(&str, &str)]) {
        let mut writer = FolderWriter::create(&self.path(folder), false).unwrap();
        for (name, metadata, tensors) in files {
            let layout: Vec<_> =
                tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
            writer.begin_file(name, metadata.as_ref(), &layout).unwrap();
            tensors.iter().for_each(|tensor| writer.write_tensor(&tensor.bytes).unwrap());
            writer.end_file().unwrap();
        }
        for (name, content) in others {
            writer.add_file(name, content.as_bytes()).unwrap();
        }
        writer.commit().unwrap();
    }

    /// Writes a container of one small tensor with these attachments, which the program itself might not write.
    fn container(&self, name: &str, attachments: &[(&str, &str)]) {
        let mut tensors = OwnedTensors::default();
        tensors.push_f32("w", &[4], &[1.0, 2.0, 3.0, 4.0]);
        let attachments: Vec<_> =
            attachments.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        let mut file = File::options().read(true).write(true).create_new(true).open(self.path(name)).unwrap();
        let settings = Settings::new(Target::Bits(4.0));
        compress(&tensors, attachments_section(&attachments).unwrap(), &settings, &Silent, &mut file)
            .unwrap();
    }

    /// Changes one byte of a file.
    fn flip(&self, name: &str, position: usize) {
        let mut bytes = self.read(name);
        bytes[position] ^= 0x10;
        self.write(name, bytes);
    }
}

type WeightFile = (&'static str, Option<BTreeMap<String, String>>, Vec<Tensor>);

/// A tensor of a model that a test makes.
#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: &str, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    /// Normally distributed, of about the deviation that real weights have.
    fn random(name: &str, dtype: DType, shape: &[usize], seed: u64) -> Self {
        let values = Source::Gaussian.matrix(1, shape.iter().product(), seed);
        Self::from_values(name, dtype, shape, &values.iter().map(|value| value * 0.02).collect::<Vec<_>>())
    }

    fn from_values(name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let bytes = match dtype {
            DType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        Self::new(name, dtype, shape, bytes)
    }

    fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }
}

/// The elements of a floating-point tensor, by means that share nothing with the program.
fn values(tensor: &TensorView<'_>) -> Vec<f32> {
    let halves = tensor.data().chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    match tensor.dtype() {
        Dtype::F16 => halves.map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Dtype::BF16 => halves.map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        Dtype::F32 => {
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        other => panic!("{other} is not floating-point"),
    }
}

/// Squared error over squared values.
fn nmse(original: &TensorView<'_>, restored: &TensorView<'_>) -> f64 {
    let (original, restored) = (values(original), values(restored));
    let error: f64 =
        original.iter().zip(&restored).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    error / original.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>()
}

/// `tensors` of a report by their name.
fn by_name(report: &Value) -> HashMap<&str, &Value> {
    report["tensors"].as_array().unwrap().iter().map(|t| (t["name"].as_str().unwrap(), t)).collect()
}

/// Checks that a restored safetensors file is the original but for the coding loss that `report` states.
fn check_restored(original: &[u8], restored: &[u8], report: &Value) {
    let (_, before) = SafeTensors::read_metadata(original).unwrap();
    let (_, after) = SafeTensors::read_metadata(restored).unwrap();
    assert_eq!(before.metadata(), after.metadata());
    assert_eq!(before.offset_keys(), after.offset_keys());
    let (before, after) =
        (SafeTensors::deserialize(original).unwrap(), SafeTensors::deserialize(restored).unwrap());
    let reports = by_name(report);
    for (name, tensor) in before.iter() {
        let copy = after.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (copy.dtype(), copy.shape()), "{name}");
        match reports[name]["coding"].as_str().unwrap() {
            "raw" => assert!(tensor.data() == copy.data(), "{name} is raw but differs"),
            "coded" => {
                close(nmse(&tensor, &copy), reports[name]["nmse"].as_f64().unwrap());
                assert!(tensor.data() != copy.data(), "{name}");
            }
            "alias" => {}
            other => panic!("{name} is {other}"),
        }
    }
}

/// Equal but for the order of additions.
#[track_caller]
fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs(), "{a} and {b}");
}

#[track_caller]
fn number(json: &Value) -> f64 {
    json.as_f64().unwrap_or_else(|| panic!("{json} is not a number"))
}

/// The parts of `split` that the format has, and their sum.
fn split_sum(json: &Value) -> u64 {
    let split = json["split"].as_object().unwrap();
    let keys = ["payload", "side", "tables", "codec", "directory", "raw", "attachments"];
    assert!(split.keys().eq(keys), "{split:?}");
    split.values().map(|bytes| bytes.as_u64().unwrap()).sum()
}

/// Checks a report of `compress` in itself and against the file.
fn check_report(report: &Value, file_bytes: u64) {
    for key in ["bytes", "weights", "bits_per_weight", "nmse", "nmse_mean", "seconds"] {
        assert!(number(&report[key]) > 0.0, "{key}: {}", report[key]);
    }
    assert_eq!(report["bytes"], file_bytes);
    assert_eq!(split_sum(report), file_bytes);
    let part = |key: &str| report["split"][key].as_u64().unwrap();
    let counted = file_bytes - part("raw") - part("attachments");
    close(counted as f64 * 8.0 / number(&report["weights"]), number(&report["bits_per_weight"]));

    let (mut weights, mut errors) = (0, Vec::new());
    for tensor in report["tensors"].as_array().unwrap() {
        let elements: u64 =
            tensor["shape"].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).product();
        if tensor["coding"] == "coded" {
            weights += elements;
            errors.push(number(&tensor["nmse"]));
            assert!((0.0..16.0).contains(&number(&tensor["bits_per_weight"])), "{tensor}");
        } else {
            assert_eq!(tensor["nmse"], 0.0, "{tensor}");
        }
    }
    assert_eq!(report["weights"], weights);
    close(errors.iter().sum::<f64>() / errors.len() as f64, number(&report["nmse_mean"]));
}

#[test]
fn rates_are_met_and_all_commands_agree_on_them() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    for bits in [4.0, 3.0, 2.0] {
        let report = sandbox.run(&format!("compress clip --bits {bits} -o {bits}.nwc --json")).json();
        let file = format!("{bits}.nwc");
        check_report(&report, sandbox.read(&file).len() as u64);
        let reached = number(&report["bits_per_weight"]);
        assert!((bits - 0.01..=bits).contains(&reached), "{reached} where {bits} was asked for");
        // Shannon's bound for independent normal weights is 1, ideal scalar quantisation reaches 1.42.
        let factor = number(&report["nmse"]) * 4f64.powf(reached);
        assert!((0.5..1.42).contains(&factor), "{bits} bits: {factor}");

        let inside = sandbox.run(&format!("inspect {file} --json")).json();
        for key in ["bytes", "weights", "split", "bits_per_weight"] {
            assert_eq!(inside[key], report[key], "{key}");
        }
        assert_eq!(inside["version"], 1);
        assert_eq!(inside["codec"][0]["quantizer"], "trellis64");
        assert!(number(&inside["required"]["scratch_bytes"]) > 0.0);
        assert!(number(&inside["required"]["state_bytes"]) > 0.0);
        let listed = inside["tensors"].as_array().unwrap();
        for (listed, reported) in listed.iter().zip(report["tensors"].as_array().unwrap()) {
            for key in ["name", "shape", "coding", "bits_per_weight"] {
                assert_eq!(listed[key], reported[key], "{key}");
            }
        }
        assert_eq!(listed.len(), report["tensors"].as_array().unwrap().len());

        let verdict = sandbox.run(&format!("verify {file} --against clip --json")).json();
        assert_eq!((&verdict["ok"], &verdict["errors"]), (&Value::from(true), &Value::Array(Vec::new())));
        assert_eq!(verdict["tensors"], listed.len());
        close(number(&verdict["nmse"]), number(&report["nmse"]));
        let worst = by_name(&report)[verdict["worst"]["name"].as_str().unwrap()];
        close(number(&verdict["worst"]["nmse"]), number(&worst["nmse"]));
        let largest =
            report["tensors"].as_array().unwrap().iter().map(|t| number(&t["nmse"])).fold(0.0, f64::max);
        close(number(&worst["nmse"]), largest);

        let done = sandbox.run(&format!("decompress {file} -o out{bits} --json")).json();
        assert_eq!(done["tensors"], listed.len());
        assert!(number(&done["seconds"]) > 0.0 && number(&done["weights_per_second"]) > 0.0);
        let restored = sandbox.read(&format!("out{bits}/model.safetensors"));
        check_restored(&sandbox.read("clip/model.safetensors"), &restored, &report);
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
            assert!(
                sandbox.read(&format!("out{bits}/{name}")) == sandbox.read(&format!("clip/{name}")),
                "{name}"
            );
        }
        let count = |folder: &str| fs::read_dir(sandbox.path(folder)).unwrap().count();
        assert_eq!(count(&format!("out{bits}")), count("clip"));
    }
    let alone = sandbox.run("verify 3.nwc --json").json();
    assert_eq!((&alone["nmse"], &alone["worst"]), (&Value::Null, &Value::Null));
    let text = sandbox.run("inspect 3.nwc --tensors --memory").text().to_owned();
    for word in ["trellis64", "logit_scale", "tables, 4 bits", "payload"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn weights_are_written_as_the_type_that_is_asked_for() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    let report = sandbox.run("compress clip --bits 4 -o a.nwc --json").json();
    let reports = by_name(&report);
    for (name, dtype) in [("own", None), ("f16", Some("f16")), ("f32", Some("f32")), ("bf16", Some("bf16"))] {
        let dtype = dtype.map_or_else(String::new, |dtype| format!("--dtype {dtype}"));
        sandbox.run(&format!("decompress a.nwc -o {name} {dtype}")).text();
    }
    let read = |name: &str| sandbox.read(&format!("{name}/model.safetensors"));
    // The model's own type.
    assert!(read("own") == read("f16"));
    let (original, f32s, own, bf16s) = (read("clip"), read("f32"), read("own"), read("bf16"));
    let parse = |bytes| SafeTensors::deserialize(bytes).unwrap();
    let (original, f32s, own, bf16s) = (parse(&original), parse(&f32s), parse(&own), parse(&bf16s));
    for (name, wide) in f32s.iter() {
        assert_eq!(wide.dtype(), Dtype::F32, "{name}");
        let wide = values(&wide);
        // All types come from the same binary32 weight, rounded once.
        let rounded: Vec<f32> = wide.iter().map(|&value| f16::from_f32(value).to_f32()).collect();
        assert_eq!(rounded, values(&own.tensor(name).unwrap()), "{name}");
        let brain = bf16s.tensor(name).unwrap();
        assert_eq!(brain.dtype(), Dtype::BF16, "{name}");
        let rounded: Vec<f32> = wide.iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
        assert_eq!(rounded, values(&brain), "{name}");
        if reports[name]["coding"] == "raw" {
            assert_eq!(wide, values(&original.tensor(name).unwrap()), "{name}");
        }
    }
}

#[test]
fn a_size_is_met_and_a_step_is_taken() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    for size in [250_000, 120_000] {
        let report = sandbox.run(&format!("compress clip --size {size} -o {size}.nwc --json")).json();
        let bytes = sandbox.read(&format!("{size}.nwc")).len() as u64;
        check_report(&report, bytes);
        let short_of = (size - bytes) as f64 * 8.0 / number(&report["weights"]);
        assert!(bytes <= size && short_of <= 0.01, "{bytes} bytes of {size}");
    }
    let step = |step: f64| sandbox.run(&format!("compress clip --step {step} --dry-run --json")).json();
    let (fine, coarse) = (step(0.25), step(0.5));
    // Half the step is a bit more, and a quarter of the error, where the step is small.
    let more = number(&fine["bits_per_weight"]) - number(&coarse["bits_per_weight"]);
    assert!((0.8..1.1).contains(&more), "{more}");
    let less = number(&coarse["nmse"]) / number(&fine["nmse"]);
    assert!((3.5..4.2).contains(&less), "{less}");
}

/// The two numbers that a message offers for the range that can be reached.
fn range_offered(message: &str) -> (f64, f64) {
    let (_, range) = message.split_once("between about ").unwrap_or_else(|| panic!("{message}"));
    let mut numbers = range.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn rates_out_of_reach_are_refused_with_the_range_that_is_not() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    for line in ["--bits 0.05", "--bits 40", "--size 20000", "--size 2000000"] {
        let run = sandbox.run(&format!("compress clip {line} -o a.nwc"));
        let message = run.error();
        let asked: f64 = line.split_once(' ').unwrap().1.parse().unwrap();
        assert!(message.starts_with("error: clip: ") && message.contains("out of reach"), "{message}");
        let (low, high) = range_offered(message);
        assert!(low < high && !(low..=high).contains(&asked), "{message}");
        assert!(!sandbox.path("a.nwc").exists());
        // "About": both ends come from a sample of the weights.
        let option = line.split_once(' ').unwrap().0;
        let inside = if asked < low { low * 1.25 } else { high * 0.98 };
        let inside = if option == "--size" { inside.round() } else { inside };
        sandbox.run(&format!("compress clip {option} {inside} --dry-run")).text();
    }
}

/// Bits a weight of the data of coded tensors with some names.
fn bits_of(report: &Value, has_name: impl Fn(&str) -> bool) -> f64 {
    let (mut bits, mut weights) = (0.0, 0.0);
    for tensor in report["tensors"].as_array().unwrap() {
        if tensor["coding"] == "coded" && has_name(tensor["name"].as_str().unwrap()) {
            let elements: f64 = tensor["shape"].as_array().unwrap().iter().map(number).product();
            bits += number(&tensor["bits_per_weight"]) * elements;
            weights += elements;
        }
    }
    bits / weights
}

#[test]
fn pinned_tensors_have_their_rate_and_the_others_what_is_left() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    let in_window =
        |bits: f64, wanted: f64| assert!((wanted - 0.01..=wanted).contains(&bits), "{bits}, not {wanted}");
    // The first pin that matches counts: the MLPs of the text model are not in the second one.
    let pins = "--bits-for text_model.*mlp=5.5 --bits-for text_model=2.5";
    for rate in ["--bits 3.5", "--size 250000", "--step 0.2"] {
        let report = sandbox.run(&format!("compress clip {rate} {pins} -o a.nwc --force --json")).json();
        sandbox.run("verify a.nwc --against clip").text();
        let inspected = sandbox.run("inspect a.nwc --tensors --json").json();
        let is_mlp = |name: &str| name.contains("text_model") && name.contains("mlp");
        for report in [&report, &inspected] {
            in_window(bits_of(report, is_mlp), 5.5);
            in_window(bits_of(report, |name| name.contains("text_model") && !is_mlp(name)), 2.5);
        }
        match rate {
            "--bits 3.5" => in_window(number(&report["bits_per_weight"]), 3.5),
            "--size 250000" => {
                let missing = 250_000.0 - number(&report["bytes"]);
                assert!((0.0..=0.01).contains(&(missing * 8.0 / number(&report["weights"]))), "{missing}");
            }
            _ => {}
        }
    }
    // At its own rate a pinned tensor is as good as in a model that has that rate.
    let nmse = |line: &str| {
        let report = sandbox.run(&format!("compress clip {line} --dry-run --json")).json();
        let tensors = by_name(&report);
        number(&tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]["nmse"])
    };
    let (pinned, alone) = (nmse("--bits 3 --bits-for vision_model.*mlp=5"), nmse("--bits 5"));
    assert!((pinned / alone - 1.0).abs() < 0.1, "{pinned}, not {alone}");
}

#[test]
fn rates_that_pins_leave_out_of_reach_are_refused_with_what_is_possible() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    // More than the model may have, and nearly nothing of most of it.
    for pins in ["--bits-for mlp=8", "--bits-for vision_model=3 --bits-for text_model=0.5"] {
        let run = sandbox.run(&format!("compress clip --bits 2 {pins} -o a.nwc"));
        let message = run.error();
        assert!(
            message.contains("2 bits per weight are out of reach, as other tensors are pinned"),
            "{message}"
        );
        let (low, high) = range_offered(message);
        assert!(2.0 < low && low < high, "{message}");
        let inside = f64::midpoint(low, high);
        sandbox.run(&format!("compress clip --bits {inside:.2} {pins} --dry-run")).text();
    }
    for bits in ["0.01", "30"] {
        let run = sandbox.run(&format!("compress clip --bits 4 --bits-for mlp={bits} -o a.nwc"));
        let message = run.error();
        assert!(
            message.contains(&format!(
                "{bits} bits per weight are out of reach for the tensors that \"mlp\" pins"
            )),
            "{message}"
        );
        let (low, high) = range_offered(message);
        assert!(low < high && high < 20.0, "{message}");
    }
    // With all tensors pinned there is one rate, which is offered.
    let run = sandbox.run("compress clip --bits 4 --bits-for .=3 -o a.nwc");
    let (_, rest) = run.error().split_once("choose ").unwrap();
    let (bits, _) = rest.split_once(' ').unwrap();
    let report = sandbox.run(&format!("compress clip --bits {bits} --bits-for .=3 --dry-run --json")).json();
    assert!((2.99..=3.0).contains(&bits_of(&report, |_| true)) && number(&report["bits_per_weight"]) > 3.0);
    sandbox.run("compress clip --step 1 --bits-for .=3 --dry-run").text();
}

#[test]
fn quantizers_and_selections_do_what_they_say() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    let at = |quantizer: &str| {
        let file = format!("{quantizer}.nwc");
        let line = format!("compress clip --bits 3 --quantizer {quantizer} -o {file} --json");
        let report = sandbox.run(&line).json();
        let inside = sandbox.run(&format!("inspect {file} --json")).json();
        assert_eq!(inside["codec"][0]["quantizer"], quantizer);
        number(&report["nmse"])
    };
    let errors = ["scalar", "trellis8", "trellis32"].map(at);
    assert!(errors.is_sorted_by(|worse, better| worse > better), "{errors:?}");

    let line = "compress clip --bits 3 --codec hadamard --everywhere -o hadamard.nwc --json";
    let report = sandbox.run(line).json();
    assert_eq!(sandbox.run("inspect hadamard.nwc --json").json()["codec"][0]["synthesis"], "hadamard");
    assert!((0.9..1.1).contains(&(number(&report["nmse"]) / errors[1])), "{report}");
    assert_eq!(sandbox.run("verify hadamard.nwc --against clip --json").json()["nmse"], report["nmse"]);

    // A learned synthesis in a file, with and without indices that are chosen anew.
    let network = network(&[24]);
    let tensor =
        Tensor { name: "network".to_owned(), dtype: DType::U8, shape: vec![network.len()], bytes: network };
    sandbox.model("codec", &[("codec.safetensors", None, vec![tensor])], &[]);
    let line = "compress clip --bits 3 --codec codec/codec.safetensors --everywhere --json";
    let once = sandbox.run(&format!("{line} -o learned.nwc")).json();
    assert_eq!(sandbox.run("inspect learned.nwc --json").json()["codec"][0]["synthesis"], "learned");
    assert_eq!(sandbox.run("verify learned.nwc --against clip --json").json()["nmse"], once["nmse"]);
    let anew = sandbox.run(&format!("{line} -o anew.nwc --optimise-codes 3")).json();
    let cost = |report: &Value| number(&report["nmse"]) * 4f64.powf(number(&report["bits_per_weight"]));
    assert!(cost(&anew) < cost(&once), "{anew} {once}");
    // Where it saves nothing, it is left out: nobody trained it.
    let line = "compress clip --bits 3 --codec codec/codec.safetensors -o chosen.nwc --json";
    let chosen = sandbox.run(line).json();
    assert_eq!(sandbox.run("inspect chosen.nwc --json").json()["codec"][0]["synthesis"], "identity");
    assert!(number(&chosen["nmse"]) < number(&once["nmse"]));

    let coded = |selection: &str| -> Vec<String> {
        let report = sandbox.run(&format!("compress clip --bits 4 {selection} --dry-run --json")).json();
        let coded = report["tensors"].as_array().unwrap().iter().filter(|t| t["coding"] == "coded");
        coded.map(|tensor| tensor["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = coded("");
    let text: Vec<_> = all.iter().filter(|name| name.starts_with("text_model.")).cloned().collect();
    let other: Vec<_> = all.iter().filter(|name| !name.starts_with("text_model.")).cloned().collect();
    assert!(!text.is_empty() && !other.is_empty());
    assert_eq!(coded(r"--include ^text_model\."), text);
    assert_eq!(coded(r"--exclude ^text_model\."), other);
    let large = coded("--min-weights 8192");
    assert!(!large.is_empty() && large.len() < all.len());

    // Excluding everything leaves a container of raw tensors, with a warning and the model's exact bytes.
    let run = sandbox.run("compress clip --bits 4 --exclude . -o raw.nwc --json");
    assert!(run.stderr.contains("warning: no tensor is coded"), "{run:?}");
    let report = run.json();
    assert_eq!((&report["weights"], &report["bits_per_weight"]), (&Value::from(0), &Value::from(0.0)));
    sandbox.run("decompress raw.nwc -o raw").text();
    check_restored(&sandbox.read("clip/model.safetensors"), &sandbox.read("raw/model.safetensors"), &report);
}

/// Importance as a file has it: a log-normal diagonal, and its matrix.
fn diagonal(inputs: usize) -> Vec<f32> {
    Source::Gaussian.matrix(1, inputs, 9).iter().map(|normal| (1.5 * normal).exp()).collect()
}

#[test]
fn steps_follow_the_importance_of_inputs() {
    let sandbox = Sandbox::new();
    let (out, input) = (384, 256);
    let linear = |name: &str, seed: u64| Tensor::random(name, DType::F32, &[out, input], seed);
    let embedding = Tensor::random("embed_tokens.weight", DType::F32, &[512, input], 3);
    let weights = vec![linear("q_proj.weight", 1), linear("k_proj.weight", 2), embedding];
    sandbox.model("model", &[("model.safetensors", None, weights)], &[("config.json", "{}")]);
    let diagonal = diagonal(input);
    let matrix: Vec<f32> =
        (0..input * input).map(|i| if i % (input + 1) == 0 { diagonal[i / input] } else { 0.125 }).collect();
    let hessians = vec![
        Tensor::from_values("q_proj.weight", DType::F32, &[input, input], &matrix),
        Tensor::from_values("embed_tokens.weight", DType::F32, &[input], &diagonal),
    ];
    sandbox.model("h", &[("h.safetensors", None, hessians)], &[]);
    let compress = |how: &str, file: &str| {
        sandbox.run(&format!("compress model --bits 3 {how} -o {file} --json")).json()
    };
    let [none, levels, continuous] = ["none", "levels", "continuous"].map(|how| {
        compress(&format!("--hessians h/h.safetensors --ldlq off --importance {how}"), &format!("{how}.nwc"))
    });
    assert_eq!(compress("", "plain.nwc")["nmse"], none["nmse"]);

    // Errors as they are counted, from the files.
    let weighted = |report: &Value, file: &str| {
        sandbox.run(&format!("decompress {file} -o back --force")).text();
        let (original, restored) =
            (sandbox.read("model/model.safetensors"), sandbox.read("back/model.safetensors"));
        let (original, restored) =
            (SafeTensors::deserialize(&original).unwrap(), SafeTensors::deserialize(&restored).unwrap());
        let of = |name: &str| {
            let (a, b) = (values(&original.tensor(name).unwrap()), values(&restored.tensor(name).unwrap()));
            let sums = a.iter().zip(&b).enumerate().fold((0.0, 0.0), |(error, energy), (i, (&a, &b))| {
                let h = f64::from(diagonal[i % input]);
                (error + h * f64::from(a - b).powi(2), energy + h * f64::from(a).powi(2))
            });
            let found = sums.0 / sums.1;
            if let Some(said) = by_name(report)[name]["weighted_nmse"].as_f64() {
                close(said, found);
            }
            found
        };
        assert_eq!(by_name(report)["k_proj.weight"]["weighted_nmse"], Value::Null);
        [of("q_proj.weight"), of("embed_tokens.weight")]
    };
    let (none, levels, continuous) = (
        weighted(&none, "none.nwc"),
        weighted(&levels, "levels.nwc"),
        weighted(&continuous, "continuous.nwc"),
    );
    for tensor in 0..2 {
        let (none, levels, continuous) = (none[tensor], levels[tensor], continuous[tensor]);
        assert!(
            continuous < 0.6 * none && levels < 0.85 * none && continuous < levels,
            "{none} {levels} {continuous}"
        );
    }
}

/// H of inputs that are sums of a few things.
fn whole_h(input: usize, seed: u64) -> Vec<f32> {
    let (things, samples) = (24, 400);
    let mix = Source::Gaussian.matrix(things, input, seed);
    let amounts = Source::Gaussian.matrix(samples, things, seed + 1);
    let mut h = vec![0f32; input * input];
    for amounts in amounts.chunks_exact(things) {
        let at = |k: usize| (0..things).map(|t| amounts[t] * mix[t * input + k]).sum::<f32>();
        let x: Vec<f32> = (0..input).map(at).collect();
        for (i, sum) in h.iter_mut().enumerate() {
            *sum += x[i / input] * x[i % input] / samples as f32;
        }
    }
    h
}

/// tr(E H E^T) of errors [out, in], with H damped as LDLQ does.
fn trace(errors: &[f64], h: &[f32], input: usize) -> f64 {
    let mean = (0..input).map(|k| f64::from(h[k * (input + 1)])).sum::<f64>() / input as f64;
    let damped = |at: usize| f64::from(h[at]) + if at.is_multiple_of(input + 1) { 0.01 * mean } else { 0.0 };
    let mut trace = 0.0;
    for error in errors.chunks_exact(input) {
        for (j, e) in error.iter().enumerate() {
            trace += error.iter().enumerate().map(|(k, f)| e * f * damped(j * input + k)).sum::<f64>();
        }
    }
    trace
}

#[test]
fn each_expert_of_a_stack_has_an_h_of_its_own() {
    let (experts, out, input) = (3, 160, 96);
    let h: Vec<Vec<f32>> = (0..experts).map(|expert| whole_h(input, 10 * expert as u64 + 5)).collect();
    let stack = h.concat();
    // Stacks of [out, in], and of [in, out]: which of them they are a square stack does not tell, but the other one does.
    for inputs_first in [false, true] {
        let sandbox = Sandbox::new();
        let shape = if inputs_first { [experts, input, out] } else { [experts, out, input] };
        let weights = vec![
            Tensor::random("experts.gate_up_proj", DType::F16, &shape, 1),
            Tensor::random("experts.down_proj", DType::BF16, &[experts, input, input], 2),
            Tensor::random("router.weight", DType::F16, &[64, 64], 3),
        ];
        sandbox.model("model", &[("model.safetensors", None, weights)], &[]);
        let names = ["experts.gate_up_proj", "experts.down_proj"];
        let hessian = |name| Tensor::from_values(name, DType::F32, &[experts, input, input], &stack);
        sandbox.model("h", &[("h.safetensors", None, names.map(hessian).to_vec())], &[]);
        let line = "compress model --bits 3 --hessians h/h.safetensors -o a.nwc --force --json";
        let report = sandbox.run(line).json();
        assert!((2.99..=3.0).contains(&number(&report["bits_per_weight"])));
        sandbox.run("verify a.nwc --against model").text();
        sandbox.run("decompress a.nwc -o back --force").text();
        let (original, restored) =
            (sandbox.read("model/model.safetensors"), sandbox.read("back/model.safetensors"));
        for name in names {
            let of = |file: &[u8]| values(&SafeTensors::deserialize(file).unwrap().tensor(name).unwrap());
            let (a, b) = (of(&original), of(&restored));
            let errors: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(a - b)).collect();
            let size = errors.len() / experts;
            let outputs = size / input;
            let trace: f64 = errors
                .chunks_exact(size)
                .zip(&h)
                .map(|(errors, h)| {
                    let at = |i: usize| errors[i % input * outputs + i / input];
                    let turned: Vec<f64> = (0..size).map(at).collect();
                    trace(if inputs_first { &turned } else { errors }, h, input)
                })
                .sum();
            let said = &by_name(&report)[name]["ldlq"];
            let (lost, without) = (number(&said["lost"]), number(&said["lost_without"]));
            assert!((lost / trace - 1.0).abs() < 1e-3, "{name}: {lost} said, {trace} found");
            assert!(lost < 0.7 * without, "{name}: {lost} with feedback, {without} without");
        }
        let open = sandbox.run(&line.replace("-o", "--ldlq off -o")).json();
        assert_eq!(by_name(&open)["experts.down_proj"]["ldlq"], Value::Null);
        // One H for all of them, and too few.
        let few = |count: usize| {
            let h = Tensor::from_values(
                "experts.gate_up_proj",
                DType::F32,
                &[count, input, input],
                &stack[..count * input * input],
            );
            sandbox.model(&format!("h{count}"), &[("h.safetensors", None, vec![h])], &[]);
            sandbox.run(&line.replace("h/h", &format!("h{count}/h")))
        };
        assert_ne!(by_name(&few(1).json())["experts.gate_up_proj"]["ldlq"], Value::Null);
        let refused = few(2);
        let message = refused.error();
        assert!(message.contains("gate_up_proj") && message.contains("3 matrices"), "{message}");
    }
}

#[test]
fn later_columns_make_good_what_earlier_ones_lost() {
    let sandbox = Sandbox::new();
    let (out, input) = (160, 96);
    let weights = vec![
        Tensor::random("q_proj.weight", DType::F16, &[out, input], 1),
        Tensor::random("o_proj.weight", DType::F16, &[out, input], 2),
    ];
    sandbox.model("model", &[("model.safetensors", None, weights)], &[("config.json", "{}")]);
    let h = whole_h(input, 5);
    let hessians = vec![Tensor::from_values("q_proj.weight", DType::F32, &[input, input], &h)];
    sandbox.model("h", &[("h.safetensors", None, hessians)], &[]);
    for how in [
        "",
        "--importance none",
        "--quantizer scalar",
        "--quantizer trellis8 --importance levels",
        "--codec hadamard --everywhere",
        "--row-alpha 0",
    ] {
        let line =
            format!("compress model --bits 3 --hessians h/h.safetensors {how} -o a.nwc --force --json");
        let report = sandbox.run(&line).json();
        assert!((2.99..=3.0).contains(&report["bits_per_weight"].as_f64().unwrap()), "{how}");
        assert_eq!(by_name(&report)["o_proj.weight"]["ldlq"], Value::Null);
        let said = &by_name(&report)["q_proj.weight"]["ldlq"];
        let [lost, without, damping] =
            ["lost", "lost_without", "damping"].map(|key| said[key].as_f64().unwrap());
        close(damping, 0.01);
        assert!(lost < 0.7 * without, "{how}: {lost} with feedback, {without} without");
        // tr(E H E^T) of what a decoder restores.
        sandbox.run("decompress a.nwc -o back --force").text();
        let (original, restored) =
            (sandbox.read("model/model.safetensors"), sandbox.read("back/model.safetensors"));
        let of =
            |file: &[u8]| values(&SafeTensors::deserialize(file).unwrap().tensor("q_proj.weight").unwrap());
        let (a, b) = (of(&original), of(&restored));
        let errors: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(a - b)).collect();
        let trace = trace(&errors, &h, input);
        assert!((lost / trace - 1.0).abs() < 1e-3, "{how}: {lost} said, {trace} found");
        let open = sandbox.run(&line.replace("-o a.nwc", "--ldlq off -o b.nwc")).json();
        assert_eq!(by_name(&open)["q_proj.weight"]["ldlq"], Value::Null);
    }
}

#[test]
fn steps_follow_the_importance_of_outputs() {
    let sandbox = Sandbox::new();
    let (out, input) = (384, 256);
    let weights = vec![
        Tensor::random("loud", DType::F32, &[out, input], 1),
        Tensor::random("quiet", DType::F32, &[out, input], 2),
    ];
    sandbox.model("model", &[("model.safetensors", None, weights)], &[("config.json", "{}")]);
    let flat = vec![1f32; input];
    // The first half of outputs matters 16 times as much; all of one tensor four times as much as all of the other.
    let outputs = |times: f32| -> Vec<f32> {
        (0..out).map(|output| times * if output < out / 2 { 16.0 } else { 1.0 }).collect()
    };
    let hessians = vec![
        Tensor::from_values("loud", DType::F32, &[input], &flat),
        Tensor::from_values("loud/outputs", DType::F32, &[out], &outputs(4.0)),
        Tensor::from_values("quiet", DType::F32, &[input], &flat),
        Tensor::from_values("quiet/outputs", DType::F32, &[out], &outputs(1.0)),
    ];
    sandbox.model("h", &[("h.safetensors", None, hessians)], &[]);
    let report = sandbox.run("compress model --bits 4 --hessians h/h.safetensors -o a.nwc --json").json();
    let nmse = |name: &str| by_name(&report)[name]["nmse"].as_f64().unwrap();
    // A factor of 4 in importance is one in error, a bit.
    let ratio = nmse("quiet") / nmse("loud");
    assert!((3.0..5.0).contains(&ratio), "{ratio}");
    sandbox.run("decompress a.nwc -o back").text();
    let (original, restored) =
        (sandbox.read("model/model.safetensors"), sandbox.read("back/model.safetensors"));
    let of = |file: &[u8]| values(&SafeTensors::deserialize(file).unwrap().tensor("loud").unwrap());
    let (a, b) = (of(&original), of(&restored));
    let half = out / 2 * input;
    let error = |range: std::ops::Range<usize>| -> f64 {
        a[range.clone()].iter().zip(&b[range]).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    // Half of the way: a factor of 16 in importance is one of 4 in error.
    let ratio = error(half..2 * half) / error(0..half);
    assert!((3.0..5.0).contains(&ratio), "{ratio}");

    // One of another number of outputs is named.
    let hessians = vec![
        Tensor::from_values("loud", DType::F32, &[input], &flat),
        Tensor::from_values("loud/outputs", DType::F32, &[3], &[1.0; 3]),
    ];
    sandbox.model("bad", &[("h.safetensors", None, hessians)], &[]);
    let failed = sandbox.run("compress model --bits 4 --hessians bad/h.safetensors -o b.nwc");
    let failed = failed.error();
    assert!(failed.contains("loud") && failed.contains("384 outputs"), "{failed}");
}

/// Two shards with one of every kind of tensor.
fn shards() -> Vec<WeightFile> {
    let embedding = Tensor::random("embed_tokens.weight", DType::F16, &[300, 64], 1);
    let mut bad = Source::Gaussian.matrix(64, 64, 2);
    bad[1000] = f32::NAN;
    let head = embedding.named("lm_head.weight");
    let metadata = [("format", "pt"), ("note", "a \"quoted\" note")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    vec![
        (
            "model-00001-of-00002.safetensors",
            Some(metadata),
            vec![
                embedding,
                Tensor::random("experts.w1", DType::BF16, &[4, 32, 64], 3),
                Tensor::random("vision.conv.weight", DType::F32, &[32, 3, 5, 5], 4),
                Tensor::random("norm.weight", DType::F32, &[64], 5),
            ],
        ),
        (
            "model-00002-of-00002.safetensors",
            None,
            vec![
                head,
                Tensor::from_values("bad.weight", DType::F32, &[64, 64], &bad),
                Tensor::new(
                    "position_ids",
                    DType::I64,
                    &[1, 77],
                    (0..77u64).flat_map(u64::to_le_bytes).collect(),
                ),
                Tensor::new("flag", DType::Bool, &[], vec![1]),
                Tensor::new("nothing", DType::F16, &[0, 64], Vec::new()),
                Tensor::random("layers.0.fc.weight", DType::F32, &[96, 80], 6),
            ],
        ),
    ]
}

const INDEX: &str = r#"{"metadata":{},"weight_map":{"embed_tokens.weight":"model-00001-of-00002.safetensors",
"lm_head.weight":"model-00002-of-00002.safetensors"}}"#;

#[test]
fn a_sharded_folder_comes_back_as_it_was() {
    let sandbox = Sandbox::new();
    let others = [
        ("model.safetensors.index.json", INDEX),
        ("config.json", "{}"),
        ("merges.txt", "a b\r\n"),
        ("empty", ""),
    ];
    sandbox.model("sharded", &shards(), &others);
    sandbox.write("sharded/pytorch_model.bin", "other weights");
    let run = sandbox.run("compress sharded --bits 4 -o a.nwc --json");
    let warnings: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(
        warnings,
        [
            "warning: pytorch_model.bin is not taken along: weights that are not part of this model",
            "warning: tensor \"bad.weight\" holds NaN or infinity: stored raw"
        ]
    );
    let report = run.json();
    check_report(&report, sandbox.read("a.nwc").len() as u64);
    let codings: Vec<_> = report["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| (tensor["name"].as_str().unwrap(), tensor["coding"].as_str().unwrap()))
        .collect();
    let expected = HashMap::from([
        ("embed_tokens.weight", "coded"),
        ("experts.w1", "coded"),
        ("vision.conv.weight", "coded"),
        ("norm.weight", "raw"),
        ("lm_head.weight", "alias"),
        ("bad.weight", "raw"),
        ("position_ids", "raw"),
        ("flag", "raw"),
        ("nothing", "raw"),
        ("layers.0.fc.weight", "coded"),
    ]);
    assert_eq!(codings.len(), expected.len());
    codings.iter().for_each(|(name, coding)| assert_eq!(*coding, expected[name], "{name}"));

    sandbox.run("decompress a.nwc -o back").text();
    let names = |folder: &str| -> BTreeSet<_> {
        fs::read_dir(sandbox.path(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let mut before = names("sharded");
    before.remove("pytorch_model.bin".as_ref() as &std::ffi::OsStr);
    assert_eq!(names("back"), before);
    for (name, content) in others {
        assert_eq!(sandbox.read(&format!("back/{name}")), content.as_bytes(), "{name}");
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (number, restored) in [(1, &mut first), (2, &mut second)] {
        let name = format!("model-0000{number}-of-00002.safetensors");
        *restored = sandbox.read(&format!("back/{name}"));
        check_restored(&sandbox.read(&format!("sharded/{name}")), restored, &report);
    }
    let (first, second) =
        (SafeTensors::deserialize(&first).unwrap(), SafeTensors::deserialize(&second).unwrap());
    let (tied, head) =
        (first.tensor("embed_tokens.weight").unwrap(), second.tensor("lm_head.weight").unwrap());
    assert!(tied.data() == head.data());

    let verdict = sandbox.run("verify a.nwc --against sharded --json").json();
    assert_eq!((&verdict["ok"], &verdict["tensors"]), (&Value::from(true), &Value::from(10)));
    // Not to the last digit: the tied tensor counts once in one of them, twice in the other.
    let ratio = number(&verdict["nmse"]) / number(&report["nmse"]);
    assert!((0.99..1.01).contains(&ratio), "{ratio}");
    let worst = verdict["worst"]["name"].as_str().unwrap();
    assert_eq!(expected[worst], "coded");

    // Another type touches weights only, and takes NaN along.
    sandbox.run("decompress a.nwc -o wide --dtype f32").text();
    let wide = sandbox.read("wide/model-00002-of-00002.safetensors");
    let wide = SafeTensors::deserialize(&wide).unwrap();
    assert_eq!(wide.tensor("position_ids").unwrap().dtype(), Dtype::I64);
    assert_eq!(wide.tensor("flag").unwrap().data(), [1]);
    assert_eq!(wide.tensor("nothing").unwrap().shape(), [0, 64]);
    assert_eq!(wide.tensor("lm_head.weight").unwrap().dtype(), Dtype::F32);
    assert!(values(&wide.tensor("bad.weight").unwrap())[1000].is_nan());

    // One shard alone is a model too, and comes back under its name.
    sandbox.run("compress sharded/model-00001-of-00002.safetensors --step 0.2 -o one.nwc").text();
    sandbox.run("decompress one.nwc -o one").text();
    assert_eq!(names("one").len(), 1);
    sandbox.read("one/model-00001-of-00002.safetensors");
}

#[test]
fn verify_tells_a_container_from_another_model() {
    let sandbox = Sandbox::new();
    let model = |folder: &str, fc: Tensor, more: &str| {
        let bias = Tensor::random("fc.bias", DType::F32, &[16], if folder == "b" { 9 } else { 2 });
        let more = Tensor::random(more, DType::F32, &[16], 3);
        sandbox.model(folder, &[("model.safetensors", None, vec![fc, bias, more])], &[]);
    };
    model("a", Tensor::random("fc.weight", DType::F32, &[64, 64], 1), "old");
    model("b", Tensor::random("fc.weight", DType::F32, &[64, 65], 1), "new");
    sandbox.run("compress a --step 0.2 -o a.nwc").text();
    let run = sandbox.run("verify a.nwc --against b --json");
    assert_eq!(run.code, Some(1), "{run:?}");
    let verdict = run.any_json();
    assert_eq!(verdict["ok"], false);
    let errors: Vec<_> = verdict["errors"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    for name in ["fc.weight", "fc.bias", "old", "new"] {
        let about = errors.iter().filter(|error| error.contains(&format!("\"{name}\""))).count();
        assert_eq!(about, 1, "{name}: {errors:?}");
    }
    assert!(errors.iter().all(|error| error.starts_with("a.nwc: ")), "{errors:?}");
}

#[test]
fn seek_points_are_counted_and_verified() {
    let sandbox = Sandbox::new();
    let tensors = vec![
        Tensor::random("layers.0.weight", DType::F16, &[700, 300], 1),
        Tensor::random("wte.weight", DType::BF16, &[500, 130], 2),
        Tensor::random("layers.1.bias", DType::F16, &[64], 3),
    ];
    sandbox.model("model", &[("model.safetensors", None, tensors)], &[("config.json", "{}")]);
    for codec in ["identity", "hadamard --everywhere"] {
        let line = format!("compress model --bits 4 --codec {codec} --json --force");
        let without = sandbox.run(&format!("{line} -o without.nwc")).json();
        let with = sandbox.run(&format!("{line} -o with.nwc --seek-points 256")).json();
        let rate = number(&with["bits_per_weight"]);
        assert!((3.99..=4.0).contains(&rate), "{rate}");
        assert!(number(&with["split"]["directory"]) > number(&without["split"]["directory"]) + 1000.0);
        assert_eq!(sandbox.run("inspect without.nwc --json").json()["seek_points"], 0);
        // 275000 weights, of which a part of a tile has at most 256 rows of 32 columns.
        let points = number(&sandbox.run("inspect with.nwc --json").json()["seek_points"]);
        assert!(points > 15.0, "{points}");
        assert_eq!(sandbox.run("verify with.nwc --against model --json").json()["nmse"], with["nmse"]);

        // A point that lies, under a right checksum: SEEK is the third section.
        let mut bytes = sandbox.read("with.nwc");
        let field =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let section = field(&bytes, 24 + 48 + 8)..field(&bytes, 24 + 48 + 8) + field(&bytes, 24 + 48 + 16);
        bytes[section.start + 4 + 12 + 8] ^= 1; // words read before the first point
        let crc = crc32fast::hash(&bytes[section]);
        bytes[24 + 48 + 4..24 + 48 + 8].copy_from_slice(&crc.to_le_bytes());
        let header = [&bytes[..12], &bytes[16..24 + 24 * 5]].concat();
        bytes[12..16].copy_from_slice(&crc32fast::hash(&header).to_le_bytes());
        fs::write(sandbox.path("lying.nwc"), bytes).unwrap();
        let run = sandbox.run("verify lying.nwc --json");
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.stdout.contains("seek point"), "{run:?}");
    }
}

#[test]
fn the_number_of_threads_does_not_change_the_file() {
    let sandbox = Sandbox::new();
    let mut tensors: Vec<Tensor> = (0..6)
        .map(|i| Tensor::random(&format!("layers.{i}.fc.weight"), DType::F16, &[256, 200 + 30 * i], i as u64))
        .collect();
    tensors.push(Tensor::random("wte.weight", DType::BF16, &[500, 64], 10));
    tensors.push(Tensor::random("experts", DType::F32, &[3, 100, 90], 11));
    sandbox.model("model", &[("model.safetensors", None, tensors)], &[("config.json", "{}")]);
    for quantizer in ["scalar", "trellis8"] {
        for jobs in [1, 3] {
            let line = format!(
                "compress model --bits 3 --quantizer {quantizer} --jobs {jobs} -o {jobs}.nwc --force"
            );
            sandbox.run(&line).text();
            sandbox.run(&format!("decompress {jobs}.nwc --jobs {jobs} -o {jobs} --force")).text();
        }
        assert!(sandbox.read("1.nwc") == sandbox.read("3.nwc"), "{quantizer}");
        assert!(sandbox.read("1/model.safetensors") == sandbox.read("3/model.safetensors"), "{quantizer}");
    }
}

#[test]
fn a_dry_run_reports_the_same_and_writes_nothing() {
    let Some(sandbox) = Sandbox::with_clip() else { return };
    let before = sandbox.listing();
    let mut dry = sandbox.run("compress clip --bits 3 --dry-run -o a.nwc --json").json();
    assert_eq!(sandbox.listing(), before);
    assert_eq!(dry["dry_run"], true);
    let mut real = sandbox.run("compress clip --bits 3 -o a.nwc --json").json();
    for report in [&mut dry, &mut real] {
        let fields = report.as_object_mut().unwrap();
        fields.remove("seconds");
        fields.remove("dry_run");
    }
    assert_eq!(dry, real);
    assert!(sandbox.run("compress clip --bits 3 --dry-run").text().contains("nothing written (dry run)"));
}

#[test]
fn outputs_that_exist_are_replaced_by_force_only() {
    let sandbox = Sandbox::new();
    let file = |seed| {
        vec![("model.safetensors", None, vec![Tensor::random("fc.weight", DType::F32, &[64, 64], seed)])]
    };
    sandbox.model("model", &file(1), &[("config.json", "{}")]);
    sandbox.write("a.nwc", "precious");
    sandbox.write("out/precious.txt", "precious");
    let before = sandbox.listing();
    assert!(sandbox.run("compress model --step 0.2 -o a.nwc").error().contains("--force"));
    assert_eq!((sandbox.read("a.nwc"), sandbox.listing()), (b"precious".to_vec(), before));

    // A failure after the output was begun leaves the old file too.
    sandbox.run("compress model --bits 90 -o a.nwc --force").error();
    assert_eq!(sandbox.read("a.nwc"), b"precious");
    sandbox.run("compress model --step 0.2 -o a.nwc --force").text();
    assert!(sandbox.run("verify a.nwc --against model").text().contains("good"));

    let before = sandbox.listing();
    assert!(sandbox.run("decompress a.nwc -o out").error().contains("--force"));
    assert_eq!(sandbox.listing(), before);
    sandbox.run("decompress a.nwc -o out --force").text();
    assert!(!sandbox.path("out/precious.txt").exists());
    assert_eq!(sandbox.read("out/config.json"), b"{}");
    // An empty folder is as good as none.
    fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.run("decompress a.nwc -o empty").text();

    // The container must not go with the folder that is replaced.
    sandbox.write("out/inside.nwc", sandbox.read("a.nwc"));
    let refused = sandbox.run("decompress out/inside.nwc -o out --force");
    assert!(refused.error().contains("would be replaced"), "{refused:?}");
    assert!(sandbox.path("out/inside.nwc").exists());
    assert!(!sandbox.listing().iter().any(|name| name.contains(".nwc-")), "{:?}", sandbox.listing());
}

#[cfg(unix)]
mod interrupted {
    use std::io::{BufRead, BufReader, Read};

    use super::*;

    /// Runs the program, and sends it what Ctrl-C does when it says that it has begun `stage`.
    fn interrupt(sandbox: &Sandbox, line: &str, stage: &str) -> Run {
        let mut child = sandbox
            .command(&format!("{line} -v"))
            .env("TMPDIR", sandbox.path("tmp"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut messages = BufReader::new(child.stderr.take().unwrap());
        let mut message = String::new();
        while message.trim_end() != stage {
            message.clear();
            assert_ne!(messages.read_line(&mut message).unwrap(), 0, "{line}: ended before {stage}");
        }
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let mut stderr = String::new();
        messages.read_to_string(&mut stderr).unwrap();
        Run { line: line.to_owned(), code: child.wait().unwrap().code(), stdout: String::new(), stderr }
    }

    /// The program must end with status 130 and leave the folder as it was. On a busy machine the signal can come too late, when the work is done.
    fn leaves_nothing(sandbox: &Sandbox, line: &str, stage: &str, output: &str) {
        let before = sandbox.listing();
        for _ in 0..5 {
            let run = interrupt(sandbox, line, stage);
            if run.code == Some(0) {
                let output = sandbox.path(output);
                if output.is_dir() { fs::remove_dir_all(output) } else { fs::remove_file(output) }.unwrap();
                continue;
            }
            assert_eq!(run.code, Some(130), "{run:?}");
            let last = run.stderr.lines().last().unwrap();
            assert!(
                last.starts_with("error: ") && last.contains("interrupted, nothing was written"),
                "{run:?}"
            );
            assert_eq!(sandbox.listing(), before, "{line}");
            return;
        }
        panic!("{line}: ended five times before it could be interrupted");
    }

    /// 4 million weights, and tensors that differ from them in order.
    fn large(count: usize, same: bool) -> Vec<WeightFile> {
        let first = Tensor::random("layers.0.weight", DType::F16, &[2048, 2048], 1);
        let tensors = (0..count).map(|i| {
            let mut tensor = first.named(&format!("layers.{i}.weight"));
            tensor.bytes.rotate_left(if same { 0 } else { 4098 * i });
            tensor
        });
        vec![("model.safetensors", None, tensors.collect())]
    }

    #[test]
    fn compress_leaves_nothing() {
        let sandbox = Sandbox::new();
        fs::create_dir(sandbox.path("tmp")).unwrap();
        sandbox.model("large", &large(10, false), &[]);
        for stage in ["measuring", "coding"] {
            leaves_nothing(&sandbox, "compress large --bits 4 -o a.nwc", stage, "a.nwc");
        }
        sandbox.write("old.nwc", "precious");
        leaves_nothing(&sandbox, "compress large --step 0.2 -o old.nwc --force", "coding", "none");
        assert_eq!(sandbox.read("old.nwc"), b"precious");
    }

    #[test]
    fn decompress_leaves_nothing() {
        let sandbox = Sandbox::new();
        fs::create_dir(sandbox.path("tmp")).unwrap();
        // Copies cost nothing to compress, but each is decoded.
        sandbox.model("large", &large(12, true), &[("config.json", "{}")]);
        sandbox.run("compress large --step 0.2 -o a.nwc").text();
        leaves_nothing(&sandbox, "decompress a.nwc -o out", "decoding", "out");
    }
}

/// Where the middle of a tensor's data lies in a container.
fn data_position(file: &[u8], tensor: &str) -> usize {
    let container = Container::open(file, &Limits::default()).unwrap();
    let tensor = container.find(tensor).unwrap();
    let data = match tensor.coding() {
        Coding::Coded => tensor.coded().unwrap().tile(0).unwrap().stream().0,
        _ => tensor.raw(Checks::All).unwrap(),
    };
    data.as_ptr().addr() - file.as_ptr().addr() + data.len() / 2
}

/// A container `good.nwc` of a small model.
fn small_container() -> Sandbox {
    let sandbox = Sandbox::new();
    let tensors = vec![
        Tensor::random("layers.0.fc.weight", DType::F16, &[96, 64], 1),
        Tensor::random("layers.0.fc.bias", DType::F16, &[96], 2),
        Tensor::random("layers.1.fc.weight", DType::F16, &[64, 96], 3),
    ];
    let config = r#"{"model_type": "test", "text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#;
    sandbox.model("model", &[("model.safetensors", None, tensors)], &[("config.json", config)]);
    sandbox.run("compress model --bits 4 -o good.nwc").text();
    sandbox
}

#[test]
fn damaged_data_is_named_and_nothing_is_written() {
    let sandbox = small_container();
    for tensor in ["layers.0.fc.weight", "layers.0.fc.bias", "layers.1.fc.weight"] {
        sandbox.write("bad.nwc", sandbox.read("good.nwc"));
        sandbox.flip("bad.nwc", data_position(&sandbox.read("good.nwc"), tensor));
        let before = sandbox.listing();

        // The directory is whole, so what is inside can still be listed.
        sandbox.run("inspect bad.nwc --json").json();
        let run = sandbox.run("verify bad.nwc --json");
        assert_eq!(run.code, Some(1), "{run:?}");
        let verdict = run.any_json();
        assert_eq!((&verdict["ok"], &verdict["tensors"]), (&Value::from(false), &Value::from(2)));
        let errors = verdict["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{errors:?}");
        let expected = format!("bad.nwc: tensor \"{tensor}\": data checksum differs");
        assert!(errors[0].as_str().unwrap().starts_with(&expected), "{errors:?}");
        let text = sandbox.run("verify bad.nwc");
        assert!(
            text.code == Some(1) && text.stdout.contains(&expected) && text.stdout.contains("BAD"),
            "{text:?}"
        );

        let run = sandbox.run("decompress bad.nwc -o out");
        assert!(run.error().starts_with(&format!("error: {expected}")), "{run:?}");
        assert!(run.error().contains("; copy or download the file again"), "{run:?}");
        assert_eq!(sandbox.listing(), before);
    }
}

#[test]
fn damage_anywhere_is_found_and_never_ends_the_program_badly() {
    let sandbox = small_container();
    let good = sandbox.read("good.nwc");
    let all = || sandbox.listing();
    sandbox.write("bad.nwc", &good);
    let before = all();
    let mut found = 0;
    for position in (0..good.len()).step_by(good.len() / 80) {
        sandbox.write("bad.nwc", &good);
        sandbox.flip("bad.nwc", position);
        let run = sandbox.run("verify bad.nwc");
        match run.code {
            Some(1) => found += 1,
            // Between sections and items lies padding, which nothing reads.
            Some(0) if good[position] == 0 => {}
            _ => panic!("byte {position}: {run:?}"),
        }
    }
    assert!(found > 70, "{found}");
    for len in [0, 1, 7, 8, 23, 24, 100, good.len() / 2, good.len() - 1] {
        sandbox.write("bad.nwc", &good[..len]);
        for line in ["inspect bad.nwc", "decompress bad.nwc -o out"] {
            let run = sandbox.run(line);
            assert!(run.error().starts_with("error: bad.nwc: the file is cut short"), "{len}: {run:?}");
        }
        assert_eq!(sandbox.run("verify bad.nwc").code, Some(1), "{len}");
    }
    assert_eq!(all(), before);
}

/// A safetensors file with this header and so many bytes of values.
fn raw_safetensors(header: &str, values: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + values, 0);
    bytes
}

/// Checks that each call is refused as it should be, and gives their messages for a snapshot. With each line goes what its message must name.
fn refusals(sandbox: &Sandbox, calls: &[(&str, &[&str])]) -> String {
    let before = sandbox.listing();
    let dir = sandbox.dir.path().to_str().unwrap();
    let (mut text, mut faults) = (String::new(), Vec::new());
    for (line, names) in calls {
        let run = sandbox.run(line);
        let message = run.error();
        faults.extend(
            names.iter().filter(|name| !message.contains(*name)).map(|name| format!("{name}: {run:?}")),
        );
        if message.rsplit_once("; ").is_none_or(|(_, remedy)| remedy.len() < 10) {
            faults.push(format!("a remedy: {run:?}"));
        }
        assert_eq!(sandbox.listing(), before, "{line}");
        let _ = writeln!(text, "$ nwc-encode {line}\n{}\n", message.replace(dir, "[DIR]"));
    }
    assert!(faults.is_empty(), "messages that lack something:\n{}", faults.join("\n"));
    text
}

// The messages quote the operating system, whose words differ elsewhere.
#[cfg(unix)]
#[test]
fn messages_about_options() {
    let sandbox = small_container();
    let messages = refusals(
        &sandbox,
        &[
            ("inspect good.nwc --jobs 0", &["--jobs"]),
            ("inspect good.nwc --jobs 1000000", &["--jobs"]),
            ("compress model --bits 4 -o a.nwc --quantizer trellis12", &["trellis12", "trellis16"]),
            ("compress model --bits 4 -o a.nwc --codec dct", &["dct", "hadamard"]),
            ("compress model --bits 4 -o a.nwc --codec model/model.safetensors", &["network", "train"]),
            ("compress model --bits 4 -o a.nwc --seek-points 15", &["--seek-points", "16"]),
            ("compress model --bits 4 -o a.nwc --row-alpha 1.5", &["--row-alpha"]),
            ("compress model --bits 4 -o a.nwc --row-alpha nan", &["--row-alpha"]),
            ("compress model --bits 4 -o a.nwc --importance levels", &["--hessians"]),
            ("compress model --bits 4 -o a.nwc --hessians none.safetensors", &["none.safetensors: "]),
            ("compress model --bits 4 --bits-for none=5 -o a.nwc", &["model: ", "\"none\""]),
            (
                "compress model --bits 4 --bits-for .=4 --bits-for weight=5 -o a.nwc",
                &["model: ", "\"weight\""],
            ),
            ("compress model --bits 4 --bits-for .=0 -o a.nwc", &["model: "]),
            ("compress model --bits 4 --bits-for .=nan -o a.nwc", &["model: "]),
            ("compress model --bits 0 -o a.nwc", &["model: "]),
            ("compress model --bits=-1 -o a.nwc", &["model: "]),
            ("compress model --bits nan -o a.nwc", &["model: "]),
            ("compress model --bits inf -o a.nwc", &["model: "]),
            ("compress model --step 0 -o a.nwc", &["model: "]),
            ("compress model --step 100 -o a.nwc", &["model: "]),
            ("bench rd --source gaussian --n 1000 --bits 4", &["--n 1000"]),
            ("compress model --bits 4 -o good.nwc", &["good.nwc: ", "--force"]),
            ("compress model --bits 4 -o model --force", &["model: ", "folder"]),
            ("compress model --bits 4 -o {DIR}/none/a.nwc", &["none/a.nwc: "]),
            ("compress model --bits 4 -o good.nwc/a.nwc", &["good.nwc/a.nwc: "]),
            ("decompress good.nwc -o model", &["model: ", "--force"]),
            ("decompress good.nwc -o model/config.json --force", &["model/config.json: "]),
            ("decompress good.nwc -o none/out", &["none/out: "]),
            ("decompress good.nwc -o . --force", &[".: "]),
        ],
    );
    insta::assert_snapshot!(messages);
}

#[cfg(unix)]
#[test]
fn messages_about_models() {
    let sandbox = small_container();
    let weight = |name: &str, shape: &[usize]| {
        let bytes = vec![0; shape.iter().product::<usize>() * 4];
        vec![("model.safetensors", None, vec![Tensor::new(name, DType::F32, shape, bytes)])]
    };
    sandbox.model("no-weights", &[], &[("config.json", "{}")]);
    sandbox.model("pickle", &[], &[("pytorch_model.bin", "x")]);
    sandbox.model("no-name", &weight("", &[2]), &[]);
    sandbox.model("long-name", &weight(&"n".repeat(300), &[2]), &[]);
    sandbox.model("nine-dimensions", &weight("deep", &[2, 1, 1, 1, 1, 1, 1, 1, 1]), &[]);
    let index = |shard: &str| format!(r#"{{"weight_map":{{"w":"{shard}"}}}}"#);
    sandbox.write("missing-shard/model.safetensors.index.json", index("model-00002-of-00002.safetensors"));
    sandbox.write("escape/model.safetensors.index.json", index("../model/model.safetensors"));
    sandbox.write("bad-index/model.safetensors.index.json", "{");
    sandbox.write("two/a.safetensors", "");
    sandbox.write("two/b.safetensors", "");
    sandbox.write("bad-header.safetensors", raw_safetensors("{not json}", 0));
    sandbox.write(
        "bad-shape.safetensors",
        raw_safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
    );
    sandbox.write(
        "four-bits.safetensors",
        raw_safetensors(r#"{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1),
    );
    sandbox.write(
        "cut.safetensors",
        raw_safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 5),
    );
    sandbox.write("empty.safetensors", "");
    sandbox.write("pointer.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    sandbox.write("renamed.safetensors", sandbox.read("good.nwc"));
    let call = |model: &str| format!("compress {model} --bits 4 -o a.nwc");
    let calls: [(&str, &[&str]); 19] = [
        ("none", &["none: "]),
        ("{DIR}/none.safetensors", &["none.safetensors: "]),
        ("good.nwc", &["good.nwc: "]),
        ("no-weights", &["no-weights: "]),
        ("pickle", &["pickle: ", "pytorch_model.bin"]),
        ("two", &["two: ", "a.safetensors", "b.safetensors"]),
        ("missing-shard", &["model.safetensors.index.json: ", "model-00002-of-00002.safetensors"]),
        ("escape", &["model.safetensors.index.json: ", "../model/model.safetensors"]),
        ("bad-index", &["bad-index/model.safetensors.index.json: "]),
        ("no-name", &["no-name: ", "tensor \"\""]),
        ("long-name", &["long-name: ", "tensor \"nnn"]),
        ("nine-dimensions", &["nine-dimensions: ", "tensor \"deep\""]),
        ("bad-header.safetensors", &["bad-header.safetensors: "]),
        ("bad-shape.safetensors", &["bad-shape.safetensors: ", "tensor \"w\""]),
        ("four-bits.safetensors", &["four-bits.safetensors: ", "tensor \"w\""]),
        ("cut.safetensors", &["cut.safetensors: "]),
        ("empty.safetensors", &["empty.safetensors: "]),
        ("pointer.safetensors", &["pointer.safetensors: "]),
        ("renamed.safetensors", &["renamed.safetensors: "]),
    ];
    let lines = calls.map(|(model, names)| (call(model), names));
    let lines: Vec<(&str, &[&str])> = lines.iter().map(|(line, names)| (line.as_str(), *names)).collect();
    let messages = refusals(&sandbox, &lines);
    insta::assert_snapshot!(messages);
}

#[cfg(unix)]
#[test]
fn messages_about_containers() {
    let sandbox = small_container();
    let good = sandbox.read("good.nwc");
    sandbox.write("empty.nwc", "");
    sandbox.write("cut.nwc", &good[..good.len() / 2]);
    sandbox.write("long.nwc", [&good, &b"more"[..]].concat());
    let changed = |name: &str, position: usize| {
        sandbox.write(name, &good);
        sandbox.flip(name, position);
    };
    changed("newer.nwc", 8);
    changed("header.nwc", 30);
    changed("attachment.nwc", good.len() - 20);
    changed("tensor.nwc", data_position(&good, "layers.1.fc.weight"));
    let manifest = |name: &str, tensors: &str| {
        format!(r#"{{"files":[{{"name":"{name}","metadata":null,"tensors":{tensors}}}]}}"#)
    };
    sandbox.container("evil.nwc", &[("../evil.txt", "evil")]);
    sandbox.container("evil-weights.nwc", &[("nwc:source", &manifest("../w.safetensors", "[0]"))]);
    sandbox.container("no-json.nwc", &[("nwc:source", "{")]);
    sandbox.container("no-such-tensor.nwc", &[("nwc:source", &manifest("w.safetensors", "[0,7]"))]);
    sandbox.container("left-out.nwc", &[("nwc:source", &manifest("w.safetensors", "[]"))]);
    sandbox.container("taken.nwc", &[("nwc:source", &manifest("a.txt", "[0]")), ("a.txt", "text")]);
    sandbox.container("raw.nwc", &[]);
    let messages = refusals(
        &sandbox,
        &[
            ("inspect none.nwc", &["none.nwc: "]),
            ("verify {DIR}/none.nwc", &["none.nwc: "]),
            ("inspect model", &["model: "]),
            ("inspect model/model.safetensors", &["model/model.safetensors: "]),
            ("decompress model/config.json -o out", &["model/config.json: "]),
            ("inspect empty.nwc", &["empty.nwc: "]),
            ("inspect cut.nwc", &["cut.nwc: "]),
            ("inspect long.nwc", &["long.nwc: "]),
            ("inspect newer.nwc", &["newer.nwc: "]),
            ("inspect header.nwc", &["header.nwc: "]),
            ("decompress attachment.nwc -o out", &["attachment.nwc: "]),
            ("decompress tensor.nwc -o out", &["tensor.nwc: ", "tensor \"layers.1.fc.weight\""]),
            ("decompress evil.nwc -o out", &["evil.nwc: "]),
            ("decompress evil-weights.nwc -o out", &["evil-weights.nwc: ", "../w.safetensors"]),
            ("decompress no-json.nwc -o out", &["no-json.nwc: "]),
            ("decompress no-such-tensor.nwc -o out", &["no-such-tensor.nwc: "]),
            ("decompress left-out.nwc -o out", &["left-out.nwc: "]),
            ("decompress taken.nwc -o out", &["a.txt: "]),
            ("bench decode raw.nwc", &["raw.nwc: "]),
            ("verify good.nwc --against good.nwc", &["good.nwc: "]),
            ("verify good.nwc --against none", &["none: "]),
        ],
    );
    insta::assert_snapshot!(messages);
}

#[test]
fn wrong_usage_ends_with_status_2() {
    let sandbox = small_container();
    for line in [
        "frobnicate",
        "compress",
        "compress model -o a.nwc",
        "compress model --bits 4",
        "compress model --bits 4 --size 1000 -o a.nwc",
        "compress model --bits four -o a.nwc",
        "compress model --size -3 -o a.nwc",
        "compress model --bits 4 -o a.nwc --include (",
        "compress model --bits 4 -o a.nwc --bits-for (=4",
        "compress model --bits 4 -o a.nwc --bits-for weight",
        "compress model --bits 4 -o a.nwc --bits-for weight=four",
        "decompress good.nwc",
        "decompress good.nwc -o out --dtype f8",
        "bench rd --bits 4",
        "bench rd model --source gaussian --bits 4",
        "completions tcsh",
    ] {
        let run = sandbox.run(line);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:?}");
        assert!(run.stderr.starts_with("error: "), "{run:?}");
    }
}

#[test]
fn bench_measures_a_source_and_a_container() {
    let sandbox = small_container();
    let rd = sandbox.run("bench rd --source gaussian --n 262144 --bits 3 --json").json();
    let bits = number(&rd["bits_per_weight"]);
    assert!((2.99..=3.0).contains(&bits), "{rd}");
    close(number(&rd["nmse_times_4r"]), number(&rd["nmse"]) * 4f64.powf(bits));
    // Not better than Shannon's bound, better than scalar quantisation.
    assert!((1.0..1.42).contains(&number(&rd["nmse_times_4r"])), "{rd}");
    assert!((0.0..0.1).contains(&number(&rd["entropy_overhead"])), "{rd}");
    let again = sandbox.run("bench rd --source gaussian --n 262144 --bits 3 --seed 2 --json").json();
    assert_ne!(rd["nmse"], again["nmse"]);

    let decode = sandbox.run("bench decode good.nwc --threads 2 --runs 3 --json").json();
    assert_eq!(decode["threads"], 2);
    assert!(number(&decode["symbols_per_second"]) > 0.0 && number(&decode["weights_per_second"]) > 0.0);
}

#[test]
fn version_and_completions() {
    let sandbox = Sandbox::new();
    let version = sandbox.run("--version");
    let expected =
        format!("nwc-encode {} (container format: reads 1, writes 1)\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.text(), expected);
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.run(&format!("completions {shell}"));
        assert!(script.text().contains("nwc-encode") && script.text().contains("decompress"), "{shell}");
        assert_eq!(script.stderr, "");
    }
    for command in ["", "compress", "decompress", "inspect", "verify", "bench rd", "bench decode"] {
        assert!(sandbox.run(&format!("{command} --help")).text().contains("Usage: nwc-encode"), "{command}");
    }
}

#[test]
fn a_closed_pipe_is_no_reason_to_panic() {
    let sandbox = small_container();
    for line in ["inspect good.nwc --tensors", "inspect good.nwc --json", "completions bash", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sandbox.command(line).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{line}");
    }
}

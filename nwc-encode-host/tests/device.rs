//! `--device cuda`: on a GPU where there is one, and otherwise a clear word and nothing written.

use std::path::Path;
use std::process::{Command, Output};

use nwc_encode_host::compress::{Settings, Target, compress};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::OwnedTensors;

fn container(path: &Path) {
    let mut tensors = OwnedTensors::default();
    tensors.push_f32("a", &[96, 64], &Source::Gaussian.matrix(96, 64, 1));
    tensors.push_f32("b", &[64, 48], &Source::Laplace.matrix(64, 48, 2));
    let mut file = std::fs::File::create_new(path).unwrap();
    compress(&tensors, Vec::new(), &Settings::new(Target::Bits(5.0)), &Silent, &mut file).unwrap();
}

fn run(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nwc-encode"));
    command.args(line.split(' ')).current_dir(folder).output().unwrap()
}

/// The one line of a call that was refused for want of a GPU; `None` if there is one.
fn refusal(output: &Output) -> Option<String> {
    if output.status.success() {
        return None;
    }
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: a.nwc: ") && stderr.contains("--device cpu"), "{stderr}");
    if cfg!(feature = "cuda") {
        assert!(stderr.contains("the CUDA driver failed to") && stderr.contains("nvidia-smi"), "{stderr}");
    } else {
        assert!(stderr.contains("--features cuda"), "{stderr}");
    }
    Some(stderr)
}

#[test]
fn a_gpu_decodes_the_same_or_it_is_said_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    container(&folder.path().join("a.nwc"));
    for dtype in ["f32", "f16", "bf16"] {
        let on = |device: &str| {
            run(
                folder.path(),
                &format!("decompress a.nwc -o {device} --force --dtype {dtype} --device {device}"),
            )
        };
        assert!(on("cpu").status.success());
        let weights = |device: &str| std::fs::read(folder.path().join(device).join("model.safetensors"));
        match refusal(&on("cuda")) {
            None => assert_eq!(weights("cuda").unwrap(), weights("cpu").unwrap()),
            Some(_) => assert!(!folder.path().join("cuda").exists()),
        }
    }
}

#[test]
fn the_gpu_is_measured_or_it_is_said_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    container(&folder.path().join("a.nwc"));
    let output = run(folder.path(), "bench decode a.nwc --device cuda --runs 3 --json");
    if refusal(&output).is_none() {
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(json["weights_per_second"].as_f64().unwrap() > 0.0, "{json}");
        assert_eq!(json["weights"], 96 * 64 + 64 * 48);
    }
}

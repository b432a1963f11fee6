//! `train` from outside: with the feature a codec comes of it, without a clear word.

mod common;

use common::refusal;

#[cfg(not(feature = "train"))]
#[test]
fn a_program_without_training_says_which_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = refusal(folder.path(), "train model -o codec.safetensors");
    assert!(text.contains("--features train"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(feature = "train")]
mod with_training {
    use std::fs;
    use std::path::Path;

    use nwc_encode_host::model::Model;
    use nwc_encode_host::synthetic::Source;
    use safetensors::tensor::TensorView;
    use serde_json::Value;

    use super::common::run;
    use super::refusal;

    /// A model of matrices [48, 32] of these names; one called `nan` holds a NaN.
    fn model(path: &Path, names: &[&str]) {
        let contents: Vec<(String, Vec<u8>)> = names
            .iter()
            .zip(1..)
            .map(|(name, seed)| {
                let mut weights = Source::Laplace.matrix(48, 32, seed);
                if *name == "nan" {
                    weights[100] = f32::NAN;
                }
                ((*name).to_owned(), weights.iter().flat_map(|weight| weight.to_le_bytes()).collect())
            })
            .collect();
        let views = contents.iter().map(|(name, bytes)| {
            let shape = if name == "flat" { vec![1536] } else { vec![48, 32] };
            (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    const SHORT: &str = "--profile compact --steps 6 --batch 16 --evaluate-every 3";

    #[test]
    fn a_codec_comes_of_models() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        model(&folder.join("a.safetensors"), &["q", "k", "v"]);
        model(&folder.join("b.safetensors"), &["up", "down"]);
        let output =
            run(folder, &format!("train a.safetensors b.safetensors -o c.safetensors --json {SHORT}"));
        assert!(output.status.success(), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&json["schema_version"], &json["profile"], &json["steps"]),
            (&1.into(), &"compact".into(), &6.into())
        );
        for key in ["bits_per_weight", "nmse", "seconds"] {
            assert!(json[key].as_f64().unwrap() > 0.0, "{key}: {json}");
        }
        let steps: Vec<_> = json["curve"].as_array().unwrap().iter().map(|point| &point["step"]).collect();
        assert_eq!(steps, [0, 3, 6]);
        assert!(json["curve"][1]["loss"].is_f64() && json["curve"][1]["nmse"].is_f64(), "{json}");
        assert_eq!(json["levels"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&json["multiply_adds_per_weight"], &json["parameters"]["synthesis"]),
            (&80.0.into(), &1312.into())
        );

        // Nothing is left beside the codec, and each row of its tables has all slots.
        assert_eq!(fs::read_dir(folder).unwrap().count(), 3);
        let codec = Model::open(&folder.join("c.safetensors")).unwrap();
        let index = codec.tensors().iter().position(|tensor| tensor.name == "tables.frequencies").unwrap();
        let frequencies: Vec<i32> =
            codec.bytes(index).as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        let symbols = codec.tensors()[index].shape[1];
        assert_eq!(codec.tensors()[index].shape, [16, symbols]);
        assert!(frequencies.chunks_exact(symbols).all(|row| row.iter().sum::<i32>() == 1 << 14));
    }

    #[test]
    fn the_codec_depends_on_the_seed_and_not_on_threads() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        model(&folder.join("a.safetensors"), &["q", "k"]);
        let codec = |name: &str, options: &str| {
            let line = format!("train a.safetensors -o {name} {SHORT} {options}");
            assert!(run(folder, &line).status.success(), "{line}");
            fs::read(folder.join(name)).unwrap()
        };
        let one = codec("one", "--jobs 1");
        assert!(one == codec("two", "--jobs 2"));
        assert!(one != codec("three", "--seed 2"));
    }

    #[test]
    fn what_cannot_be_trained_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for (name, tensors) in
            [("a", &["q", "k"][..]), ("one", &["q"]), ("bad", &["q", "nan", "k"]), ("flat", &["flat"])]
        {
            model(&folder.join(format!("{name}.safetensors")), tensors);
        }
        fs::write(folder.join("there.safetensors"), "").unwrap();
        fs::write(folder.join("stopped.checkpoint.safetensors"), "").unwrap();
        for (line, words) in [
            ("a.safetensors -o c --lambda 0", &["--lambda 0"][..]),
            ("a.safetensors -o c --lambda nan", &["--lambda NaN"]),
            ("a.safetensors -o c --steps 0", &["--steps 0"]),
            ("a.safetensors -o c --batch 0", &["--batch 0"]),
            ("a.safetensors -o c --batch 18", &["--batch 18", "multiple of 4"]),
            ("a.safetensors -o c --width 8", &["--width 8", "16 to 64"]),
            ("a.safetensors -o c --learning-rate -1", &["--learning-rate -1"]),
            ("a.safetensors -o c --evaluate-every 0", &["--evaluate-every 0"]),
            ("a.safetensors -o c --resume", &["c.checkpoint.safetensors: ", "no checkpoint", "--resume"]),
            ("a.safetensors -o there.safetensors", &["there.safetensors: ", "--force"]),
            ("a.safetensors -o none/c", &["none/c: "]),
            (
                "a.safetensors -o stopped.safetensors",
                &["stopped.checkpoint.safetensors: ", "--resume", "--force"],
            ),
            ("none.safetensors -o c", &["none.safetensors: "]),
            ("flat.safetensors -o c", &["flat.safetensors: ", "no matrix"]),
            ("bad.safetensors -o c", &["bad.safetensors: ", "tensor \"nan\": ", "--exclude"]),
            ("one.safetensors -o c", &["one.safetensors: ", "held out", "--source"]),
            ("a.safetensors -o c --hold-out x", &["a.safetensors: ", "--hold-out"]),
            ("a.safetensors -o c --hold-out .", &["a.safetensors: ", "--hold-out"]),
        ] {
            let text = refusal(folder, &format!("train {line}"));
            assert!(words.iter().all(|word| text.contains(word)), "{line}: {text}");
        }
        // Where there is a GPU, it trains.
        let line = format!("train a.safetensors -o gpu {SHORT} --device cuda");
        if !run(folder, &line).status.success() {
            let word = if cfg!(feature = "burn-cuda") { "nvidia-smi" } else { "--features full,burn-cuda" };
            let text = refusal(folder, &line);
            assert!(text.contains(word) && text.contains("--device cpu"), "{text}");
        }
        assert!(!folder.join("c").exists());
        // What is missing altogether is told with the usage.
        assert_eq!(run(folder, "train -o c").status.code(), Some(2));
    }
}

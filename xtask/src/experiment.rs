//! Experiments on the encoder, kept like other measurements under `benches/results/`.

use crate::quickstart::build_program_with;
use crate::record;
use crate::shell::{cargo, output, root};
use anyhow::{Context, Result};
use clap::ValueEnum;

/// What can be tried.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    /// Encoding time against rate and distortion, by number of states, with a plot: about 2 minutes
    Frontier,
    /// What each part of the codec is worth, with a plot: about 3 minutes
    Ablations,
    /// What steps that follow the importance of inputs are worth: about 2 minutes
    Importance,
    /// What a sum of few outer products under the quantiser would be worth: about 3 minutes
    LowRank,
    /// Chunks of normalised weights, and levels of importance, as learned codecs would get them: seconds
    Preprocessing,
    /// Learned, Hadamard and no synthesis, and codes chosen anew, on `$NWC_ASSETS`: about 10 minutes
    Synthesis,
    /// Each tensor of the models of `$NWC_ASSETS` against ideal scalar quantisation and against no transform: about 4 minutes
    HeldOut,
    /// The paper's network in real containers, on a Gaussian source and models of `$NWC_ASSETS`: about 40 minutes, most of them training; codecs that are in the target folder already are taken
    Paper,
    /// What LDLQ costs a weight, from 12 to 151 million weights in the shape of CLIP ViT-B/32: about 1 minute
    Cost,
    /// What each choice of the encoder and each part of the file costs: about 2 minutes
    Overhead,
    /// Perplexity and zero-shot accuracy of the models of `$NWC_ASSETS` at 1.5 to 4 bits, step by step and next to baselines, with a plot: about 2 hours
    Accuracy,
    /// What feedback of errors (LDLQ) leaves of tr(E H E^T) in the models of `$NWC_ASSETS`, by layer: about 4 minutes
    Ldlq,
    /// Perplexity of the language models of `$NWC_ASSETS` after calibration with other texts: about 15 minutes
    CalibrationShift,
}

/// Windows of 512 tokens of WikiText-2 that are predicted: all of them take some hours for each model.
const WINDOWS: &str = "40";

/// Measures, and writes `benches/results/SUBJECT.json`; what is drawn goes to `docs/SUBJECT.svg`. Models of `$NWC_ASSETS` are measured too.
pub(crate) fn run(subject: Subject) -> Result<()> {
    let assets = std::env::var("NWC_ASSETS").ok();
    if assets.is_none() {
        println!("set NWC_ASSETS to the folder with models/ to measure those too");
    }
    let svg = |name: &str| Some(root().join(format!("docs/{name}.svg")).display().to_string());
    if matches!(subject, Subject::Accuracy | Subject::Ldlq | Subject::CalibrationShift) && assets.is_none() {
        println!("skipped: it runs those");
        return Ok(());
    }
    let (name, paths) = match subject {
        Subject::Frontier => ("frontier", [svg("frontier"), assets]),
        Subject::Ablations => ("ablations", [svg("ablations"), assets]),
        Subject::Importance => ("importance", [assets, None]),
        Subject::LowRank => ("low-rank", [assets, None]),
        Subject::Preprocessing => ("preprocessing", [assets, None]),
        Subject::HeldOut => ("held-out", [assets, None]),
        Subject::Cost => ("cost", [None, None]),
        Subject::Overhead => ("overhead", [assets, None]),
        Subject::Accuracy => ("accuracy", [svg("accuracy"), assets]),
        Subject::Ldlq => ("ldlq", [assets, None]),
        Subject::CalibrationShift => ("calibration-shift", [assets, None]),
        Subject::Synthesis => return syntheses(assets),
        Subject::Paper => {
            let results = record::Program(build_program_with("train")?).paper(assets.as_deref())?;
            return record::write("paper", "cargo xtask experiment paper", &results);
        }
    };
    let (features, options): (&[&str], &[&str]) = match subject {
        Subject::Accuracy => (&["--features", "models"], &["--windows", WINDOWS]),
        Subject::Ldlq => (&["--features", "models"], &["--bits", "2", "3", "4"]),
        Subject::CalibrationShift => (&["--features", "models"], &["--windows", WINDOWS, "--bits", "2", "3"]),
        _ => (&[], &[]),
    };
    let fixed = ["run", "--release", "--quiet", "-p", "nwc-benches", "--example", "experiment"];
    let paths = paths.iter().flatten().map(String::as_str);
    let name_of = ["--", name];
    let arguments = fixed.iter().chain(features).chain(&name_of).copied();
    let text = output(
        cargo(arguments.chain(paths).chain(options.iter().copied())).stderr(std::process::Stdio::inherit()),
    )?;
    record::write(
        name,
        &format!("cargo xtask experiment {name}"),
        &serde_json::from_str(&text).context("the experiment printed no JSON")?,
    )
}

/// One that trains, and so with the program that can.
fn syntheses(assets: Option<String>) -> Result<()> {
    let Some(assets) = assets else {
        println!("skipped: it learns from models");
        return Ok(());
    };
    let results = record::Program(build_program_with("train")?).syntheses(&assets)?;
    record::write("synthesis", "cargo xtask experiment synthesis", &results)
}

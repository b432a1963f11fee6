//! Measures what the documentation claims and keeps it under `benches/results/`: command, commit, machine, numbers.

use crate::instructions;
use crate::make_model;
use crate::quickstart::{build_program, build_program_with};
use crate::readme;
use crate::shell::{command, output, root, target_dir};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

/// Quantisers that random sources are coded with: that of fewest states, and the default.
const QUANTIZERS: [&str; 2] = ["trellis8", "trellis64"];

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    /// Rate and distortion on random sources: about 10 minutes
    Rd,
    /// The models of `$NWC_ASSETS`, at 3 and 4 bits
    Models,
    /// Instructions a weight of decoding on x86-64 and aarch64, under QEMU: about 5 minutes
    Instructions,
    /// Time and memory to compress 100 M weights, and decoding speed: about 3 minutes
    Speed,
    /// The paper's codec, trained on a Gaussian source for two rates: about a quarter of an hour
    TrainPaper,
}

/// Measures, and writes `benches/results/SUBJECT.json`.
pub(crate) fn record(subject: Subject) -> Result<()> {
    let program = Program(match subject {
        Subject::TrainPaper => build_program_with("train")?,
        _ => build_program()?,
    });
    let (name, results) = match subject {
        Subject::Rd => ("rd", program.rate_distortion()?),
        Subject::Models => {
            let Ok(assets) = std::env::var("NWC_ASSETS") else {
                println!("skipped: set NWC_ASSETS to the folder with models/ to measure them");
                return Ok(());
            };
            ("models", program.models(&assets)?)
        }
        Subject::Instructions => ("instructions", instructions::count()?),
        Subject::Speed => ("speed", program.speed()?),
        Subject::TrainPaper => ("train-paper", program.train_paper()?),
    };
    let command_line = format!("cargo xtask record {name}");
    match subject {
        Subject::Rd => readme::put_table(&command_line, &sources_table(&results)?)?,
        Subject::Models => readme::put_table(&command_line, &models_table(&results)?)?,
        Subject::Instructions | Subject::Speed | Subject::TrainPaper => {}
    }
    write(name, &command_line, &results)
}

/// The README's table of random sources: means over the seeds.
fn sources_table(rows: &Value) -> Result<String> {
    let rows = rows.as_array().context("no rows")?;
    let mut table = String::from("| bits per weight | 2 | 3 | 4 | 5 | 6 |\n|---|---|---|---|---|---|\n");
    for quantizer in QUANTIZERS {
        for (label, source, key, digits) in [
            ("Gaussian, nMSE * 4^R", "gaussian", "nmse_times_4r", 3),
            ("Gaussian, nMSE of ideal ECSQ's", "gaussian", "nmse_over_ecsq", 3),
            ("Laplace, nMSE of ideal ECSQ's", "laplace", "nmse_over_ecsq", 3),
            ("Student-t, 5 degrees, nMSE of ideal ECSQ's", "student5", "nmse_over_ecsq", 3),
            ("log-normal row spreads, nMSE * 4^R", "lognormal-rows", "nmse_times_4r", 3),
            ("bits above the entropy of the symbols (Gaussian)", "gaussian", "entropy_overhead", 4),
        ] {
            write!(table, "| {quantizer}: {label} |")?;
            for bits in ["2", "3", "4", "5", "6"] {
                let here = rows.iter().filter(|row| {
                    row["quantizer"] == quantizer && row["source"] == source && row["bits"] == bits
                });
                let values: Vec<f64> = here.filter_map(|row| row[key].as_f64()).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                if values.is_empty() { write!(table, " |")? } else { write!(table, " {mean:.digits$} |")? }
            }
            table.push('\n');
        }
    }
    Ok(table)
}

/// The README's table of trained models.
fn models_table(rows: &Value) -> Result<String> {
    let mut table = String::from(
        "| model, coded weights | bits asked | bits per weight | file | nMSE | nMSE * 4^R | of ideal ECSQ |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows.as_array().context("no rows")? {
        let number = |key: &str| row[key].as_f64().with_context(|| format!("no {key}"));
        writeln!(
            table,
            "| {}, {:.1} M | {} | {:.3} | {} bytes | {:.2e} | {:.3} | {:.3} |",
            row["model"].as_str().context("no model")?,
            number("weights")? / 1e6,
            row["bits"].as_str().context("no bits")?,
            number("bits_per_weight")?,
            row["bytes"],
            number("nmse")?,
            number("nmse_times_4r")?,
            number("nmse_over_ecsq")?
        )?;
    }
    Ok(table)
}

/// Writes `benches/results/NAME.json`: what was measured, by which command, of which commit, on which machine.
pub(crate) fn write(name: &str, command_line: &str, results: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(&json!({
        "command": command_line,
        "commit": output(&mut command("git", ["rev-parse", "--short", "HEAD"]))?.trim(),
        "machine": machine()?,
        "results": results,
    }))?;
    let path = root().join("benches/results").join(format!("{name}.json"));
    fs::write(&path, text + "\n")?;
    println!("written: {}", path.display());
    Ok(())
}

/// Processor and number of cores.
fn machine() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism()?;
    Ok(format!("{}, {cores} cores", model.trim_start_matches([' ', '\t', ':'])))
}

pub(crate) struct Program(pub(crate) String);

impl Program {
    fn json(&self, args: &[&str]) -> Result<Value> {
        let text = output(&mut command(&self.0, args.iter().copied().chain(["--json"])))?;
        serde_json::from_str(&text).context("nwc-encode printed no JSON")
    }

    fn rate_distortion(&self) -> Result<Value> {
        let mut rows = Vec::new();
        println!(
            "{:<15} {:<9} {:>4} {:>5} {:>9} {:>9} {:>10} {:>10}",
            "source", "quantizer", "bits", "seed", "rate", "nMSE*4^R", "overhead", "of ECSQ"
        );
        for (source, bits, seeds) in [
            ("gaussian", 2..=6, 1..=5),
            ("laplace", 3..=6, 1..=2),
            ("student5", 3..=6, 1..=2),
            ("lognormal-rows", 2..=6, 1..=2),
        ] {
            for (bits, seed, quantizer) in bits.flat_map(|bits| {
                let seeds = seeds.clone();
                QUANTIZERS.into_iter().flat_map(move |name| seeds.clone().map(move |seed| (bits, seed, name)))
            }) {
                let (bits, seed) = (bits.to_string(), seed.to_string());
                let what = ["--source", source, "--n", "4194304", "--seed", &seed];
                let how = ["--quantizer", quantizer, "--bits", &bits];
                let mut row = self.json(&[["bench", "rd"].as_slice(), &what, &how].concat())?;
                let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
                println!(
                    "{source:<15} {quantizer:<9} {bits:>4} {seed:>5} {:>9.4} {:>9.4} {:>10.4} {:>10.4}",
                    number("bits_per_weight"),
                    number("nmse_times_4r"),
                    number("entropy_overhead"),
                    number("nmse_over_ecsq")
                );
                row["source"] = json!(source);
                row["quantizer"] = json!(quantizer);
                row["bits"] = json!(bits);
                row["seed"] = json!(seed);
                rows.push(row);
            }
        }
        Ok(Value::Array(rows))
    }

    fn models(&self, assets: &str) -> Result<Value> {
        let mut rows = Vec::new();
        for model in ["clip-mini", "clip-cifar", "siglip-cifar", "llama-tiny", "qwen3-tiny", "mixtral-tiny"] {
            let path = format!("{assets}/models/{model}");
            for bits in ["3", "4"] {
                let mut row = self.json(&["compress", &path, "--dry-run", "--bits", bits])?;
                let rd = self.json(&["bench", "rd", &path, "--bits", bits])?;
                let rate = row["bits_per_weight"].as_f64().context("no rate")?;
                let nmse = row["nmse"].as_f64().context("no nMSE")?;
                let weights = row["weights"].as_f64().context("no weights")?;
                let payload = row["split"]["payload"].as_f64().context("no payload")? * 8.0 / weights;
                println!(
                    "{model:<13} {bits} bits: rate {rate:.4}, payload {payload:.4}, nMSE {nmse:.4e}, nMSE*4^R {:.4}, {:.4} of ECSQ",
                    nmse * 4f64.powf(rate),
                    rd["nmse_over_ecsq"].as_f64().unwrap_or(f64::NAN)
                );
                row["model"] = json!(model);
                row["bits"] = json!(bits);
                row["nmse_times_4r"] = json!(nmse * 4f64.powf(rate));
                row["payload_bits_per_weight"] = json!(payload);
                row["nmse_over_ecsq"] = rd["nmse_over_ecsq"].clone();
                if let Some(object) = row.as_object_mut() {
                    object.remove("tensors");
                    object.remove("dry_run");
                }
                rows.push(row);
            }
        }
        Ok(Value::Array(rows))
    }

    /// Light codecs, trained on all models but every fifth of their tensors.
    fn light_codecs(&self, models: &[String]) -> Result<Vec<(&'static str, Vec<String>)>> {
        let mut codecs = ["identity", "hadamard"].map(|name| (name, vec![name.to_owned(); 3])).to_vec();
        for (profile, lambdas) in [("linear", &["100"][..]), ("compact", &["30", "100", "300"])] {
            let mut files = Vec::new();
            for lambda in lambdas {
                let file = target_dir().join(format!("{profile}-{lambda}.safetensors")).display().to_string();
                let how = ["-o", &file, "--profile", profile, "--lambda", lambda, "--force"];
                let long = ["--steps", "3000", "--batch", "256"];
                let models = models.iter().map(String::as_str);
                let args: Vec<&str> = ["train"].into_iter().chain(models).chain(how).chain(long).collect();
                self.json(&args)?;
                files.push(file);
            }
            files.resize(3, files[0].clone());
            codecs.push((profile, files));
        }
        Ok(codecs)
    }

    /// Each codec on each source at each rate: where it saves bits, and everywhere, and with indices that are chosen anew.
    pub(crate) fn syntheses(&self, assets: &str) -> Result<Value> {
        let names = ["clip-mini", "clip-cifar", "siglip-cifar", "llama-tiny", "qwen3-tiny", "mixtral-tiny"];
        let models = names.map(|name| format!("{assets}/models/{name}"));
        let codecs = self.light_codecs(&models)?;
        let mut rows = Vec::new();
        let sources = ["gaussian", "laplace"].map(|name| (name, vec!["--source", name]));
        let models = names.iter().zip(&models).map(|(name, path)| (*name, vec![path.as_str()]));
        for (name, what) in sources.into_iter().chain(models) {
            for (number, bits) in ["2", "3", "4"].into_iter().enumerate() {
                let mut identity = None;
                for (codec, files) in &codecs {
                    for how in [&[][..], &["--everywhere"], &["--everywhere", "--optimise-codes", "3"]] {
                        if *codec == "identity" && !how.is_empty() {
                            continue;
                        }
                        let rate = ["bench", "rd", "--bits", bits, "--codec", &files[number]];
                        let rd = self.json(&[&rate, how, &what].concat())?;
                        let factor = rd["nmse_times_4r"].as_f64().context("no nMSE")?;
                        let lost = 0.5 * (factor / *identity.get_or_insert(factor)).log2();
                        println!(
                            "{name:<12} {bits} bits {codec:<9} {:<35} {lost:+.4} bits a weight",
                            how.join(" ")
                        );
                        rows.push(json!({
                            "source": name,
                            "bits": bits,
                            "codec": codec,
                            "everywhere": !how.is_empty(),
                            "codes_optimised": how.len() > 1,
                            "bits_per_weight": rd["bits_per_weight"],
                            "nmse": rd["nmse"],
                            "bits_lost_against_identity": lost,
                        }));
                    }
                }
            }
        }
        Ok(Value::Array(rows))
    }

    /// The paper's codec, trained for two rates on a Gaussian source and on all models but every fifth of their tensors, in containers; beside it, at the rate that is left without its network, the default and scalar quantisers.
    pub(crate) fn paper(&self, assets: Option<&str>) -> Result<Value> {
        let names = ["clip-mini", "clip-cifar", "siglip-cifar", "llama-tiny", "qwen3-tiny", "mixtral-tiny"];
        let models: Vec<String> =
            assets.iter().flat_map(|assets| names.map(|name| format!("{assets}/models/{name}"))).collect();
        let gaussian = ["--source", "gaussian"];
        let of_models: Vec<&str> = models.iter().map(String::as_str).collect();
        let mut origins =
            vec![("gaussian", &gaussian[..], vec![("gaussian", gaussian.map(str::to_owned).to_vec())])];
        if let Some(assets) = assets {
            let measured =
                ["clip-cifar", "llama-tiny"].map(|name| (name, vec![format!("{assets}/models/{name}")]));
            origins.push(("models", &of_models, measured.to_vec()));
        }
        let mut rows = Vec::new();
        for (origin, trained_on, sources) in origins {
            for lambda in ["100", "300"] {
                let codec = target_dir().join(format!("paper-{origin}-{lambda}.safetensors"));
                let file = codec.display().to_string();
                if !codec.exists() {
                    let how = ["-o", &file, "--lambda", lambda, "--steps", "10000", "--force"];
                    self.json(&[&["train"], trained_on, &how].concat())?;
                }
                for (source, what) in &sources {
                    let what: Vec<&str> = what.iter().map(String::as_str).collect();
                    rows.push(self.paper_row(source, lambda, &what, &file)?);
                }
            }
        }
        Ok(Value::Array(rows))
    }

    fn paper_row(&self, source: &str, lambda: &str, what: &[&str], file: &str) -> Result<Value> {
        let rd = |how: &[&str]| self.json(&[&["bench", "rd"], what, how].concat());
        let number = |json: &Value, key: &str| json[key].as_f64().with_context(|| format!("no {key}"));
        let paper = rd(&["--codec", file])?;
        let (nmse, weights) = (number(&paper, "nmse")?, number(&paper, "weights")?);
        let network = number(&paper["split"], "codec")?;
        let bits = number(&paper, "bits_per_weight")? - network * 8.0 / weights;
        let factor = nmse * 4f64.powf(bits);
        let rate = bits.to_string();
        let default = rd(&["--bits", &rate])?;
        let scalar = rd(&["--bits", &rate, "--codec", "identity", "--quantizer", "scalar"])?;
        // At high rates a factor of 4 in nMSE is a bit.
        let lost = |other: f64| 0.5 * (factor / other).log2();
        let ecsq = number(&default, "ideal_ecsq_nmse")? * 4f64.powf(number(&default, "bits_per_weight")?);
        let row = json!({
            "source": source,
            "lambda": lambda,
            "weights": weights,
            "bits_per_weight": paper["bits_per_weight"],
            "network_bytes": network,
            "bits_without_network": bits,
            "split": paper["split"],
            "nmse": nmse,
            "nmse_times_4r_without_network": factor,
            "nmse_over_ecsq_without_network": factor / ecsq,
            "default_nmse_times_4r": default["nmse_times_4r"],
            "scalar_nmse_times_4r": scalar["nmse_times_4r"],
            "bits_lost_against_default": lost(number(&default, "nmse_times_4r")?),
            "bits_lost_against_scalar": lost(number(&scalar, "nmse_times_4r")?),
        });
        println!("{row}");
        Ok(row)
    }

    /// Each with what it is to be held up against: the figures of the authors' result files for the mixture of levels.
    fn train_paper(&self) -> Result<Value> {
        let codec = target_dir().join("train-paper.safetensors").display().to_string();
        let mut rows = Vec::new();
        for (lambda, bits, nmse) in [("100", 3.164, 0.0196), ("300", 3.95, 0.006_57)] {
            let what = ["train", "--source", "gaussian", "-o", &codec, "--force"];
            let how = ["--lambda", lambda, "--steps", "10000"];
            let mut row = self.json(&[what.as_slice(), &how].concat())?;
            println!(
                "lambda {lambda}: {} bits and nMSE {}, the authors' {bits} and {nmse}",
                row["bits_per_weight"], row["nmse"]
            );
            row["authors"] = json!({ "bits_per_weight": bits, "nmse": nmse });
            rows.push(row);
        }
        Ok(Value::Array(rows))
    }

    fn speed(&self) -> Result<Value> {
        let folder = target_dir().join("models/speed-100M");
        if !folder.join("model.safetensors").exists() {
            make_model::run(&make_model::Options::new(100_000_000, folder.clone()))?;
        }
        let model = folder.display().to_string();
        let container = target_dir().join("models/speed-100M.nwc").display().to_string();
        let mut compress = Vec::new();
        // The last container is decoded below.
        for quantizer in ["trellis8", "trellis256", "trellis64"].iter().flat_map(|name| [name; 3]) {
            let (json, peak) = self.with_peak_memory(&[
                "compress",
                &model,
                "-o",
                &container,
                "--bits",
                "4",
                "--quantizer",
                quantizer,
                "--force",
            ])?;
            println!(
                "compress, {quantizer}: {} s, {peak} bytes of anonymous memory at the peak",
                json["seconds"]
            );
            compress.push(json!({
                "quantizer": quantizer,
                "seconds": json["seconds"],
                "weights": json["weights"],
                "bits_per_weight": json["bits_per_weight"],
                "peak_anonymous_bytes": peak,
            }));
        }
        let mut decode = Vec::new();
        for (instructions, threads) in
            [("plain", "1"), ("avx2", "1"), ("avx512", "1"), ("best", "1"), ("best", "2")]
        {
            let json = self.json(&[
                "bench",
                "decode",
                &container,
                "--threads",
                threads,
                "--instructions",
                instructions,
            ])?;
            println!(
                "decode, {instructions}, {threads} threads: {} symbols/s, {} weights/s",
                json["symbols_per_second"], json["weights_per_second"]
            );
            decode.push(json);
        }
        Ok(json!({ "compress": compress, "decode": decode }))
    }

    /// Runs the program and watches its anonymous memory: mapped files, which the system can drop, do not count.
    fn with_peak_memory(&self, args: &[&str]) -> Result<(Value, u64)> {
        let mut child =
            command(&self.0, args.iter().copied().chain(["--json"])).stdout(Stdio::piped()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait()?.is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let kilobytes =
                anonymous.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
            peak = peak.max(kilobytes.unwrap_or(0) * 1024);
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("nwc-encode failed: {}", output.status);
        }
        Ok((serde_json::from_slice(&output.stdout)?, peak))
    }
}

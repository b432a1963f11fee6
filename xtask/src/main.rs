//! The driver of this repository: people and CI run the same `cargo xtask VERB`.

mod bench;
mod checked;
mod ci;
mod cuda_example;
mod cuda_stub;
mod cuda_tools;
mod deny;
mod docs;
mod experiment;
mod firmware;
mod fuzz_build;
mod gpu_bundle;

mod instructions;
mod lint;
mod make_model;
mod miri;
mod no_panic;
mod ptx;
mod qemu;
mod quickstart;
mod readme;
mod record;
mod reference;
mod shell;
mod targets;
mod words;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check that rustfmt has nothing to change
    Fmt,
    /// Check that no source file holds a reminder of unfinished work
    Words,
    /// Run clippy over everything, warnings denied
    Clippy,
    /// Lint and test the training of codecs and the running of models, which the other checks leave out
    Full,
    /// Check the conformance vectors with the independent Python decoder
    Reference,
    /// Build the decoder for every bare-metal, musl and GPU target it promises
    Targets,
    /// Build the documentation, and package the published crates
    Docs,
    /// Run the conformance tests with overflow checks and debug assertions
    Checked,
    /// Build every fuzz target, and run its corpus with overflow checks
    FuzzBuild,
    /// Check licences, banned crates and sources of all dependencies
    Deny,
    /// Check that no public function of the decoder can panic
    NoPanic,
    /// Run the firmware on an emulated Cortex-M4; compare what it decodes and what that takes with what is committed
    Firmware(firmware::Options),
    /// Run the conformance tests on emulated aarch64
    Qemu,
    /// Run the decoder's own tests and the small conformance tests under Miri on emulated big-endian s390x
    Miri,
    /// Build the GPU kernels as PTX, and write down what they take; the results go to nwc-decode-cuda/ptx/
    Ptx(ptx::Options),
    /// Compile the CUDA C++ examples, and link them with the kernels' device functions
    CudaExample,
    /// Lint what needs NVIDIA's driver, linked with a stand-in for its library
    CudaHost,
    /// Make the stand-in for the driver's library, and say how to build with it
    CudaStub,
    /// Pack what a machine with a GPU, and without Rust, needs to verify and measure everything there; to target/gpu-bundle/
    GpuBundle,
    /// Write a synthetic transformer of a given size, for benchmarks and tests at scale
    MakeModel(make_model::Options),
    /// Compress the bundled model, check and restore it, and say what came of it
    Quickstart,
    /// Measure what the documentation claims; the results go to benches/results/
    Record {
        /// What to measure
        subject: record::Subject,
    },
    /// Run the benchmarks; the results go to benches/results/bench.json and into the README
    Bench,
    /// Try what choices of the encoder are worth; the results go to benches/results/
    Experiment {
        /// What to try
        subject: experiment::Subject,
    },
    /// Write new conformance vectors; those that are there never change
    Vectors {
        /// Only compare them with those that are there
        #[arg(long)]
        check: bool,
    },
    /// Run every check above, cheapest first
    Ci,
}

fn main() -> ExitCode {
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Fmt => lint::fmt(),
        Verb::Words => words::check(),
        Verb::Clippy => lint::clippy(),
        Verb::Full => lint::full(),
        Verb::Reference => reference::check(),
        Verb::Targets => targets::build(),
        Verb::Docs => docs::check(),
        Verb::Checked => checked::test(),
        Verb::FuzzBuild => fuzz_build::build(),
        Verb::Deny => deny::check(),
        Verb::NoPanic => no_panic::check(),
        Verb::Firmware(options) => firmware::test(options),
        Verb::Qemu => qemu::test(),
        Verb::Miri => miri::test(),
        Verb::Ptx(options) => ptx::run(options),
        Verb::CudaExample => cuda_example::build(),
        Verb::CudaHost => cuda_stub::check(),
        Verb::CudaStub => cuda_stub::build(),
        Verb::GpuBundle => gpu_bundle::build(),
        Verb::MakeModel(options) => make_model::run(options),
        Verb::Quickstart => quickstart::run_through(),
        Verb::Record { subject } => record::record(*subject),
        Verb::Bench => bench::run_all(),
        Verb::Experiment { subject } => experiment::run(*subject),
        Verb::Vectors { check } => reference::vectors(*check),
        // `ci` has its own last line, which other programs read; nothing is printed after it.
        Verb::Ci => {
            if !ci::run() {
                std::process::exit(1);
            }
            Ok(())
        }
    }
}

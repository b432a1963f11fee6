//! `nwc-encode`: the command line.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use nwc_encode_host::commands::{self, Outcome, recipe};
use nwc_encode_host::progress::Terminal;
use nwc_encode_host::{Error, ErrorKind, Result};

/// Version of the program, and of the containers that it reads and writes.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (container format: reads 1, writes 1)");
const _: () = assert!(nwc_decode_core::FORMAT_VERSION == 1, "VERSION names the format");

/// More threads than this are a slip of the keyboard, and would bring the machine down.
const MAX_JOBS: usize = 1024;

/// Compresses the weights of CLIP, SigLIP and language models.
#[derive(Debug, Parser)]
#[command(name = "nwc-encode", version = VERSION, max_term_width = 120)]
struct Cli {
    /// Print one JSON object on stdout; progress and warnings go to stderr
    #[arg(long, global = true)]
    json: bool,
    /// Say more about what is going on
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Threads; all cores by default. The result does not depend on it
    #[arg(long, global = true, value_name = "N")]
    jobs: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compress(Box<commands::compress::CompressArgs>),
    Decompress(commands::decompress::DecompressArgs),
    Inspect(commands::inspect::InspectArgs),
    Verify(commands::verify::VerifyArgs),
    Calibrate(commands::calibrate::CalibrateArgs),
    Train(commands::train::TrainArgs),
    Eval(commands::eval::EvalArgs),
    #[command(subcommand)]
    Bench(commands::bench::BenchCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let command = Cli::command();
    let compress = command.find_subcommand("compress").expect("there is this command");
    let cli = match recipe::expand(std::env::args_os().collect(), compress) {
        Ok(line) => Cli::parse_from(line),
        Err(error) => return failed(&error),
    };
    let result = run(&cli).and_then(|outcome| {
        let text = if cli.json { format!("{}\n", outcome.json) } else { outcome.text };
        print(&text)?;
        Ok(outcome.ok)
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    // Nobody may be listening; the exit status says it too.
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::from(match error.kind {
        ErrorKind::Input => 2,
        ErrorKind::Check => 1,
        ErrorKind::Interrupted => 130,
    })
}

/// Writes the result. A closed pipe (`nwc-encode inspect | head`) is the reader's choice, not an error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::input(format!("cannot write the result: {error}"))
                .source(error)
                .remedy("check where stdout goes"))
        }
        _ => Ok(()),
    }
}

fn run(cli: &Cli) -> Result<Outcome> {
    if let Some(jobs) = cli.jobs {
        if !(1..=MAX_JOBS).contains(&jobs) {
            return Err(Error::input(format!("--jobs {jobs} is out of range"))
                .remedy(format!("give 1 to {MAX_JOBS} threads")));
        }
        rayon::ThreadPoolBuilder::new().num_threads(jobs).build_global().map_err(|error| {
            Error::input(format!("cannot start {jobs} threads: {error}"))
                .source(error)
                .remedy("give fewer --jobs")
        })?;
    }
    let progress = Terminal::new(cli.verbose);
    match &cli.command {
        Command::Compress(args) => commands::compress::run(args, &progress),
        Command::Decompress(args) => commands::decompress::run(args, &progress),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Verify(args) => commands::verify::run(args, &progress),
        Command::Calibrate(args) => commands::calibrate::run(args, &progress),
        Command::Train(args) => commands::train::run(args, &progress),
        Command::Eval(args) => commands::eval::run(args, &progress),
        Command::Bench(command) => commands::bench::run(command, &progress),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "nwc-encode", &mut script);
            Ok(Outcome {
                json: serde_json::json!({ "schema_version": commands::SCHEMA_VERSION, "script": String::from_utf8_lossy(&script) }),
                text: String::from_utf8_lossy(&script).into_owned(),
                ok: true,
            })
        }
    }
}

//! All checks in a row, cheapest first.

use crate::{
    checked, cuda_example, cuda_stub, deny, docs, firmware, fuzz_build, lint, miri, no_panic, ptx, qemu,
    reference, targets, words,
};
use anyhow::Result;
use std::time::{Duration, Instant};

type Check = fn() -> Result<()>;

const CHECKS: [(&str, Check); 18] = [
    ("fmt", lint::fmt),
    ("words", words::check),
    ("clippy", lint::clippy),
    ("vectors", || reference::vectors(true)),
    ("reference", reference::check),
    ("targets", targets::build),
    ("ptx", ptx::check),
    ("cuda-example", cuda_example::check),
    ("cuda-host", cuda_stub::check),
    ("docs", docs::check),
    ("checked", checked::test),
    ("full", lint::full),
    ("fuzz-build", fuzz_build::build),
    ("deny", deny::check),
    ("no-panic", no_panic::check),
    ("firmware", || firmware::test(&firmware::Options::CHECK)),
    ("qemu", qemu::test),
    ("miri", miri::test),
];

/// Runs every check, also after one has failed, and says whether all passed. The last line it prints is
/// `N passed, N failed`.
pub(crate) fn run() -> bool {
    let outcomes = CHECKS.map(|(name, check)| {
        println!("\n== {name}");
        let start = Instant::now();
        let result = check();
        let seconds = start.elapsed();
        match &result {
            Ok(()) => println!("== {name} passed in {}", shown(seconds)),
            Err(error) => println!("== {name} FAILED in {}: {error:#}", shown(seconds)),
        }
        (name, result.is_ok(), seconds)
    });

    println!();
    for (name, passed, seconds) in &outcomes {
        println!("{name:<12} {:<6} {:>9}", if *passed { "passed" } else { "FAILED" }, shown(*seconds));
    }
    let passed = outcomes.iter().filter(|(_, passed, _)| *passed).count();
    println!("{passed} passed, {} failed", outcomes.len() - passed);
    passed == outcomes.len()
}

fn shown(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

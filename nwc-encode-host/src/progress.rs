//! Telling the user how far the work is, and the work that the user has had enough.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{Error, Result};

/// What long work reports to. The work calls it from several threads.
pub trait Progress: Sync {
    /// A stage begins that has `total` units of work (weights or bytes); 0 if it cannot be told.
    fn begin(&self, stage: &'static str, total: u64);

    /// So many units more are done.
    fn advance(&self, units: u64);

    /// Something that the user should know, though the work goes on.
    fn warn(&self, message: &str);

    /// An error if the work should stop.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Interrupted`].
    fn check(&self) -> Result<()>;
}

/// Reports nothing; warnings are dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, _: &str) {}
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Set when the user pressed Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Reports to stderr: a bar with the time left on a terminal, else a plain line a stage and every few seconds.
#[derive(Debug)]
pub struct Terminal {
    bar: Option<ProgressBar>,
    plain: Mutex<Plain>,
    verbose: bool,
}

#[derive(Debug)]
struct Plain {
    stage: &'static str,
    done: u64,
    total: u64,
    last: Instant,
}

/// Time between plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

impl Terminal {
    /// Listens for Ctrl-C too: the first asks the work to stop tidily, the second ends the program at once.
    ///
    /// Plain lines for a stage appear with `verbose`, or when it takes longer than a few seconds.
    pub fn new(verbose: bool) -> Self {
        // A second handler is refused; then the first one does the same already.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(
                ProgressStyle::with_template("{msg:<20} {bar:40} {percent:>3} %  {eta} left")
                    .expect("a valid template"),
            );
            bar
        });
        let plain = Mutex::new(Plain { stage: "", done: 0, total: 0, last: Instant::now() });
        Self { bar, plain, verbose }
    }
}

impl Progress for Terminal {
    fn begin(&self, stage: &'static str, total: u64) {
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(total);
            bar.set_message(stage);
        } else if let Ok(mut plain) = self.plain.lock() {
            *plain = Plain { stage, done: 0, total, last: Instant::now() };
            if self.verbose {
                say(stage);
            }
        }
    }

    fn advance(&self, units: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(units);
        } else if let Ok(mut plain) = self.plain.lock() {
            plain.done += units;
            if plain.total > 0 && plain.last.elapsed() >= PLAIN_INTERVAL {
                plain.last = Instant::now();
                say(&format!("{}: {} %", plain.stage, plain.done * 100 / plain.total));
            }
        }
    }

    fn warn(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(&format!("warning: {message}"))),
            None => say(&format!("warning: {message}")),
        }
    }

    fn check(&self) -> Result<()> {
        if INTERRUPTED.load(Ordering::SeqCst) { Err(Error::interrupted()) } else { Ok(()) }
    }
}

/// A line on stderr, if anybody listens.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

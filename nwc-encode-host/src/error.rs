//! One error type for everything the host does: it names the file, the tensor and the remedy, on one line.

use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, where, and what to do about it.
///
/// `Display` gives one line: `FILE: tensor "NAME": PROBLEM; REMEDY`. Parts that are not known are left out.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// Which exit status a command-line program should give.
    pub kind: ErrorKind,
    file: Option<PathBuf>,
    tensor: Option<String>,
    problem: String,
    remedy: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The classes of failure that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Bad usage, bad input, or the operating system refused: exit status 2.
    Input,
    /// A check was carried out and failed (`verify`): exit status 1.
    Check,
    /// The user asked to stop: exit status 130.
    Interrupted,
}

/// Result of a host operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Bad input or usage, described by `problem`.
    pub fn input(problem: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Input,
            file: None,
            tensor: None,
            problem: problem.into(),
            remedy: None,
            source: None,
        }
    }

    /// A failed check.
    pub fn check(problem: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Check, ..Self::input(problem) }
    }

    /// The user interrupted the work; nothing was written.
    pub fn interrupted() -> Self {
        Self { kind: ErrorKind::Interrupted, ..Self::input("interrupted, nothing was written") }
    }

    /// An operating-system error while doing `action` (such as "cannot open") to `path`, with what mostly helps.
    pub fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        let remedy = match source.kind() {
            Kind::NotFound | Kind::NotADirectory | Kind::IsADirectory => "check the path",
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => "check that you may read and write there",
            Kind::StorageFull | Kind::QuotaExceeded => "free some space or choose another disk",
            _ => "check the file and the disk that it is on",
        };
        Self::input(format!("{action}: {source}")).file(path).remedy(remedy).source(source)
    }

    /// Names the file.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file.get_or_insert(path.into());
        self
    }

    /// Names the tensor.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>) -> Self {
        self.tensor.get_or_insert(name.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor {tensor:?}: ")?;
        }
        f.write_str(&self.problem)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

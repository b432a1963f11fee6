//! What the program does: one module a command. Each gives a JSON object, and the same for people.

pub mod bench;
pub mod calibrate;
pub mod compress;
pub mod decompress;
pub mod eval;
pub mod inspect;
pub mod recipe;
pub mod train;
pub mod verify;

use serde_json::{Map, Value, json};

use crate::container::Split;

/// Version of every JSON object that the program prints.
pub const SCHEMA_VERSION: u32 = 1;

/// What a command found out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// For programs: one object.
    pub json: Value,
    /// For people: some lines.
    pub text: String,
    /// False if a check was carried out and failed.
    pub ok: bool,
}

impl Outcome {
    /// A success; `json` must be an object, it is given the schema version.
    pub(crate) fn new(json: Value, text: String) -> Self {
        let mut object = Map::from_iter([("schema_version".to_owned(), json!(SCHEMA_VERSION))]);
        if let Value::Object(fields) = json {
            object.extend(fields);
        }
        Self { json: Value::Object(object), text, ok: true }
    }
}

/// Lines that say where a container's bytes went.
pub(crate) fn split_lines(split: &Split) -> String {
    let parts = [
        ("payload", split.payload),
        ("side", split.side),
        ("tables", split.tables),
        ("codec", split.codec),
        ("directory", split.directory),
        ("raw", split.raw),
        ("attachments", split.attachments),
    ];
    let total = split.bytes().max(1) as f64;
    let line = |(name, bytes): (&str, u64)| {
        format!("  {name:<12}{bytes:>14} bytes {:>6.2} %\n", bytes as f64 / total * 100.0)
    };
    parts.into_iter().filter(|part| part.1 > 0).map(line).collect()
}

/// A rounded number of bytes for people.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(size, _)| bytes >= *size);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(size, name)| format!("{:.2} {name}", bytes as f64 / size as f64),
    )
}

/// What is said where models cannot be run.
#[cfg(not(feature = "models"))]
pub(crate) fn without_models() -> crate::Error {
    crate::Error::input("this nwc-encode was built without running models")
        .remedy("build it with `cargo build --release -p nwc-encode-host --features models`")
}

/// Which part of the data is used.
///
/// # Errors
/// If it is none of it.
#[cfg(feature = "models")]
pub(crate) fn check_limits(
    samples: Option<usize>,
    length: Option<usize>,
) -> crate::Result<crate::samples::Limits> {
    for (option, value) in [("--samples", samples), ("--length", length)] {
        if value == Some(0) {
            return Err(
                crate::Error::input(format!("{option} 0 is out of range")).remedy("give at least one")
            );
        }
    }
    Ok(crate::samples::Limits { samples, length })
}

//! What every vector must decode to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The file beside the vectors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Every vector, and every call that must fail.
    pub vectors: Vec<Vector>,
}

/// A vector and what comes of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Vector {
    /// Its file.
    pub file: String,
    /// Small enough to be decoded on an interpreted machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub small: bool,
    /// What is called; decoding everything if there is nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// The code of the error that must come, if one must.
    pub error: Option<u8>,
    /// The tensors; empty where an error must come.
    #[serde(default)]
    pub tensors: Vec<Tensor>,
}

/// A tensor's name, and the CRC-32 of its bytes in each dtype that it can be decoded to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Tensor {
    pub name: String,
    pub crc: BTreeMap<String, String>,
}

impl Vector {
    /// Its line of the ledger.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a vector can be written")
    }
}

impl Ledger {
    /// The JSON text: a line for a vector, so that a change is a line.
    pub fn to_text(&self) -> String {
        let lines: Vec<String> = self.vectors.iter().map(Vector::to_line).collect();
        format!("{{\"vectors\": [\n{}\n]}}\n", lines.join(",\n"))
    }

    /// The ledger of the repository.
    pub fn read() -> Self {
        let path = folder().join("ledger.json");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// The folder of the vectors.
pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"))
}

/// The bytes of a vector.
pub fn read_vector(file: &str) -> Vec<u8> {
    std::fs::read(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

//! A file of arbitrary bytes, as safetensors weights.

use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use nwc_encode_host::model::Model;
use tempfile::TempDir;

/// Kept for the process, which a fuzzer ends without running destructors: one file is left behind, not one an input.
static FOLDER: LazyLock<Mutex<(TempDir, PathBuf)>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("the system has room for temporary files");
    let path = folder.path().join("model.safetensors");
    Mutex::new((folder, path))
});

/// Opens the file: an error that can be printed, or tensors that lie inside of it.
pub fn open(bytes: &[u8]) {
    let folder = FOLDER.lock().expect("a panic ends the process or the test");
    fs::write(&folder.1, bytes).expect("the temporary folder can be written");
    let model = match Model::open(&folder.1) {
        Ok(model) => model,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let mut sum = 0;
    for (index, tensor) in model.tensors().iter().enumerate() {
        let values = model.bytes(index);
        assert_eq!(values.len(), tensor.elements() * tensor.dtype.size());
        sum += values.len();
    }
    assert!(sum + 8 <= bytes.len(), "tensors do not overlap");
}

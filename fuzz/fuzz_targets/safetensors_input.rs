//! A file of arbitrary bytes, as safetensors weights.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use nwc_encode_host::model::Model;
use tempfile::TempDir;

/// Kept for the process, which the fuzzer ends without running destructors: one file is left behind, not one an input.
static FOLDER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("the system has room for temporary files");
    let path = folder.path().join("model.safetensors");
    (folder, path)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = &FOLDER.1;
    fs::write(path, bytes).expect("the temporary folder can be written");
    // Any error will do, but it has to be one that can be printed.
    let model = match Model::open(path) {
        Ok(model) => model,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let mut end = 0;
    for (index, tensor) in model.tensors().iter().enumerate() {
        let values = model.bytes(index);
        assert_eq!(values.len(), tensor.elements() * tensor.dtype.size());
        end += values.len();
    }
    assert!(end + 8 <= bytes.len(), "tensors do not overlap");
});

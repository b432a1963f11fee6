//! Writes the conformance vectors and their ledger.
//!
//! With `--check` nothing is written: it fails if a file is missing, differs from what would be written, or should not be there.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use nwc_encode_host::compress::{Settings, Target, compress, quantiser};
use nwc_encode_host::container::attachments_section;
use nwc_encode_host::model::Model;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource};
use nwc_tests::ledger::{Ledger, folder};
use nwc_tests::vectors;

/// A few tensors of a real model, compressed by the encoder.
const REAL: &str = "clip-mini.nwc";
const TENSORS: [&str; 5] = [
    "logit_scale",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.0.layer_norm1.bias",
    "text_model.encoder.layers.0.self_attn.k_proj.weight",
    "vision_model.embeddings.patch_embedding.weight",
];

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut ledger = Ledger::default();
    for (line, bytes) in vectors::all() {
        assert!(files.insert(line.file.clone(), bytes).is_none(), "{} is there twice", line.file);
        ledger.vectors.push(line);
    }
    // What the encoder writes may change with every version of it, and what was once written must still decode: so this one stays as it
    // is unless it is deleted.
    let real = fs::read(folder().join(REAL)).unwrap_or_else(|_| real());
    ledger.vectors.push(vectors::line(REAL, &real));
    files.insert(REAL.to_owned(), real);
    ledger.vectors.extend(vectors::calls());
    files.insert("ledger.json".to_owned(), ledger.to_text().into_bytes());

    let mut problems = Vec::new();
    for entry in fs::read_dir(folder()).expect("the folder can be read") {
        let name = entry.expect("the folder can be read").file_name().to_string_lossy().into_owned();
        if !files.contains_key(&name) {
            problems.push(format!("{name} should not be there"));
            if !check {
                fs::remove_file(folder().join(&name)).expect("the file can be deleted");
            }
        }
    }
    for (name, bytes) in &files {
        let path = folder().join(name);
        if fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        problems.push(format!("{name} is missing or differs"));
        if !check {
            fs::write(&path, bytes).expect("the file can be written");
        }
    }
    let bytes: usize = files.values().map(Vec::len).sum();
    println!("{} files, {bytes} bytes, {} changes", files.len(), problems.len());
    problems.iter().for_each(|problem| println!("{problem}"));
    if check && !problems.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn real() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/clip-mini");
    let model = Model::open(path.as_ref()).expect("the example model can be read");
    let mut some = OwnedTensors::default();
    for index in 0..model.len() {
        let tensor = model.tensor(index);
        if TENSORS.contains(&tensor.name) {
            some.push(tensor.name, tensor.dtype, tensor.shape, TensorSource::bytes(&model, index).to_vec());
        }
    }
    assert_eq!(some.len(), TENSORS.len());
    let text = fs::read(format!("{path}/config.json")).expect("the configuration can be read");
    let attachments = attachments_section(&[("config.json".to_owned(), text)]).expect("it can be compressed");
    let mut out = tempfile::tempfile().expect("there is room for a file");
    // Named, so that the vector stays what it is when the default changes.
    let quantiser = quantiser("trellis8").expect("there is a trellis of eight states");
    let settings = Settings { quantiser, ..Settings::new(Target::Step(0.4)) };
    compress(&some, attachments, &settings, &Silent, &mut out).expect("the tensors can be compressed");
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut out).expect("a file can be rewound");
    std::io::Read::read_to_end(&mut out, &mut bytes).expect("a file can be read");
    bytes
}

//! Writes the conformance vectors, their ledger, and the list of those that are frozen: all of format 1, for ever. New ones may join; it
//! fails, and writes nothing, if one that is frozen would change.
//!
//! With `--check` nothing is written: it fails if a file is missing, differs from what would be written, or should not be there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;

use nwc_decode_core::Crc32;
use nwc_encode_host::compress::{Settings, Target, compress, quantiser};
use nwc_encode_host::container::attachments_section;
use nwc_encode_host::model::Model;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource};
use nwc_tests::ledger::{Ledger, folder};
use nwc_tests::vectors;

/// The list of what is frozen.
const FROZEN: &str = "frozen.txt";
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
    // What the encoder writes may change with every version of it, and what was once written must still decode: so this one stays as it is.
    let real = fs::read(folder().join(REAL)).unwrap_or_else(|_| real());
    ledger.vectors.push(vectors::line(REAL, &real));
    files.insert(REAL.to_owned(), real);
    ledger.vectors.extend(vectors::calls());
    let now = listed(&ledger, &files);
    let frozen = fs::read_to_string(folder().join(FROZEN)).unwrap_or_default();
    let changed: Vec<&str> = frozen.lines().filter(|line| !now.lines().any(|other| other == *line)).collect();
    if !changed.is_empty() {
        println!("vectors of format 1 never change, and these would:");
        changed.iter().for_each(|line| println!("{line}"));
        return ExitCode::FAILURE;
    }
    files.insert(FROZEN.to_owned(), now.into_bytes());
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

/// A line for each vector: the CRC-32 of its bytes and of what the ledger says of it, and its name, or the call.
fn listed(ledger: &Ledger, files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut text = String::new();
    for vector in &ledger.vectors {
        let (bytes, says) = (Crc32::of(&files[&vector.file]), Crc32::of(vector.to_line().as_bytes()));
        let name = vector.call.as_ref().unwrap_or(&vector.file);
        writeln!(text, "{bytes:08x} {says:08x} {name}").expect("strings have room");
    }
    text
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

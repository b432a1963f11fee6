//! Writes the first inputs of every target into `corpus/`: `cargo run --example seeds` in this folder.

use std::fs;
use std::path::Path;

use nwc_decode_core::DType;
use nwc_encode_host::compress::{Selection, Settings, Target, compress, quantiser};
use nwc_encode_host::container::attachments_section;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::OwnedTensors;
use safetensors::tensor::{Dtype, TensorView};

/// Mutations of small files find more in the same time.
const MAX_BYTES: usize = 4096;

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        assert!(bytes.len() < MAX_BYTES, "{name} has {} bytes", bytes.len());
        let folder = corpus.join(target);
        fs::create_dir_all(&folder).expect("folders can be made here");
        fs::write(folder.join(name), bytes).expect("files can be written here");
    };
    for (name, bytes) in containers() {
        write("open", name, &bytes);
        write("open_fixed", name, &bytes);
        write("differential", name, &bytes);
    }
    for (name, bytes) in safetensors() {
        write("safetensors_input", name, &bytes);
    }
    for seed in 0..8u32 {
        write("roundtrip", &format!("noise-{seed}"), &noise(seed, 64 << (seed % 4)));
        write("tile", &format!("noise-{seed}"), &noise(seed, 64 << (seed % 4)));
    }
}

/// Containers with each of the format's features.
fn containers() -> Vec<(&'static str, Vec<u8>)> {
    let compressed = |model: &OwnedTensors, name: &str, row_alpha: f64, attachments: Vec<u8>| {
        let mut settings = Settings::new(Target::Step(1.0));
        settings.quantiser = quantiser(name).expect("it has one of this name");
        settings.row_alpha = row_alpha;
        settings.keep_expanding = true;
        settings.selection = Selection { min_weights: 1, min_side: 1, ..Selection::default() };
        let mut file = tempfile::tempfile().expect("the system has room for temporary files");
        compress(model, attachments, &settings, &Silent, &mut file).expect("a small model can be compressed");
        nwc_tests::fuzz::matrices::contents(&mut file)
    };
    let one = |name: &str, shape: &[usize]| {
        let mut model = OwnedTensors::default();
        let columns = shape.last().copied().unwrap_or(1);
        let weights = Source::LognormalRows.matrix(shape.iter().product::<usize>() / columns, columns, 1);
        model.push_f32(name, shape, &weights);
        model
    };
    let mut mixed = one("layers.0.weight", &[6, 20]);
    let halves: Vec<u8> = (0..48u16).flat_map(|i| (0x2E00 + 97 * i % 2048).to_le_bytes()).collect();
    mixed.push("layers.1.bias", DType::F16, &[48], halves.clone());
    mixed.push("layers.2.bias", DType::F16, &[48], halves.clone());
    mixed.push("layers.3.weight", DType::BF16, &[3, 16], halves);
    mixed.push("ids", DType::I64, &[3], (0..24).collect());
    mixed.push("scalar", DType::Bool, &[], vec![1]);
    mixed.push("nothing", DType::F32, &[4, 0], Vec::new());
    let files =
        [("config.json".to_owned(), br#"{"layers": 4}"#.to_vec()), ("zeros".to_owned(), vec![0; 300])];
    let attachments = attachments_section(&files).expect("memory can be written to");
    vec![
        ("scalar", compressed(&one("w", &[8, 24]), "scalar", 1.0, Vec::new())),
        ("trellis", compressed(&one("w", &[40, 33]), "trellis8", 1.0, Vec::new())),
        ("row_classes", compressed(&one("w", &[24, 40]), "scalar", 0.0, Vec::new())),
        ("both", compressed(&one("w", &[24, 40]), "trellis16", 0.5, Vec::new())),
        ("batch", compressed(&one("experts", &[3, 5, 18]), "trellis8", 1.0, Vec::new())),
        ("embedding", compressed(&one("embedding", &[12, 20]), "scalar", 1.0, Vec::new())),
        ("mixed", compressed(&mixed, "trellis8", 1.0, attachments)),
        ("empty", compressed(&OwnedTensors::default(), "scalar", 1.0, Vec::new())),
    ]
}

fn safetensors() -> Vec<(&'static str, Vec<u8>)> {
    let values = [7u8; 64];
    let view = |dtype, shape: &[usize], bytes: usize| {
        TensorView::new(dtype, shape.to_vec(), &values[..bytes]).expect("the length suits the shape")
    };
    let tensors = vec![
        ("a.weight", view(Dtype::F32, &[2, 3], 24)),
        ("a.bias", view(Dtype::F16, &[3], 6)),
        ("scalar", view(Dtype::I64, &[], 8)),
        ("none", view(Dtype::U8, &[0, 5], 0)),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let file = |header: &str, values: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + values, 0);
        bytes
    };
    vec![
        ("several", safetensors::serialize(tensors, Some(metadata)).expect("it fits in memory")),
        ("empty", file("{}", 0)),
        (
            "twice",
            file(
                r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2,
            ),
        ),
        ("offsets", file(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8)),
        ("huge", file(r#"{"w":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,4]}}"#, 4)),
        ("unsupported", file(r#"{"w":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}"#, 1)),
        ("metadata", file(r#"{"__metadata__":{"a":1}}"#, 0)),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\n".to_vec()),
    ]
}

/// Bytes for targets that read anything.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

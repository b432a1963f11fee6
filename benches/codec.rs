//! One core: the decoder's plain loop, and the encoder, on a Gaussian matrix of 2048 x 2048 weights at 4 bits.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use nwc_decode_core::{Checks, Chunk, Container, Limits, Scratch, Tables};
use nwc_encode_host::compress::{Settings, Target, compress, quantiser};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::OwnedTensors;

const SIDE: usize = 2048;

fn model() -> OwnedTensors {
    let mut tensors = OwnedTensors::default();
    tensors.push_f32("weight", &[SIDE, SIDE], &Source::Gaussian.matrix(SIDE, SIDE, 1));
    tensors
}

fn settings(name: &str, target: Target) -> Settings {
    Settings { quantiser: quantiser(name).expect("a quantiser"), ..Settings::new(target) }
}

fn encode_to(file: &mut File, tensors: &OwnedTensors, settings: &Settings) {
    compress(tensors, Vec::new(), settings, &Silent, file).expect("compresses");
}

fn decode(c: &mut Criterion) {
    let tensors = model();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements((SIDE * SIDE) as u64)).sample_size(11);
    for name in ["scalar", "trellis8"] {
        let mut file = tempfile::tempfile().expect("a file");
        encode_to(&mut file, &tensors, &settings(name, Target::Bits(4.0)));
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("reads");
        let container = Container::open(&bytes, &Limits::default()).expect("opens");
        let codec = container.codec(0).expect("a codec");
        let need = codec.required_scratch(codec.precision());
        let (mut words, mut scratch) = (vec![0; need.words], vec![0; need.bytes]);
        let scratch = Scratch { words: &mut words, bytes: &mut scratch };
        let tables = Tables::expand(&codec, codec.precision(), scratch).expect("tables");
        let coded = container.tensor(0).and_then(|tensor| tensor.coded()).expect("coded");

        group.bench_function(format!("{name}/entropy and trellis"), |b| {
            b.iter(|| {
                let mut chunk = Chunk::default();
                for number in 0..coded.tiles() {
                    let tile = coded.tile(number).expect("a tile");
                    let mut decoder = tile.decoder(&tables, Checks::SkipChecksums).expect("starts");
                    while decoder.next_chunk(&mut chunk).expect("decodes") {
                        black_box(&chunk);
                    }
                }
            });
        });
        let mut out = vec![f16::ZERO; SIDE * SIDE];
        group.bench_function(format!("{name}/whole, to f16"), |b| {
            b.iter(|| {
                coded.decode(&tables, Checks::SkipChecksums, &mut out).expect("decodes");
                black_box(&out);
            });
        });
        group.bench_function(format!("{name}/whole, to f16, checksums too"), |b| {
            b.iter(|| {
                coded.decode(&tables, Checks::All, &mut out).expect("decodes");
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn encode(c: &mut Criterion) {
    let tensors = model();
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements((SIDE * SIDE) as u64)).sample_size(10);
    for name in ["scalar", "trellis8", "trellis64"] {
        // At a given step there is one pass and no search for the rate.
        let settings = settings(name, Target::Step(0.13));
        group.bench_function(format!("{name}/one pass"), |b| {
            b.iter(|| encode_to(&mut tempfile::tempfile().expect("a file"), &tensors, &settings));
        });
    }
    group.finish();
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);

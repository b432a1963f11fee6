//! The encoder on a Gaussian matrix of 2048 x 2048 weights at 4 bits.

use std::fs::File;

use criterion::{Criterion, Throughput, criterion_group};
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

fn encode(c: &mut Criterion) {
    let tensors = model();
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements((SIDE * SIDE) as u64)).sample_size(11);
    for name in ["scalar", "trellis8", "trellis64"] {
        // At a given step there is one pass and no search for the rate.
        let settings = settings(name, Target::Step(0.13));
        group.bench_function(name, |b| {
            b.iter(|| encode_to(&mut tempfile::tempfile().expect("a file"), &tensors, &settings));
        });
    }
    group.finish();
}

criterion_group!(benches, encode);

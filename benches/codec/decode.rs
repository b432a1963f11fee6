//! Decoding 67 M Gaussian weights at 4 bits, beside its peers in one process: `constriction`'s entropy decoder on the same symbols, and the copy of as
//! many bytes as the weights take. Compressed and decoded data are larger than any cache.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};

use constriction::stream::Decode;
use constriction::stream::model::{
    SmallContiguousCategoricalEntropyModel, SmallContiguousLookupDecoderModel,
};
use constriction::stream::stack::SmallAnsCoder;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group};
use half::f16;
use nwc_decode_core::{Checks, Chunk, Container, Limits};
use nwc_encode_host::compress::{Settings, Target, compress};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::restore::{Decoder, Restorer, TableMemory};
use nwc_encode_host::simd::Level;
use nwc_encode_host::synthetic::Source;
use nwc_encode_host::tensors::OwnedTensors;

const SIDE: usize = 8192;
const WEIGHTS: usize = SIDE * SIDE;

fn container() -> Vec<u8> {
    let mut tensors = OwnedTensors::default();
    tensors.push_f32("weight", &[SIDE, SIDE], &Source::Gaussian.matrix(SIDE, SIDE, 1));
    let mut file: File = tempfile::tempfile().expect("a file");
    compress(&tensors, Vec::new(), &Settings::new(Target::Bits(4.0)), &Silent, &mut file)
        .expect("compresses");
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("reads");
    bytes
}

/// The value of each symbol, in the order of the streams.
fn symbols(restorer: &Restorer<'_, '_>) -> Vec<i32> {
    let mut symbols = Vec::with_capacity(WEIGHTS);
    let mut chunk = Chunk::default();
    for number in 0..restorer.tensor().tiles() {
        let tile = restorer.tensor().tile(number).expect("a tile");
        let mut decoder = tile.decoder(restorer.tables(), Checks::SkipChecksums).expect("starts");
        while decoder.next_chunk(&mut chunk).expect("decodes") {
            // An index is twice the value and the parity of the state.
            let rows = chunk.latents.iter().take(chunk.rows);
            symbols.extend(rows.flat_map(|row| row[..chunk.lanes].iter().map(|index| index >> 1)));
        }
    }
    symbols
}

/// `constriction`'s ANS decoder of 16-bit words with a table of 12 bits, on the same symbols.
fn constriction(group: &mut BenchmarkGroup<'_, WallTime>, symbols: &[i32]) {
    let least = *symbols.iter().min().expect("there are symbols");
    let mut counts = vec![0f64; (symbols.iter().max().expect("there are symbols") - least) as usize + 1];
    symbols.iter().for_each(|symbol| counts[(symbol - least) as usize] += 1.0);
    let encoder =
        SmallContiguousCategoricalEntropyModel::<Vec<u16>>::from_floating_point_probabilities_fast::<f64>(
            &counts, None,
        )
        .expect("a model");
    let decoder =
        SmallContiguousLookupDecoderModel::<Vec<u16>, Box<[u16]>>::from_floating_point_probabilities_fast::<
            f64,
        >(&counts, None)
        .expect("a model");
    let mut coder = SmallAnsCoder::new();
    coder
        .encode_iid_symbols_reverse(symbols.iter().map(|symbol| (symbol - least) as usize), &encoder)
        .expect("encodes");
    let words = coder.into_compressed().expect("finishes");
    group.bench_function("constriction", |b| {
        b.iter(|| {
            let mut coder = SmallAnsCoder::from_compressed_slice(&words).expect("starts");
            let sum: usize =
                coder.decode_iid_symbols(WEIGHTS, &decoder).map(|symbol| symbol.expect("decodes")).sum();
            black_box(sum)
        });
    });
}

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(WEIGHTS as u64)).sample_size(11).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(std::time::Duration::from_millis(500));
    group
}

fn decode(c: &mut Criterion) {
    let bytes = container();
    let container = Container::open(&bytes, &Limits::default()).expect("opens");
    let thread =
        |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");

    let one = thread(1);
    let mut entropy = group(c, "entropy");
    for &level in Level::available() {
        let mut memory = TableMemory::default();
        let decoder = Decoder::with_level(&container, &mut memory, level).expect("tables");
        let restorer = decoder.coded(&decoder.tensors()[0]).expect("coded");
        entropy.bench_function(format!("{level:?}"), |b| {
            b.iter(|| {
                one.install(|| restorer.decode_symbols()).expect("decodes");
            });
        });
        if level == Level::Plain {
            constriction(&mut entropy, &symbols(&restorer));
        }
    }
    entropy.finish();

    let mut whole = group(c, "whole");
    let mut out = vec![0u8; WEIGHTS * size_of::<f16>()];
    for &level in Level::available() {
        let mut memory = TableMemory::default();
        let decoder = Decoder::with_level(&container, &mut memory, level).expect("tables");
        let restorer = decoder.coded(&decoder.tensors()[0]).expect("coded");
        for threads in if level == Level::best() { vec![1, 2] } else { vec![1] } {
            let pool = thread(threads);
            whole.bench_function(format!("{level:?}, {threads} threads"), |b| {
                b.iter(|| {
                    pool.install(|| restorer.decode::<f16>(Checks::SkipChecksums, &mut out))
                        .expect("decodes");
                });
            });
        }
    }
    let copied = out.clone();
    whole.bench_function("memcpy", |b| b.iter(|| out.copy_from_slice(black_box(&copied))));
    whole.finish();
}

criterion_group!(benches, decode);

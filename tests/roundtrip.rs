//! Arbitrary tensors through the encoder and back: every decoder gives the same bits, and they are close to the originals.

use std::fs::File;
use std::io::{Read, Seek};

use half::{bf16, f16};
use nwc_decode_core::{Checks, Chunk, Coding, Container, DType, Limits, SeekPoint, Synthesis};
use nwc_decode_cuda::{Image, ImageOptions};
use nwc_encode_host::coding::transform::Transform;
use nwc_encode_host::compress::{Report, Selection, Settings, Target, Tuning, compress, quantiser};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::simd::Level;
use nwc_encode_host::synthetic::network;
use nwc_encode_host::tensors::{OwnedTensors, TensorSource, all_finite, to_f32};
use nwc_encode_host::{restore, seek};
use nwc_tests::builder::Rng;
use nwc_tests::decode::{FLOATS, as_dtype, from_stored_points};
use nwc_tests::fuzz::matrices;
use nwc_tests::naive;
use proptest::prelude::*;
use rayon::prelude::*;

/// What the weights of a tensor are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Gaussian,
    /// A few weights ten thousand times as large.
    Outliers,
    Zero,
    Constant,
    /// Below the smallest normal number of the dtype.
    Subnormal,
    /// Near the largest numbers of the dtype.
    Huge,
    /// Rows whose deviations differ by many octaves.
    LoudRows,
    /// Columns whose deviations differ by many octaves.
    LoudColumns,
    /// Most of the weights are zero.
    Sparse,
    /// With a NaN or an infinity.
    NotFinite,
}

#[derive(Debug, Clone)]
struct Spec {
    name: &'static str,
    dims: Vec<usize>,
    dtype: DType,
    kind: Kind,
    seed: u64,
}

/// Independent normal numbers.
struct Normal(Rng);

impl Normal {
    fn next(&mut self) -> f64 {
        let mut uniform = || (self.0.any() >> 11) as f64 / 2f64.powi(53);
        let (u, v) = (1.0 - uniform(), uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

impl Spec {
    fn weights(&self) -> Vec<f32> {
        let mut rng = Rng(self.seed);
        let mut normal = Normal(Rng(!self.seed));
        let (largest, least) = match self.dtype {
            DType::F16 => (65504.0, 2f64.powi(-14)),
            _ => (3.3e38, 2f64.powi(-126)),
        };
        let columns = self.dims.last().copied().unwrap_or(1);
        let count = self.dims.iter().product();
        let octaves: Vec<f64> = (0..count).map(|_| f64::from(rng.within(-7..8))).collect();
        let mut weights: Vec<f32> = (0..count)
            .map(|place| {
                let weight = match self.kind {
                    Kind::Gaussian | Kind::NotFinite => 0.02 * normal.next(),
                    Kind::Outliers if rng.any().is_multiple_of(100) => 20.0 * normal.next(),
                    Kind::Outliers => 0.002 * normal.next(),
                    Kind::Zero => 0.0,
                    Kind::Constant => 0.37,
                    Kind::Subnormal => least * 0.3 * normal.next(),
                    Kind::Huge => largest * 0.3 * normal.next(),
                    Kind::LoudRows => 0.1 * normal.next() * octaves[place / columns].exp2(),
                    Kind::LoudColumns => 0.1 * normal.next() * octaves[place % columns].exp2(),
                    Kind::Sparse if !rng.any().is_multiple_of(10) => 0.0,
                    Kind::Sparse => normal.next(),
                };
                weight.clamp(-largest, largest) as f32
            })
            .collect();
        if self.kind == Kind::NotFinite {
            let place = (rng.any() % weights.len() as u64) as usize;
            weights[place] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][place % 3];
        }
        weights
    }

    fn bytes(&self) -> Vec<u8> {
        let weights = self.weights().into_iter();
        match self.dtype {
            DType::F32 => weights.flat_map(f32::to_le_bytes).collect(),
            DType::F16 => weights.flat_map(|weight| f16::from_f32(weight).to_le_bytes()).collect(),
            DType::BF16 => weights.flat_map(|weight| bf16::from_f32(weight).to_le_bytes()).collect(),
            _ => Rng(self.seed).bytes(self.dims.iter().product::<usize>() * self.dtype.size()),
        }
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let dims = prop_oneof![
        1 => Just(vec![1, 1]),
        1 => (1usize..200).prop_map(|n| vec![1, n]),
        1 => (1usize..200).prop_map(|n| vec![n, 1]),
        1 => (1usize..100).prop_map(|n| vec![n]),
        4 => (1usize..70, 1usize..70).prop_map(|(rows, columns)| vec![rows, columns]),
        1 => (60usize..140, 60usize..140).prop_map(|(rows, columns)| vec![rows, columns]),
        1 => (1usize..20, 1usize..6, 1usize..4, 1usize..4).prop_map(|(o, i, h, w)| vec![o, i, h, w]),
        // Stacks of matrices, by their long last dimension.
        1 => (1usize..4, 1usize..20, 17usize..40).prop_map(|(b, o, i)| vec![b, o, i]),
        1 => Just(vec![]),
        1 => Just(vec![3, 0, 2]),
    ];
    let name = prop_oneof![3 => Just("layers.0.weight"), 1 => Just("token_embedding.weight")];
    let dtype = prop_oneof![
        3 => Just(DType::F32),
        3 => Just(DType::F16),
        3 => Just(DType::BF16),
        1 => Just(DType::I32),
    ];
    let kind = prop_oneof![
        4 => Just(Kind::Gaussian),
        2 => Just(Kind::Outliers),
        1 => Just(Kind::Zero),
        1 => Just(Kind::Constant),
        1 => Just(Kind::Subnormal),
        1 => Just(Kind::Huge),
        1 => Just(Kind::LoudRows),
        2 => Just(Kind::LoudColumns),
        1 => Just(Kind::Sparse),
        1 => Just(Kind::NotFinite),
    ];
    (name, dims, dtype, kind, any::<u64>()).prop_map(|(name, dims, dtype, kind, seed)| {
        let kind = if dims.iter().product::<usize>() == 0 { Kind::Zero } else { kind };
        Spec { name, dims, dtype, kind, seed }
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let quantisers = prop::sample::select(vec!["scalar", "trellis8", "trellis8", "trellis64"]);
    let alpha = prop::sample::select(vec![1.0, 1.0, 0.6, 0.0]);
    let transforms =
        [Transform::Identity, Transform::Identity, Transform::Hadamard, learned(&[]), learned(&[20])];
    let transform = prop::sample::select(transforms.to_vec());
    let code_rounds = prop::sample::select(vec![0, 0, 2]);
    // From a hundredth of a deviation to four.
    let seek_rows = prop::sample::select(vec![0, 16, 100]);
    (quantisers, transform, code_rounds, -6.6f64..2.0, alpha, seek_rows).prop_map(
        |(name, transform, code_rounds, octaves, row_alpha, seek_rows)| Settings {
            quantiser: quantiser(name).expect("it is known"),
            transform,
            code_rounds,
            row_alpha,
            seek_rows,
            ..everything_coded(Target::Step(octaves.exp2()))
        },
    )
}

/// Settings that code whatever can be coded.
fn everything_coded(target: Target) -> Settings {
    let selection = Selection { min_weights: 1, min_side: 1, include: None, exclude: None };
    let tuning = Tuning { transform_always: true, ..Tuning::default() };
    Settings { selection, keep_expanding: true, tuning, ..Settings::new(target) }
}

/// A learned synthesis with hidden layers of these widths.
fn learned(widths: &[u8]) -> Transform {
    Transform::learned(network(widths)).expect("it can be undone")
}

fn model(specs: &[Spec]) -> OwnedTensors {
    let mut model = OwnedTensors::default();
    for (index, spec) in specs.iter().enumerate() {
        model.push(format!("{index}.{}", spec.name), spec.dtype, &spec.dims, spec.bytes());
    }
    model
}

fn compressed(model: &OwnedTensors, settings: &Settings, threads: usize) -> (Report, Vec<u8>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
    let mut file: File = tempfile::tempfile().expect("there is room for a file");
    let report = pool
        .install(|| compress(model, Vec::new(), settings, &Silent, &mut file))
        .expect("the model can be compressed");
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("the file can be read");
    (report, bytes)
}

/// Compares what decoders make of a container with one another and with the model that went in.
fn check(model: &OwnedTensors, report: &Report, bytes: &[u8]) {
    let container = Container::open(bytes, &Limits::default()).expect("the container is legal");
    let naive = naive::File::parse(bytes);
    let mut memory = restore::TableMemory::default();
    let decoder = restore::Decoder::new(&container, &mut memory).expect("the tables expand");
    assert_eq!(container.len(), model.len());
    let (mut error, mut energy) = (0.0, 0.0);
    for (index, tensor) in container.tensors().enumerate() {
        let (info, original) = (model.tensor(index), model.bytes(index));
        let line = &report.tensors[index];
        assert_eq!((line.name.as_str(), line.shape.as_slice()), (info.name, info.shape));
        assert_eq!((tensor.name().to_string().as_str(), tensor.dtype()), (info.name, info.dtype));
        assert_eq!(naive.tensors[index].name, info.name);
        assert!(tensor.shape().iter().zip(info.shape).all(|(&a, &b)| a == b as u64));
        assert_eq!(line.coding, restore::coding_name(tensor.coding()));

        let own = decoder.decode(&tensor, Checks::All).expect("it decodes");
        assert!(own == naive.decode(index, None), "{} in its own dtype", info.name);
        if let Coding::Alias(target) = tensor.coding() {
            assert_eq!(original, model.bytes(target));
            let target = container.tensor(target).expect("the target is there");
            assert!(own == decoder.decode(&target, Checks::All).expect("it decodes"));
            continue;
        }
        let codable = FLOATS.contains(&info.dtype) && !original.is_empty() && !info.shape.is_empty();
        assert_eq!(tensor.coding() == Coding::Coded, codable && all_finite(info.dtype, original));
        if tensor.coding() == Coding::Raw {
            assert!(own == original, "{} is raw", info.name);
            continue;
        }
        for (code, dtype) in FLOATS.into_iter().enumerate() {
            let expected = naive.decode(index, Some(code));
            for &level in Level::available() {
                let mut memory = restore::TableMemory::default();
                let decoder = restore::Decoder::with_level(&container, &mut memory, level).expect("tables");
                let host = decoder.decode_as(&tensor, dtype, Checks::All).expect("it decodes");
                assert!(host == expected, "{} as {dtype}, {level:?}", info.name);
            }
            let core = as_dtype(&container, &tensor, dtype, (6, Checks::All, 0xFF)).expect("it decodes");
            assert!(core == expected, "{} as {dtype}", info.name);
        }

        let weights = to_f32(info.dtype, original);
        let decoded = naive.weights_and_steps(index);
        let coded = tensor.coded().expect("it is coded");
        let synthesis = container.codec(coded.codec_index()).expect("it is there").synthesis();
        let transformed = synthesis != Synthesis::Identity && !coded.is_direct();
        let largest = weights
            .iter()
            .zip(&decoded)
            .map(|(weight, (_, step))| (f64::from(*weight) / step).abs())
            .fold(0.0, f64::max);
        // An index cannot be larger than this, so weights beyond it saturate; a transform spreads that, and the errors of sixteen indices.
        let (reach, most) = if transformed { (8_000.0, 12.5) } else { (32_000.0, 3.0) };
        for (place, (&weight, &(decoded, step))) in weights.iter().zip(&decoded).enumerate() {
            let weight = f64::from(weight);
            let near = if transformed { largest } else { (weight / step).abs() };
            if near < reach {
                assert!(
                    (weight - decoded).abs() <= most * step + weight.abs() * 2f64.powi(-23),
                    "{} at {place}: {weight:e} became {decoded:e} with a step of {step:e}",
                    info.name
                );
            }
        }
        let (mut tensor_error, mut tensor_energy) = (0.0, 0.0);
        for (&a, &b) in weights.iter().zip(&to_f32(info.dtype, &own)) {
            tensor_error += (f64::from(a) - f64::from(b)).powi(2);
            tensor_energy += f64::from(a).powi(2);
        }
        let nmse = if tensor_energy > 0.0 { tensor_error / tensor_energy } else { 0.0 };
        assert!(same(nmse, line.nmse), "{}: {nmse:e}, reported {:e}", info.name, line.nmse);
        (error, energy) = (error + tensor_error, energy + tensor_energy);
    }
    let nmse = if energy > 0.0 { error / energy } else { 0.0 };
    assert!(same(nmse, report.nmse), "{nmse:e}, reported {:e}", report.nmse);
    assert_eq!(report.split.bytes(), bytes.len() as u64);
}

/// What GPUs read decodes to the same, by the code of their threads.
fn check_images(bytes: &[u8]) {
    let container = Container::open(bytes, &Limits::default()).expect("the container is legal");
    for item_rows in [16, 48, 4096] {
        let image = Image::new(&container, ImageOptions { item_rows }).expect("the container is good");
        for (number, line) in image.tensors().iter().enumerate() {
            let tensor = container.tensor(line.index).expect("it is there");
            let expected =
                as_dtype(&container, &tensor, DType::F32, (6, Checks::All, 0xFF)).expect("it decodes");
            let mut weights = vec![0f32; line.elements()];
            image.decode_on_host(number, &mut weights).expect("it is sound");
            let found: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
            assert!(found == expected, "{} in an image of {item_rows} rows an item", line.name);
        }
    }
}

/// Stored seek points are those that are made when the container is loaded, and parts of tiles decode from them side by side.
fn check_seek_points(bytes: &[u8], seek_rows: usize) {
    let container = Container::open(bytes, &Limits::default()).expect("the container is legal");
    let mut memory = restore::TableMemory::default();
    let decoder = restore::Decoder::new(&container, &mut memory).expect("the tables expand");
    let stored: Vec<_> = container.seek_points().expect("they are legal").collect();
    let mut made = Vec::new();
    for (index, tensor) in decoder.tensors().iter().enumerate() {
        if seek_rows == 0 || tensor.coding() != Coding::Coded {
            continue;
        }
        let restorer = decoder.coded(tensor).expect("it is coded");
        let (coded, tables) = (restorer.tensor(), restorer.tables());
        for (number, points) in
            seek::points(coded, tables, seek_rows).expect("it decodes").into_iter().enumerate()
        {
            let tile = coded.tile(number).expect("it is there");
            let starts = std::iter::once(None).chain(points.iter().map(Some));
            let starts: Vec<Option<&SeekPoint>> = starts.collect();
            // Each part decodes up to where the next begins, and comes to its very state.
            starts.par_iter().zip(points.par_iter()).for_each(|(start, end)| {
                let mut decoder = match start {
                    Some(point) => tile.decoder_at(tables, Checks::All, point),
                    None => tile.decoder(tables, Checks::All),
                }
                .expect("the point is good");
                let mut chunk = Chunk::default();
                while decoder.seek_point() != *end {
                    assert!(decoder.next_chunk(&mut chunk).expect("it decodes"));
                }
            });
            made.extend(points.into_iter().map(|point| (index, number, point)));
        }
    }
    assert!(made == stored);
    assert_eq!(seek::check(&container, &decoder).expect("they are good"), made.len());
    assert_eq!(from_stored_points(&container), Ok(made.len()));
}

/// Equal but for the order of summation.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

proptest! {
    // A case that fails is printed in full, seeds and all: no file needs to remember it.
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoders_agree_on_what_the_encoder_writes(
        specs in prop::collection::vec(spec(), 1..5),
        twin in any::<bool>(),
        settings in settings(),
    ) {
        let mut model = model(&specs);
        if twin {
            model.push("twin", specs[0].dtype, &specs[0].dims, specs[0].bytes());
        }
        let (report, bytes) = compressed(&model, &settings, 1);
        check(&model, &report, &bytes);
        check_images(&bytes);
        check_seek_points(&bytes, settings.seek_rows);
        if twin {
            let expected = if specs[0].bytes().len() >= 64 { "alias" } else { report.tensors[0].coding };
            prop_assert_eq!(report.tensors[specs.len()].coding, expected);
        }
        let (_, again) = compressed(&model, &settings, 3);
        prop_assert!(bytes == again, "the number of threads changes the container");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// A rate is met by models that are large enough for it.
    #[test]
    fn rates_are_met(
        bits in 2.5f64..7.0,
        name in prop::sample::select(vec!["scalar", "trellis8"]),
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
        seed in any::<u64>(),
    ) {
        let spec = |dims: &[usize], kind| Spec { name: "w", dims: dims.to_vec(), dtype, kind, seed };
        let model = model(&[spec(&[200, 160], Kind::Gaussian), spec(&[64, 100], Kind::LoudRows)]);
        let settings = Settings {
            quantiser: quantiser(name).expect("it is known"),
            ..everything_coded(Target::Bits(bits))
        };
        let (report, bytes) = compressed(&model, &settings, 1);
        check(&model, &report, &bytes);
        let rate = report.bits_per_weight();
        prop_assert!((bits - 0.03..=bits).contains(&rate), "{rate} bits, {bits} wanted");
        let (_, again) = compressed(&model, &settings, 3);
        prop_assert!(bytes == again, "the number of threads changes the container");
    }
}

#[test]
fn outliers_are_no_further_off_than_other_weights() {
    // One weight in 10,000 lies 30 deviations out.
    let mut normal = Normal(Rng(30));
    let mut weight = |i: usize| match i % 20_000 {
        5_000 => 30.0,
        15_000 => -30.0,
        _ => normal.next() as f32,
    };
    let weights: Vec<f32> = (0..1 << 20).map(&mut weight).collect();
    let mut model = OwnedTensors::default();
    model.push_f32("weight", &[1 << 10, 1 << 10], &weights);
    for bits in [2.0, 3.0, 4.0, 6.0] {
        let settings = Settings::new(Target::Bits(bits));
        let mut file = tempfile::tempfile().unwrap();
        let report = compress(&model, Vec::new(), &settings, &Silent, &mut file).unwrap();
        matrices::check(&model, &settings, &report, &matrices::contents(&mut file));
    }
}

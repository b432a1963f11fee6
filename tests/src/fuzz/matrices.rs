//! Small models with large surprises, and what must hold once they are compressed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use arbitrary::Arbitrary;
use half::{bf16, f16};
use nwc_decode_core::{Checks, Chunk, Coding, Container, DType, Limits, Tensor};
use nwc_encode_host::compress::{Report, Selection, Settings, Target, compress, quantiser};
use nwc_encode_host::container::Split;
use nwc_encode_host::progress::Silent;
use nwc_encode_host::restore::{Decoder, TableMemory};
use nwc_encode_host::tensors::{OwnedTensors, TensorSource, to_f32};

/// Weights of one matrix at most: what is rare in shapes and values needs many models, not large ones.
const MAX_WEIGHTS: usize = 2048;
/// Matrices of a model at most.
const MAX_MATRICES: usize = 3;

/// A model, and how to compress it.
#[derive(Debug, Arbitrary)]
pub struct Job {
    quantiser: QuantiserName,
    target: Rate,
    /// In 1/255.
    row_alpha: u8,
    /// Code vectors and the smallest matrices too.
    code_all: bool,
    first: Matrix,
    more: Vec<Matrix>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum QuantiserName {
    Scalar,
    Trellis8,
    Trellis16,
    Trellis32,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Rate {
    /// Bits a weight, in 1/16; at least one of them.
    Bits(u8),
    Bytes(u16),
    /// In 1/16 octave, about 1/8 of a deviation.
    Step(i8),
}

#[derive(Debug, Arbitrary)]
struct Matrix {
    dtype: Weights,
    shape: Shape,
    rows: u8,
    columns: u16,
    values: Values,
    /// Powers of two that rows and columns are multiplied by, in turn.
    row_octaves: Vec<i8>,
    column_octaves: Vec<i8>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Weights {
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Shape {
    Linear,
    /// Coded transposed, which its name decides.
    Embedding,
    Vector,
    /// A stack of matrices.
    Experts,
    Convolution,
}

#[derive(Debug, Arbitrary)]
enum Values {
    /// Bell-shaped, from a seed.
    Bell(u32),
    /// A few levels, in turn.
    Levels(Vec<i8>),
    /// Any bit pattern of the dtype; NaN and infinity as well.
    Bits(Vec<u32>),
}

impl Matrix {
    fn weights(&self, count: usize, columns: usize) -> Vec<f32> {
        let octaves = |of: &[i8], at: usize| if of.is_empty() { 0 } else { i32::from(of[at % of.len()]) };
        let mut state = if let Values::Bell(seed) = self.values { u64::from(seed) } else { 0 };
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        };
        (0..count)
            .map(|at| {
                let scale =
                    octaves(&self.row_octaves, at / columns) + octaves(&self.column_octaves, at % columns);
                let value = match &self.values {
                    Values::Bell(_) => uniform() + uniform() + uniform() + uniform(),
                    Values::Levels(levels) => octaves(levels, at) as f32,
                    Values::Bits(bits) if bits.is_empty() => 0.0,
                    Values::Bits(bits) => f32::from_bits(bits[at % bits.len()]),
                };
                value * (scale as f32).exp2()
            })
            .collect()
    }

    fn push_to(&self, model: &mut OwnedTensors, number: usize) {
        let columns = usize::from(self.columns) % (2 * MAX_WEIGHTS) + 1;
        let rows = (usize::from(self.rows) + 1).min(MAX_WEIGHTS / columns).max(1);
        let (name, shape) = match self.shape {
            Shape::Linear => ("weight", vec![rows, columns]),
            Shape::Embedding => ("embedding", vec![rows, columns]),
            Shape::Vector => ("bias", vec![columns]),
            // The last dimension tells a stack from the kernel of a convolution.
            Shape::Experts => ("experts", vec![rows.div_ceil(4), 4, columns]),
            Shape::Convolution => ("conv", vec![rows, columns.div_ceil(9), 3, 3]),
        };
        let weights = self.weights(shape.iter().product(), columns);
        let (dtype, bytes): (_, Vec<u8>) = match self.dtype {
            Weights::F32 => (DType::F32, weights.iter().flat_map(|w| w.to_le_bytes()).collect()),
            Weights::F16 => {
                (DType::F16, weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect())
            }
            Weights::Bf16 => {
                (DType::BF16, weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect())
            }
        };
        model.push(format!("layers.{number}.{name}"), dtype, &shape, bytes);
    }
}

impl Job {
    /// The model.
    pub fn model(&self) -> OwnedTensors {
        let mut model = OwnedTensors::default();
        for (number, matrix) in std::iter::once(&self.first).chain(&self.more).take(MAX_MATRICES).enumerate()
        {
            matrix.push_to(&mut model, number);
        }
        model
    }

    fn settings(&self) -> Settings {
        let target = match self.target {
            Rate::Bits(bits) => Target::Bits(f64::from(bits.max(1)) / 16.0),
            Rate::Bytes(bytes) => Target::Size(u64::from(bytes)),
            Rate::Step(step) => Target::Step((f64::from(step.clamp(-60, 70)) / 16.0 - 3.0).exp2()),
        };
        let name = match self.quantiser {
            QuantiserName::Scalar => "scalar",
            QuantiserName::Trellis8 => "trellis8",
            QuantiserName::Trellis16 => "trellis16",
            QuantiserName::Trellis32 => "trellis32",
        };
        let mut settings = Settings::new(target);
        settings.quantiser = quantiser(name).expect("it has one of this name");
        settings.row_alpha = f64::from(self.row_alpha) / 255.0;
        settings.keep_expanding = true;
        if self.code_all {
            settings.selection = Selection { min_weights: 1, min_side: 1, ..Selection::default() };
        }
        settings
    }

    /// Compresses the model and checks everything that is promised about the result.
    pub fn run(&self) {
        let model = self.model();
        let settings = self.settings();
        let mut file = tempfile::tempfile().expect("the system has room for temporary files");
        let report = match compress(&model, Vec::new(), &settings, &Silent, &mut file) {
            Ok(report) => report,
            Err(error) => {
                // A small model cannot have every rate. It can always be coded with a step.
                let text = error.to_string();
                assert!(text.contains("out of reach") && !matches!(self.target, Rate::Step(_)), "{text}");
                return;
            }
        };
        check(&model, &settings, &report, &contents(&mut file));
    }
}

/// The bytes of an open file.
pub fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("a file can be read again");
    file.read_to_end(&mut bytes).expect("a file can be read again");
    bytes
}

/// Checks everything that is promised about what a model was compressed to: among the rest, that no weight is further off than 2.02 steps with a trellis, 2.5 without.
///
/// # Panics
/// If a promise is not kept.
pub fn check(model: &OwnedTensors, settings: &Settings, report: &Report, bytes: &[u8]) {
    let container =
        Container::open(bytes, &Limits::default()).expect("the encoder writes what can be opened");
    assert_eq!(container.len(), model.len());
    assert_eq!(report.split, Split::of(&container).expect("the encoder writes sound containers"));
    assert_eq!(report.split.bytes(), bytes.len() as u64);
    match settings.target {
        Target::Bits(bits) => assert!(report.bits_per_weight() <= bits, "{}", report.bits_per_weight()),
        Target::Size(size) => assert!(bytes.len() as u64 <= size),
        Target::Step(_) => {}
    }

    let mut memory = TableMemory::default();
    let decoder = Decoder::new(&container, &mut memory).expect("the encoder writes sound codecs");
    let (mut weights, mut error, mut energy) = (0, 0.0, 0.0);
    for (index, tensor) in decoder.tensors().iter().enumerate() {
        let (info, original) = (model.tensor(index), model.bytes(index));
        assert!(tensor.name() == *info.name);
        assert!(tensor.shape().iter().map(|&dim| dim as usize).eq(info.shape.iter().copied()));
        let decoded = decoder.decode(tensor, Checks::All).expect("it decodes, checksums and all");
        if tensor.coding() != Coding::Coded {
            let twin = decoder.resolve(tensor).expect("aliases suit what they stand for");
            assert!(
                twin.coding() == Coding::Coded || decoded == original,
                "what is not coded stays as it was"
            );
            continue;
        }
        let (was, is) = (to_f32(info.dtype, original), to_f32(info.dtype, &decoded));
        let square = |x: f64| x * x;
        let off: f64 = was.iter().zip(&is).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
        let all: f64 = was.iter().map(|&a| square(f64::from(a))).sum();
        assert_close(report.tensors[index].nmse, if all > 0.0 { off / all } else { 0.0 });
        (weights, error, energy) = (weights + was.len() as u64, error + off, energy + all);
        check_distances(settings, &decoder, tensor, &was);
    }
    assert_eq!(report.weights, weights);
    assert_close(report.nmse, if energy > 0.0 { error / energy } else { 0.0 });
}

/// Sums of the same terms in another order.
fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * a.abs().max(b.abs()), "{a:e}, not {b:e}");
}

/// No weight lies further from its index than the search may go, unless it is out of every index's reach.
fn check_distances<'a>(settings: &Settings, decoder: &Decoder<'a>, tensor: &Tensor<'a>, weights: &[f32]) {
    // A trellis leaves a choice of two subsets of every fourth index, each of them rounded to its nearest. The scalar search
    // may also take 0, which saves at most an escape of about 30 bits at 0.1 squared steps each.
    let trellis = settings.quantiser.spacing() > 1.0;
    let (reach, most) = if trellis { (65_530.0, 2.02) } else { (32_760.0, 2.5) };
    // Where steps follow the rows' deviations no weight is that large: a row's largest is the square root of its length.
    let normalised = settings.row_alpha.to_bits() == 1f64.to_bits();
    let restorer = decoder.coded(tensor).expect("it is coded");
    let (coded, tables) = (restorer.tensor(), restorer.tables());
    let [_, out, input] = coded.shape();
    let mut chunk = Chunk::default();
    for number in 0..coded.tiles() {
        let tile = coded.tile(number).expect("it has so many");
        let region = tile.region();
        let mut decoder = tile.decoder(tables, Checks::All).expect("it decoded before");
        while decoder.next_chunk(&mut chunk).expect("it decoded before") {
            for (row, latents) in chunk.latents.iter().enumerate().take(chunk.rows) {
                for (lane, &latent) in latents.iter().enumerate().take(chunk.lanes) {
                    let (row_at, column_at) = (chunk.first_row + row, chunk.first_column + lane);
                    let (o, i) =
                        if coded.is_transposed() { (column_at, row_at) } else { (row_at, column_at) };
                    let at = (region.batch * out + region.out.start + o) * input + region.input.start + i;
                    let step = f64::from(chunk.row_scale[row]) * f64::from(chunk.column_scale[lane]);
                    let place = f64::from(weights[at]) / step;
                    assert!(!normalised || place.abs() <= reach, "weight {at} of {place} steps was clipped");
                    let distance = (place.clamp(-reach, reach) - f64::from(latent)).abs();
                    assert!(distance <= most, "weight {at} is {place} steps large and became {latent}");
                }
            }
        }
    }
}

//! What only a GPU can show: that its weights are the processor's, what damage does there, and how fast it is.

#[path = "gpu/malformed.rs"]
mod malformed;
#[path = "gpu/report.rs"]
mod report;

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use half::f16;
use nwc_decode_core::{Container, Crc32, DType, Limits};
use nwc_decode_cuda::cust::context::{Context, ContextFlags};
use nwc_decode_cuda::cust::event::{Event, EventFlags};
use nwc_decode_cuda::cust::memory::{CopyDestination, DeviceBuffer};
use nwc_decode_cuda::cust::stream::{Stream, StreamFlags};
use nwc_decode_cuda::cust::{CudaFlags, device::Device, init};
use nwc_decode_cuda::layout::synthesis;
use nwc_decode_cuda::{Decoder, Image, ImageOptions, ImageTensor, LatentMatrices, Product};
use nwc_encode_host::codec_file;
use nwc_encode_host::coding::transform::Transform;
use nwc_encode_host::compress::{Settings, Target, Tuning, compress};
use nwc_encode_host::progress::Silent;
use nwc_encode_host::synthetic::{Source, network, residual_codec};
use nwc_encode_host::tensors::OwnedTensors;
use rayon::prelude::*;
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
    /// Write the results to this file too, as those in benches/results are
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    /// The commit that this was built from; what git says if it is not given
    #[arg(long, global = true)]
    commit: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Decode all vectors of a folder and compare with its ledger
    Verify {
        /// The folder
        vectors: PathBuf,
        /// Leave out longer containers
        #[arg(long, default_value_t = usize::MAX)]
        most_bytes: usize,
        /// Rows of an item
        #[arg(long, value_delimiter = ',', default_value = "16,64,4096")]
        item_rows: Vec<usize>,
        /// Warps of a block: the weights must not depend on it
        #[arg(long, value_delimiter = ',', default_value = "1,2,5,16,20")]
        warps: Vec<usize>,
    },
    /// Damage the vectors of a folder byte by byte, and compare what the GPU finds with what the processor does
    Malformed {
        /// The folder
        vectors: PathBuf,
        /// Leave out longer containers
        #[arg(long, default_value_t = 4096)]
        most_bytes: usize,
        /// Up to this length, each bit of a byte is flipped, and not one of them
        #[arg(long, default_value_t = 400)]
        all_bits: usize,
    },
    /// Measure decoding and products
    Speed {
        /// Gigabytes of F16 to decode at once
        #[arg(long, default_value_t = 2.0)]
        gigabytes: f64,
        /// Bits a weight
        #[arg(long, value_delimiter = ',', default_value = "4")]
        bits: Vec<f64>,
        /// Rows of an item
        #[arg(long, value_delimiter = ',', default_value = "256,512,1024")]
        item_rows: Vec<usize>,
        /// How indices become weights
        #[arg(long, value_delimiter = ',', default_value = "identity")]
        synthesis: Vec<Synthesis>,
    },
}

/// Syntheses that are measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Synthesis {
    Identity,
    Hadamard,
    /// A learned matrix
    Linear,
    /// A learned matrix, and a hidden layer of 32 units
    Compact,
    /// A learned matrix, and two hidden layers of 48 units
    Deep,
    /// The paper's network, of width 512: a stage behind the decoding of latents, measured by itself
    Paper,
}

impl Synthesis {
    fn transform(self) -> Option<Transform> {
        match self {
            Self::Identity => Some(Transform::Identity),
            Self::Hadamard => Some(Transform::Hadamard),
            Self::Linear => Transform::learned(network(&[])),
            Self::Compact => Transform::learned(network(&[32])),
            Self::Deep => Transform::learned(network(&[48, 48])),
            Self::Paper => None,
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    // The driver has words for its errors only once it has started.
    init(CudaFlags::empty()).map_err(|error| anyhow::anyhow!("the CUDA driver does not start: {error:?}"))?;
    let device = Device::get_device(0)?;
    let context = Context::new(device)?;
    context.set_flags(ContextFlags::SCHED_AUTO)?;
    let results = match &options.command {
        Command::Verify { vectors, most_bytes, item_rows, warps } => {
            verify(&context, vectors, *most_bytes, item_rows, warps)?
        }
        Command::Malformed { vectors, most_bytes, all_bits } => {
            malformed::run(&context, vectors, *most_bytes, *all_bits)?
        }
        Command::Speed { gigabytes, bits, item_rows, synthesis } => {
            let mut lines = Vec::new();
            for &synthesis in synthesis {
                if matches!(synthesis, Synthesis::Paper) {
                    lines.push(residual_speed(&context)?);
                    continue;
                }
                for &bits in bits {
                    lines.extend(speed(&context, *gigabytes, bits, synthesis, item_rows)?);
                }
            }
            json!(lines)
        }
    };
    report::finish(device, &results, options.out.as_deref(), options.commit.as_deref())
}

/// A vector that decodes.
struct Vector {
    file: String,
    bytes: Vec<u8>,
    /// By tensor and type, the CRC-32 of what it decodes to.
    crc: BTreeMap<String, Value>,
}

/// The vectors of a folder that decode, up to some length.
fn sound_vectors(folder: &Path, most_bytes: usize) -> Result<Vec<Vector>> {
    let ledger: Value = serde_json::from_slice(&std::fs::read(folder.join("ledger.json"))?)?;
    let mut vectors = Vec::new();
    for vector in ledger["vectors"].as_array().context("the ledger has vectors")? {
        if !vector["error"].is_null() || !vector["call"].is_null() {
            continue;
        }
        let file = vector["file"].as_str().context("a vector has a file")?;
        let bytes = std::fs::read(folder.join(file)).context(file.to_owned())?;
        let tensors = vector["tensors"].as_array().context("a vector has tensors")?;
        let name = |tensor: &Value| tensor["name"].as_str().unwrap_or_default().to_owned();
        let crc = tensors.iter().map(|tensor| (name(tensor), tensor["crc"].clone())).collect();
        if bytes.len() <= most_bytes {
            vectors.push(Vector { file: file.to_owned(), bytes, crc });
        }
    }
    ensure!(!vectors.is_empty(), "no vector of at most {most_bytes} bytes in {}", folder.display());
    Ok(vectors)
}

/// A decoder with an image: the last one with its kernels, if there is one.
fn with_image(context: &Context, decoder: Option<Decoder>, image: Image) -> Result<Decoder> {
    match decoder {
        Some(mut decoder) => {
            decoder.replace_image(image)?;
            Ok(decoder)
        }
        None => Ok(Decoder::with_image(context, image)?),
    }
}

/// Decodes tensors of an image to host memory.
fn decode(
    decoder: &Decoder,
    stream: &Stream,
    tensors: &[usize],
    dtype: DType,
) -> Result<(Vec<Vec<u8>>, Vec<u32>)> {
    let outputs = tensors
        .iter()
        .map(|&tensor| {
            let bytes = decoder.image().tensors()[tensor].elements() * dtype.size();
            Ok(DeviceBuffer::from_slice(&vec![0xA5u8; bytes])?)
        })
        .collect::<Result<Vec<_>>>()?;
    let pointers: Vec<_> = outputs.iter().map(|output| output.as_device_ptr()).collect();
    let plan = decoder.plan(tensors, dtype, &pointers)?;
    // SAFETY: the outputs are as long as their tensors, and live until the work is done.
    unsafe { plan.decode(stream)? };
    let status = plan.status(stream)?;
    let bytes = outputs
        .iter()
        .map(|output| {
            let mut bytes = vec![0; output.len()];
            output.copy_to(&mut bytes)?;
            Ok(bytes)
        })
        .collect::<Result<_>>()?;
    Ok((bytes, status))
}

/// The most that a product may be off, as a part of its norm: x times the scale of its column is rounded to binary16.
const MOST_PRODUCT_ERROR: f64 = 5e-4;
/// The same where latents are rounded to binary16 too, and may cancel.
const MOST_LEARNED_ERROR: f64 = 5e-3;

fn verify(
    context: &Context,
    folder: &Path,
    most_bytes: usize,
    item_rows: &[usize],
    warps: &[usize],
) -> Result<Value> {
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let (mut files, mut tensors, mut products) = (0, 0, 0);
    let (mut worst_product, mut wrong) = (0f64, Vec::new());
    let mut kept = None;
    for vector in sound_vectors(folder, most_bytes)? {
        let file = &vector.file;
        let container = Container::open(&vector.bytes, &Limits::default())?;
        files += 1;
        for &item_rows in item_rows {
            let image = Image::new(&container, ImageOptions { item_rows })?;
            let mut decoder = with_image(context, kept.take(), image)?;
            let all: Vec<usize> = (0..decoder.image().tensors().len()).collect();
            for &warps in warps {
                decoder = decoder.with_warps(warps);
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    if all.is_empty() {
                        continue;
                    }
                    let (outputs, status) = decode(&decoder, &stream, &all, dtype)?;
                    ensure!(status.iter().all(|&code| code == 0), "{file}: status {status:?}");
                    for (tensor, output) in decoder.image().tensors().iter().zip(outputs) {
                        let name = tensor.name.as_str();
                        let expected = vector.crc[name][dtype.name()].as_str().unwrap_or_default();
                        let found = format!("{:08x}", Crc32::of(&output));
                        ensure!(
                            found == expected,
                            "{file}: {name} as {dtype}, {item_rows} rows, {warps} warps: {found}, not {expected}"
                        );
                        tensors += 1;
                    }
                }
            }
            for &tensor in &all {
                let ImageTensor { shape, name, .. } = &decoder.image().tensors()[tensor];
                if shape[0] != 1 || decoder.image().tensors()[tensor].elements() == 0 {
                    continue;
                }
                for batch in [1, 3, 16] {
                    let error = product_error(&decoder, &stream, tensor, batch)?;
                    // A product of zeros, or beyond the normal numbers of F32, has no error to speak of.
                    if error.is_finite() {
                        let synthesis = decoder.image().record(tensor).synthesis;
                        let most = if synthesis < synthesis::LINEAR {
                            MOST_PRODUCT_ERROR
                        } else {
                            MOST_LEARNED_ERROR
                        };
                        if error > most {
                            wrong.push(format!("{file}: {name}, {item_rows} rows, batch {batch}: {error:e}"));
                        }
                        worst_product = worst_product.max(error);
                        products += 1;
                    }
                }
            }
            kept = Some(decoder);
        }
    }
    let residual = residual_error(&kept.context("there are vectors")?, &stream)?;
    ensure!(wrong.is_empty(), "products that are not W x:\n{}", wrong.join("\n"));
    Ok(json!({
        "files": files,
        "item_rows": item_rows,
        "warps": warps,
        "tensors_equal": tensors,
        "products": products,
        "worst_product_error": worst_product,
        "worst_residual_error": residual,
    }))
}

/// The most that weights which the paper's network restores in binary16 may be off, as a part of the largest.
const MOST_RESIDUAL_ERROR: f32 = 1e-2;

/// Latents of a tensor, for a network of the paper's form that nobody trained.
struct Latents {
    codec: codec_file::FloatCodec,
    /// `[batch, out, in]`.
    shape: [usize; 3],
    values: Vec<f32>,
    levels: Vec<u8>,
    deviations: Vec<f32>,
}

impl Latents {
    fn new(shape: [usize; 3]) -> Result<Self> {
        let codec = codec_file::residual(&residual_codec(512, 4, 4));
        let [batch, out, input] = shape;
        let normal = Source::Gaussian.matrix(batch * out.next_multiple_of(16), input, 1);
        Ok(Self {
            codec: codec.map_err(|error| anyhow::anyhow!("{error}"))?,
            shape,
            values: normal.iter().map(|x| (2.0 * x).round()).collect(),
            levels: (0..input).map(|column| (column % 4) as u8).collect(),
            deviations: (0..batch * out).map(|row| 0.5 + (row % 9) as f32 / 8.0).collect(),
        })
    }

    /// The weights as F32, by the GPU, and the seconds that they took.
    fn restore(&self, decoder: &Decoder, stream: &Stream, runs: usize) -> Result<(Vec<f32>, f64)> {
        let network = decoder.residual(&self.codec.synthesis.for_gpu())?;
        let latents = DeviceBuffer::from_slice(&self.values)?;
        let levels = DeviceBuffer::from_slice(&self.levels)?;
        let deviations = DeviceBuffer::from_slice(&self.deviations)?;
        let output = DeviceBuffer::from_slice(&vec![0xA5u8; 4 * self.shape.iter().product::<usize>()])?;
        let tensor = LatentMatrices {
            shape: self.shape,
            latents: latents.as_device_ptr(),
            levels: levels.as_device_ptr(),
            deviations: deviations.as_device_ptr(),
        };
        // SAFETY: all have the lengths that the shape asks for, and live until the work is done.
        let restore =
            |_| Ok(unsafe { network.restore(decoder, stream, &tensor, DType::F32, output.as_device_ptr()) }?);
        let seconds = median(stream, runs, restore)?;
        let mut bytes = vec![0; output.len()];
        output.copy_to(&mut bytes)?;
        Ok((bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), seconds))
    }

    /// The same by the processor.
    fn expected(&self) -> Vec<f32> {
        let [batch, out, input] = self.shape;
        let each = out.div_ceil(16);
        let latent = |block: usize, column: usize, j: usize| self.values[(16 * block + j) * input + column];
        let mut chunks: Vec<[f32; 16]> = (0..batch * each * input)
            .map(|at| std::array::from_fn(|j| latent(at / input, at % input, j)))
            .collect();
        self.codec.synthesis.apply(&mut chunks, &self.levels);
        let weight = |row: usize, column: usize| {
            let block = row / out * each + row % out / 16;
            chunks[block * input + column][row % out % 16] * self.deviations[row]
        };
        (0..batch * out * input).map(|at| weight(at / input, at % input)).collect()
    }
}

/// Compares what the paper's network makes of latents on the GPU and on the processor: the largest difference, as a part of the largest weight.
fn residual_error(decoder: &Decoder, stream: &Stream) -> Result<f32> {
    let mut worst = 0f32;
    for shape in [[2, 40, 100], [1, 16, 1], [3, 7, 65]] {
        let latents = Latents::new(shape)?;
        let (expected, (found, _)) = (latents.expected(), latents.restore(decoder, stream, 1)?);
        let largest = expected.iter().fold(0f32, |most, weight| most.max(weight.abs()));
        for (expected, found) in expected.iter().zip(found) {
            let error = (expected - found).abs() / largest;
            // NaN is no small error either.
            ensure!(
                error <= MOST_RESIDUAL_ERROR,
                "{shape:?}: restored weights are off by {error} of the largest"
            );
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

/// How fast the paper's network restores a matrix, its latents being there.
fn residual_speed(context: &Context) -> Result<Value> {
    // The network needs a decoder, whatever that decodes.
    let mut tensors = OwnedTensors::default();
    tensors.push_f32("t".to_owned(), &[64, 64], &Source::Gaussian.matrix(64, 64, 1));
    let file = compressed(&tensors, &Settings::new(Target::Bits(4.0)))?;
    let decoder = Decoder::new(context, &Container::open(&file, &Limits::default())?)?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let latents = Latents::new([1, 4096, 4096])?;
    let (_, seconds) = latents.restore(&decoder, &stream, 11)?;
    let weights = 4096.0 * 4096.0;
    Ok(
        json!({ "synthesis": "paper", "4096x4096": { "to_f32_us": seconds * 1e6 }, "gweights_per_second": weights / seconds / 1e9 }),
    )
}

/// Matrices of a model as large as asked for, compressed at so many bits a weight.
fn model(gigabytes: f64, bits: f64, synthesis: Synthesis) -> Result<Vec<u8>> {
    let (mut shapes, mut bytes) = (Vec::new(), 0.0);
    while bytes < gigabytes * 1e9 || shapes.len() < 2 {
        shapes.push([[4096, 4096], [14336, 4096]][shapes.len() % 2]);
        bytes += 2.0 * shapes.last().map_or(0, |[rows, columns]| rows * columns) as f64;
    }
    // Each has a seed of its own, for equal tensors would be stored once.
    let weights: Vec<Vec<f32>> = shapes
        .par_iter()
        .enumerate()
        .map(|(seed, &[rows, columns])| Source::Gaussian.matrix(rows, columns, seed as u64))
        .collect();
    let mut tensors = OwnedTensors::default();
    for (number, (shape, weights)) in shapes.iter().zip(&weights).enumerate() {
        tensors.push_f32(format!("t{number}"), shape, weights);
    }
    let transform = synthesis.transform().context("a synthesis that can be undone")?;
    let tuning = Tuning { transform_always: true, ..Tuning::default() };
    let settings = Settings { transform, tuning, ..Settings::new(Target::Bits(bits)) };
    compressed(&tensors, &settings)
}

/// The bytes of a container.
fn compressed(tensors: &OwnedTensors, settings: &Settings) -> Result<Vec<u8>> {
    let mut file = tempfile::tempfile()?;
    compress(tensors, Vec::new(), settings, &Silent, &mut file)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Median of the times of some runs, in seconds, after a first one that does not count. The device has nothing to do before each.
fn median(stream: &Stream, runs: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    work(0)?;
    stream.synchronize()?;
    let mut times = Vec::new();
    for run in 0..runs {
        let (start, end) = (Event::new(EventFlags::DEFAULT)?, Event::new(EventFlags::DEFAULT)?);
        start.record(stream)?;
        work(run)?;
        end.record(stream)?;
        end.synchronize()?;
        times.push(f64::from(end.elapsed_time_f32(&start)?) / 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// A line for each number of rows of an item.
fn speed(
    context: &Context,
    gigabytes: f64,
    bits: f64,
    synthesis: Synthesis,
    item_rows: &[usize],
) -> Result<Vec<Value>> {
    let file = model(gigabytes, bits, synthesis)?;
    let container = Container::open(&file, &Limits::default())?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let mut results = Vec::new();
    for &item_rows in item_rows {
        let decoder = Decoder::with_image(context, Image::new(&container, ImageOptions { item_rows })?)?;
        let tensors = decoder.image().tensors().to_vec();
        let outputs = tensors
            .iter()
            .map(|tensor| Ok(DeviceBuffer::<u8>::zeroed(2 * tensor.elements())?))
            .collect::<Result<Vec<_>>>()?;
        let pointers: Vec<_> = outputs.iter().map(|output| output.as_device_ptr()).collect();
        let all: Vec<usize> = (0..tensors.len()).collect();
        let weights: usize = tensors.iter().map(ImageTensor::elements).sum();

        let plan = decoder.plan(&all, DType::F16, &pointers)?;
        // SAFETY: the outputs are as long as their tensors and live as long as the plan.
        let whole = median(&stream, 11, |_| Ok(unsafe { plan.decode(&stream) }?))?;
        plan.check(&stream)?;

        let mut lines = json!({
            "bits": bits,
            "synthesis": format!("{synthesis:?}").to_lowercase(),
            "item_rows": item_rows,
            "weights": weights,
            "file_bits_per_weight": file.len() as f64 * 8.0 / weights as f64,
            "image_bits_per_weight": decoder.device_bytes() as f64 * 8.0 / weights as f64,
            "all_to_f16_gweights_per_second": weights as f64 / whole / 1e9,
        });
        for shape in [[1, 4096, 4096], [1, 14336, 4096]] {
            // All matrices of the shape in turn: none is in the cache when it is needed.
            let alike: Vec<usize> =
                all.iter().copied().filter(|&tensor| tensors[tensor].shape == shape).collect();
            let plans = alike
                .iter()
                .map(|&tensor| Ok(decoder.plan(&[tensor], DType::F16, &pointers[tensor..=tensor])?))
                .collect::<Result<Vec<_>>>()?;
            // SAFETY: as above.
            let one = median(&stream, 50, |run| Ok(unsafe { plans[run % plans.len()].decode(&stream) }?))?;
            let [_, out, input] = shape;
            let name = format!("{out}x{input}");
            lines[&name]["to_f16_us"] = json!(one * 1e6);
            for batch in [1usize, 8, 16] {
                let x: Vec<u16> = (0..batch * input)
                    .map(|i| f16::from_f32((i % 17) as f32 / 8.0 - 1.0).to_bits())
                    .collect();
                let x = DeviceBuffer::from_slice(&x)?;
                let y = DeviceBuffer::<f32>::zeroed(batch * out)?;
                let products = alike
                    .iter()
                    .map(|&tensor| Ok(decoder.product(tensor, batch)?))
                    .collect::<Result<Vec<_>>>()?;
                // One behind the other, as those that they are compared with are measured, and by itself.
                // SAFETY: x and y have the lengths that the products need.
                let add = |product: &Product<'_>| unsafe {
                    product.add(&stream, x.as_device_ptr(), y.as_device_ptr())
                };
                let in_turn = median(&stream, 21, |_| Ok(products.iter().try_for_each(add)?))?;
                let alone = median(&stream, 50, |run| Ok(add(&products[run % products.len()])?))?;
                lines[&name][format!("product_{batch}_us")] = json!(in_turn * 1e6 / products.len() as f64);
                lines[&name][format!("product_{batch}_alone_us")] = json!(alone * 1e6);
            }
            lines[&name]["product_error"] = json!(product_error(&decoder, &stream, alike[0], 3)?);
        }
        println!("{}", serde_json::to_string(&lines)?);
        results.push(lines);
    }
    Ok(results)
}

/// ‖y - W x‖ / ‖W x‖ for a product of the device, with the decoded F32 weights and sums in double precision.
fn product_error(decoder: &Decoder, stream: &Stream, tensor: usize, batch: usize) -> Result<f64> {
    let (outputs, _) = decode(decoder, stream, &[tensor], DType::F32)?;
    let weights: Vec<f32> =
        outputs[0].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let [_, out, input] = decoder.image().tensors()[tensor].shape;
    let x: Vec<f16> = (0..batch * input).map(|i| f16::from_f32((i * 7 % 31) as f32 / 16.0 - 0.9)).collect();
    let bits: Vec<u16> = x.iter().map(|x| x.to_bits()).collect();
    let (x_on_device, y) = (DeviceBuffer::from_slice(&bits)?, DeviceBuffer::<f32>::zeroed(batch * out)?);
    let product = decoder.product(tensor, batch)?;
    // SAFETY: x and y have the lengths that the product needs.
    unsafe { product.add(stream, x_on_device.as_device_ptr(), y.as_device_ptr())? };
    product.check(stream)?;
    let mut found = vec![0f32; batch * out];
    y.copy_to(&mut found)?;
    let (mut difference, mut total) = (0.0, 0.0);
    for n in 0..batch {
        for (row, weights) in weights.chunks_exact(input).enumerate() {
            let expected: f64 =
                weights.iter().zip(&x[n * input..]).map(|(&w, x)| f64::from(w) * x.to_f64()).sum();
            difference += (f64::from(found[n * out + row]) - expected).powi(2);
            total += expected.powi(2);
        }
    }
    // So small that elements are subnormal: as good as zeros.
    let total = if total < 1e-60 { 0.0 } else { total };
    Ok((difference / total).sqrt())
}

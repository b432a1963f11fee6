//! The paper's synthesis on the GPU: a stage of its own, which makes weights of latents that were decoded before.

use cust::memory::{DeviceBuffer, DeviceCopy, DevicePointer};
use cust::stream::Stream;
use half::f16;
use nwc_decode_core::DType;
use nwc_decode_kernels::layout::{CHUNK, LANES, RESIDUAL_CHUNKS, ResidualRecord};

use crate::launcher::{Decoder, Doing as _, Error, Result, allow_shared, arrive};

/// The most hidden units: threads of a block, with the registers that they need.
const MOST_WIDTH: usize = 512;

/// x W + b.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// `[outputs, inputs]`.
    pub weight: &'a [f32],
    /// `[outputs]`.
    pub bias: &'a [f32],
}

/// x + ReLU(LayerNorm(x W + b)), times what the level says.
#[derive(Debug, Clone, Copy)]
pub struct ResidualBlock<'a> {
    /// `[width, width]`.
    pub linear: Linear<'a>,
    /// What layer normalisation multiplies by, `[width]`, and what it adds.
    pub gain: &'a [f32],
    /// `[width]`.
    pub offset: &'a [f32],
}

/// A network of the paper's form (arXiv 2510.11234), from latents `[n, 16]` to chunks of weights `[n, 16]`.
#[derive(Debug, Clone)]
pub struct ResidualParameters<'a> {
    /// `[levels, width]`: what each block's hidden units are multiplied by.
    pub levels: &'a [f32],
    /// From 16 latents.
    pub enter: Linear<'a>,
    /// One after the other.
    pub blocks: Vec<ResidualBlock<'a>>,
    /// To 16 weights.
    pub leave: Linear<'a>,
}

/// Such a network in the memory of a device, with its weights in binary16.
#[derive(Debug)]
pub struct Residual {
    width: usize,
    blocks: usize,
    levels: usize,
    weights: DeviceBuffer<u32>,
    vectors: DeviceBuffer<f32>,
}

/// A tensor whose latents are in the memory of a device.
#[derive(Debug, Clone, Copy)]
pub struct LatentMatrices {
    /// `[batch, out, in]` of the weights.
    pub shape: [usize; 3],
    /// `[16 * batch * ceil(out / 16), in]`: latent j of the chunks of a block of rows b is row 16 b + j.
    pub latents: DevicePointer<f32>,
    /// The level of each column, `[in]`.
    pub levels: DevicePointer<u8>,
    /// The deviation of each row, `[batch * out]`.
    pub deviations: DevicePointer<f32>,
}

impl Decoder {
    /// Copies a network to the decoder's device.
    ///
    /// # Errors
    /// [`Error::Usage`] if its width is no multiple of 32 up to 512, or its parts do not fit each other, or what the driver says.
    pub fn residual(&self, parameters: &ResidualParameters<'_>) -> Result<Residual> {
        let width = parameters.enter.bias.len();
        if width == 0 || !width.is_multiple_of(LANES) || width > MOST_WIDTH {
            return Err(Error::Usage(format!(
                "networks of {width} hidden units do not run on the GPU: they must be a multiple of {LANES}, {MOST_WIDTH} at most"
            )));
        }
        let fits = |linear: &Linear<'_>, outputs: usize, inputs: usize| {
            linear.weight.len() == outputs * inputs && linear.bias.len() == outputs
        };
        let block_fits = |block: &ResidualBlock<'_>| {
            fits(&block.linear, width, width) && block.gain.len() == width && block.offset.len() == width
        };
        let levels = parameters.levels.len() / width;
        if levels == 0
            || parameters.levels.len() != levels * width
            || !fits(&parameters.enter, width, CHUNK)
            || !parameters.blocks.iter().all(block_fits)
            || !fits(&parameters.leave, CHUNK, width)
        {
            return Err(Error::Usage("the parts of the network do not fit each other".to_owned()));
        }
        let (mut weights, mut vectors) = (Vec::new(), Vec::new());
        let mut put = |linear: &Linear<'_>, more: &[&[f32]]| {
            put_fragments(&mut weights, linear.weight, linear.bias.len());
            vectors.extend_from_slice(linear.bias);
            more.iter().for_each(|vector| vectors.extend_from_slice(vector));
        };
        put(&parameters.enter, &[]);
        parameters.blocks.iter().for_each(|block| put(&block.linear, &[block.gain, block.offset]));
        put(&parameters.leave, &[parameters.levels]);
        self.for_transforms()?; // which enters the context
        let weights = DeviceBuffer::from_slice(&weights).to("copy a network to the device")?;
        let vectors = DeviceBuffer::from_slice(&vectors).to("copy a network to the device")?;
        arrive()?;
        Ok(Residual { width, blocks: parameters.blocks.len(), levels, weights, vectors })
    }
}

impl Residual {
    /// Number of levels that it knows.
    pub const fn levels(&self) -> usize {
        self.levels
    }

    /// Restores a tensor's weights, row-major, as `dtype` (F32, F16 or BF16), asynchronously on a stream, once what was copied to the device before has arrived. They are near those that the network gives in binary32, and the same each time.
    ///
    /// # Errors
    /// [`Error::Usage`] for another type or a tensor that is too large, or what the driver says.
    ///
    /// # Safety
    /// The network is of this decoder's device. `output` and what `tensor` points to are memory of it, of these lengths, and nobody else writes them, or uses the output, until the stream has come past this; no
    /// level is above those that the network knows. The network lives as long. The stream is of the decoder's context.
    pub unsafe fn restore(
        &self,
        decoder: &Decoder,
        stream: &Stream,
        tensor: &LatentMatrices,
        dtype: DType,
        output: DevicePointer<u8>,
    ) -> Result<()> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Usage(format!("weights can be restored to F32, F16 or BF16, not to {dtype}")));
        }
        let [batch, out, input] = tensor.shape;
        let chunks = (batch as u64 * out.div_ceil(CHUNK) as u64).saturating_mul(input as u64);
        let most = u32::MAX as usize;
        if chunks > 1 << 31 || tensor.shape.iter().any(|&dim| dim > most) {
            return Err(Error::Usage(format!("a tensor of {:?} is too large", tensor.shape)));
        }
        let record = ResidualRecord {
            width: self.width as u32,
            blocks: self.blocks as u32,
            batch: batch as u32,
            out: out as u32,
            input: input as u32,
            dtype: u32::from(dtype.code()),
        };
        let grid = chunks.div_ceil(RESIDUAL_CHUNKS as u64) as u32;
        if grid == 0 {
            return Ok(());
        }
        let function = decoder.for_transforms()?.get_function("nwc_restore_residual").to("find a kernel")?;
        // All launches of a kernel share this: it must not fall again.
        allow_shared(&function, decoder.most_shared())?;
        arrive()?;
        let (threads, shared) = (self.width as u32, record.shared()[4]);
        let record = Argument(record);
        // SAFETY: by the caller; the arguments are the kernel's.
        unsafe {
            cust::launch!(function<<<grid, threads, shared, stream>>>(
                record,
                self.weights.as_device_ptr(),
                self.vectors.as_device_ptr(),
                tensor.latents,
                tensor.levels,
                tensor.deviations,
                output
            ))
        }
        .to("launch a kernel")
    }
}

/// A record as an argument of a kernel.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Argument(ResidualRecord);

// SAFETY: plain words without pointers.
unsafe impl DeviceCopy for Argument {}

/// Appends weights `[outputs, inputs]`, in binary16, as threads multiply by them: for each 16 inputs and 16 outputs four words of each of 32 threads. Word q of thread 4g + t has
/// inputs 2t + 8 (q mod 2) and the next of output 8 (q div 2) + g.
fn put_fragments(words: &mut Vec<u32>, weight: &[f32], outputs: usize) {
    let inputs = weight.len() / outputs;
    for first_input in (0..inputs).step_by(CHUNK) {
        for first_output in (0..outputs).step_by(CHUNK) {
            words.extend((0..4 * LANES).map(|word| {
                let (thread, word) = (word / 4, word % 4);
                let output = first_output + word / 2 * 8 + thread / 4;
                let input = first_input + thread % 4 * 2 + word % 2 * 8;
                let half = |input: usize| u32::from(f16::from_f32(weight[output * inputs + input]).to_bits());
                half(input) | half(input + 1) << 16
            }));
        }
    }
}

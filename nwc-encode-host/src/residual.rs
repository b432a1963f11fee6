//! The paper's networks in floating point (arXiv 2510.11234), without a library for tensors: x W + b, blocks { x += ReLU(LayerNorm(x W + b)); x *= level }, x W + b.
//!
//! Analysis and synthesis have this one form. Every sum has one order and no multiplication is fused with an addition, so all processors find the same bits, whatever instructions they have.

use nwc_decode_core::DType;
use rayon::prelude::*;

use crate::chunks::CHUNK;
use crate::simd::Level;
use crate::tensors::{all_finite, to_f32};
use crate::{Error, Result};

/// The table of levels, `[levels, width]`, which both networks share.
pub(crate) const LEVELS: &str = "levels";
/// Added to the variance in layer normalisation.
pub(crate) const EPSILON: f32 = 1e-5;
/// More than any network that is of use has; a file that says more is not believed.
const MAX_WIDTH: usize = 1 << 13;
const MAX_BLOCKS: usize = 64;
/// Chunks that go through together, one a lane.
const LANES: usize = 32;
/// Units that are worked on together: their sums fill the registers that there are.
const TILE: usize = 4;

/// A tensor of a file of parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter<'a> {
    /// Type of its elements.
    pub(crate) dtype: DType,
    /// Its dimensions.
    pub(crate) shape: &'a [usize],
    /// Its elements.
    pub(crate) bytes: &'a [u8],
}

/// A network: chunks `[n, 16]` to latents `[n, 16]`, or back.
#[derive(Debug, Clone, PartialEq)]
pub struct Residual {
    width: usize,
    /// `[levels, width]`.
    levels: Vec<f32>,
    enter: Linear,
    blocks: Vec<Block>,
    leave: Linear,
}

/// x W + b.
#[derive(Debug, Clone, PartialEq)]
struct Linear {
    inputs: usize,
    /// `[outputs, inputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq)]
struct Block {
    linear: Linear,
    /// What layer normalisation multiplies by, and what it adds.
    gain: Vec<f32>,
    offset: Vec<f32>,
}

impl Residual {
    /// The network whose parameters `find` gives by name: those of `net` (`analysis` or `synthesis`), and the levels.
    ///
    /// # Errors
    /// Names the parameter that is missing, has another type or shape, or is no finite number somewhere.
    pub(crate) fn read<'a>(net: &str, find: &dyn Fn(&str) -> Option<Parameter<'a>>) -> Result<Self> {
        let (levels, width) = match find(LEVELS).map(|levels| levels.shape) {
            Some(&[levels, width])
                if (1..=1 << u8::BITS).contains(&levels) && (1..=MAX_WIDTH).contains(&width) =>
            {
                (levels, width)
            }
            Some(shape) => {
                return Err(Error::input(format!(
                    "has the shape {shape:?}, not [levels, width] of at most 256 and {MAX_WIDTH}"
                ))
                .tensor(LEVELS));
            }
            None => return Err(Error::input("is missing").tensor(LEVELS)),
        };
        let get = |name: &str, shape: &[usize]| get(find, name, shape);
        let linear = |name: &str, outputs: usize, inputs: usize| {
            Ok(Linear {
                inputs,
                weight: get(&format!("{name}.weight"), &[outputs, inputs])?,
                bias: get(&format!("{name}.bias"), &[outputs])?,
            })
        };
        let blocks = (0..=MAX_BLOCKS)
            .map(|block| format!("{net}.blocks.{block}"))
            .take_while(|block| find(&format!("{block}.linear.weight")).is_some())
            .map(|block| {
                Ok(Block {
                    linear: linear(&format!("{block}.linear"), width, width)?,
                    gain: get(&format!("{block}.norm.weight"), &[width])?,
                    offset: get(&format!("{block}.norm.bias"), &[width])?,
                })
            })
            .collect::<Result<Vec<Block>>>()?;
        if blocks.len() > MAX_BLOCKS {
            return Err(Error::input(format!("is one of more than {MAX_BLOCKS} blocks"))
                .tensor(format!("{net}.blocks.{MAX_BLOCKS}.linear.weight")));
        }
        Ok(Self {
            width,
            levels: get(LEVELS, &[levels, width])?,
            enter: linear(&format!("{net}.in"), width, CHUNK)?,
            blocks,
            leave: linear(&format!("{net}.out"), CHUNK, width)?,
        })
    }

    /// Its parameters as [`read`](Self::read) takes them: name, shape and elements.
    pub(crate) fn parameters(&self, net: &str) -> Vec<(String, Vec<usize>, &[f32])> {
        fn put<'a>(
            linear: &'a Linear,
            name: &str,
            width: usize,
            all: &mut Vec<(String, Vec<usize>, &'a [f32])>,
        ) {
            all.push((format!("{name}.weight"), vec![width, linear.inputs], &linear.weight));
            all.push((format!("{name}.bias"), vec![width], &linear.bias));
        }
        let mut all = vec![(LEVELS.to_owned(), vec![self.levels(), self.width], self.levels.as_slice())];
        put(&self.enter, &format!("{net}.in"), self.width, &mut all);
        for (number, block) in self.blocks.iter().enumerate() {
            let name = format!("{net}.blocks.{number}");
            put(&block.linear, &format!("{name}.linear"), self.width, &mut all);
            all.push((format!("{name}.norm.weight"), vec![self.width], &block.gain));
            all.push((format!("{name}.norm.bias"), vec![self.width], &block.offset));
        }
        put(&self.leave, &format!("{net}.out"), CHUNK, &mut all);
        all
    }

    /// The network as a GPU takes it.
    #[cfg(feature = "cuda")]
    pub fn for_gpu(&self) -> nwc_decode_cuda::ResidualParameters<'_> {
        fn linear(linear: &Linear) -> nwc_decode_cuda::Linear<'_> {
            nwc_decode_cuda::Linear { weight: &linear.weight, bias: &linear.bias }
        }
        fn block(block: &Block) -> nwc_decode_cuda::ResidualBlock<'_> {
            let Block { gain, offset, .. } = block;
            nwc_decode_cuda::ResidualBlock { linear: linear(&block.linear), gain, offset }
        }
        nwc_decode_cuda::ResidualParameters {
            levels: &self.levels,
            enter: linear(&self.enter),
            blocks: self.blocks.iter().map(block).collect(),
            leave: linear(&self.leave),
        }
    }

    /// Hidden units.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Residual blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Levels of importance that it knows.
    pub fn levels(&self) -> usize {
        self.levels.len() / self.width
    }

    /// Multiply-adds for each weight.
    pub fn multiply_adds_per_weight(&self) -> usize {
        2 * self.width + self.blocks.len() * self.width * self.width / CHUNK
    }

    /// Puts what it makes of chunks in their place. Chunk i is of level `levels[i % levels.len()]`: of the level of its column, where chunks go by rows.
    ///
    /// # Panics
    /// If there is a level that it does not know, or no level at all.
    pub fn apply(&self, chunks: &mut [[f32; CHUNK]], levels: &[u8]) {
        self.apply_with(Level::best(), chunks, levels);
    }

    /// With instructions that the processor has.
    fn apply_with(&self, instructions: Level, chunks: &mut [[f32; CHUNK]], levels: &[u8]) {
        chunks.par_chunks_mut(LANES).enumerate().for_each_init(
            || Memory::new(self.width),
            |memory, (panel, chunks)| {
                memory.load(chunks);
                let level = |lane: usize| usize::from(levels[(panel * LANES + lane) % levels.len()]);
                for lane in 0..chunks.len() {
                    let factors = &self.levels[level(lane) * self.width..][..self.width];
                    memory.factors.iter_mut().zip(factors).for_each(|(row, &factor)| row[lane] = factor);
                }
                match instructions {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the processor has these instructions.
                    Level::Avx512 => unsafe { self.panel_avx512(memory) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Level::Avx2 => unsafe { self.panel_avx2(memory) },
                    _ => self.panel::<8>(memory),
                }
                memory.store(chunks);
            },
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn panel_avx2(&self, memory: &mut Memory) {
        self.panel::<16>(memory);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn panel_avx512(&self, memory: &mut Memory) {
        self.panel::<16>(memory);
    }

    /// The network, of which `N` lanes at a time are in registers.
    #[inline(always)]
    fn panel<const N: usize>(&self, memory: &mut Memory) {
        let Memory { chunks, factors, x, inner } = memory;
        self.enter.multiply::<N>(chunks, x);
        for block in &self.blocks {
            block.linear.multiply::<N>(x, inner);
            block.normalise(inner);
            for ((x, inner), factor) in x.iter_mut().zip(inner.iter()).zip(factors.iter()) {
                for ((x, inner), factor) in x.iter_mut().zip(inner).zip(factor) {
                    *x = (*x + inner.max(0.0)) * factor;
                }
            }
        }
        self.leave.multiply::<N>(x, chunks);
    }
}

/// One parameter, of floating point and finite.
fn get<'a>(find: &dyn Fn(&str) -> Option<Parameter<'a>>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let bad = |problem: String| Error::input(problem).tensor(name);
    let found = find(name).ok_or_else(|| bad("is missing".to_owned()))?;
    if !matches!(found.dtype, DType::F32 | DType::F16 | DType::BF16) || found.shape != shape {
        return Err(bad(format!("is {} {:?}, not F32 or F16 {shape:?}", found.dtype, found.shape)));
    }
    if !all_finite(found.dtype, found.bytes) {
        return Err(bad("holds NaN or infinity".to_owned()));
    }
    Ok(to_f32(found.dtype, found.bytes))
}

/// A unit's values for the chunks of a panel.
type Row = [f32; LANES];

/// What a thread works in.
struct Memory {
    /// `[16][LANES]`, what comes in and what comes out.
    chunks: Vec<Row>,
    /// `[width][LANES]`: what the level of each chunk multiplies by, and hidden units.
    factors: Vec<Row>,
    x: Vec<Row>,
    inner: Vec<Row>,
}

impl Memory {
    fn new(width: usize) -> Self {
        let zeros = |rows: usize| vec![[0.0; LANES]; rows];
        Self { chunks: zeros(CHUNK), factors: zeros(width), x: zeros(width), inner: zeros(width) }
    }

    fn load(&mut self, chunks: &[[f32; CHUNK]]) {
        for (i, row) in self.chunks.iter_mut().enumerate() {
            row.fill(0.0);
            row.iter_mut().zip(chunks).for_each(|(to, chunk)| *to = chunk[i]);
        }
    }

    fn store(&self, chunks: &mut [[f32; CHUNK]]) {
        for (i, row) in self.chunks.iter().enumerate() {
            chunks.iter_mut().zip(row).for_each(|(chunk, &from)| chunk[i] = from);
        }
    }
}

impl Linear {
    #[inline(always)]
    fn multiply<const N: usize>(&self, x: &[Row], y: &mut [Row]) {
        let rows = self.weight.chunks(TILE * self.inputs).zip(self.bias.chunks(TILE));
        for ((weights, biases), y) in rows.zip(y.chunks_mut(TILE)) {
            // Of a last tile that is not full, some rows are computed again.
            let row = |r: usize| &weights[r.min(biases.len() - 1) * self.inputs..][..self.inputs];
            let rows = [row(0), row(1), row(2), row(3)];
            let biases = [0, 1, 2, 3].map(|r: usize| biases[r.min(biases.len() - 1)]);
            for first in (0..LANES).step_by(N) {
                let sums = multiply_tile::<N>(rows, biases, x, first);
                for (y, sums) in y.iter_mut().zip(&sums) {
                    y[first..first + N].copy_from_slice(sums);
                }
            }
        }
    }
}

/// `TILE` rows of x W + b, for `N` lanes from `first` on. The sums are apart, and not in an array, for the compiler to keep them in registers.
#[inline(always)]
fn multiply_tile<const N: usize>(
    rows: [&[f32]; TILE],
    biases: [f32; TILE],
    x: &[Row],
    first: usize,
) -> [[f32; N]; TILE] {
    let [mut a, mut b, mut c, mut d] = biases.map(|bias| [bias; N]);
    let weights = rows[0].iter().zip(rows[1]).zip(rows[2].iter().zip(rows[3]));
    for (x, ((&wa, &wb), (&wc, &wd))) in x.iter().zip(weights) {
        let Some(x) = x[first..].first_chunk::<N>() else { break };
        for n in 0..N {
            a[n] += wa * x[n];
        }
        for n in 0..N {
            b[n] += wb * x[n];
        }
        for n in 0..N {
            c[n] += wc * x[n];
        }
        for n in 0..N {
            d[n] += wd * x[n];
        }
    }
    [a, b, c, d]
}

impl Block {
    /// Each chunk's units less their mean, over their deviation, times the gains, plus the offsets.
    #[inline(always)]
    fn normalise(&self, x: &mut [Row]) {
        let share = 1.0 / x.len() as f32;
        let mut means = [0.0; LANES];
        for row in x.iter() {
            means.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        means.iter_mut().for_each(|sum| *sum *= share);
        let mut scales = [0.0; LANES];
        for row in x.iter_mut() {
            for ((x, mean), sum) in row.iter_mut().zip(&means).zip(&mut scales) {
                *x -= mean;
                *sum += *x * *x;
            }
        }
        scales.iter_mut().for_each(|sum| *sum = 1.0 / (*sum * share + EPSILON).sqrt());
        for ((row, gain), offset) in x.iter_mut().zip(&self.gain).zip(&self.offset) {
            row.iter_mut().zip(&scales).for_each(|(x, scale)| *x = *x * scale * gain + offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec_file;
    use crate::synthetic::{Source, residual_codec};

    fn chunks(count: usize) -> Vec<[f32; CHUNK]> {
        Source::Gaussian.matrix(count, CHUNK, 3).as_chunks().0.to_vec()
    }

    /// The formula, a chunk and a unit at a time.
    fn naive(network: &Residual, chunk: &[f32], level: usize) -> Vec<f64> {
        let linear = |linear: &Linear, x: &[f64]| -> Vec<f64> {
            let rows = linear.weight.chunks_exact(linear.inputs).zip(&linear.bias);
            rows.map(|(row, &b)| {
                row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>() + f64::from(b)
            })
            .collect()
        };
        let mut x = linear(&network.enter, &chunk.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        for block in &network.blocks {
            let inner = linear(&block.linear, &x);
            let mean = inner.iter().sum::<f64>() / inner.len() as f64;
            let variance = inner.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / inner.len() as f64;
            for unit in 0..x.len() {
                let normal = (inner[unit] - mean) / (variance + f64::from(EPSILON)).sqrt();
                let added = normal * f64::from(block.gain[unit]) + f64::from(block.offset[unit]);
                x[unit] =
                    (x[unit] + added.max(0.0)) * f64::from(network.levels[level * network.width + unit]);
            }
        }
        linear(&network.leave, &x)
    }

    #[test]
    fn a_network_is_its_formula_with_any_instructions() {
        // Units that fill no tile, and chunks that fill no panel.
        for (width, count) in [(16, 1), (22, 45), (32, 70)] {
            let network = codec_file::residual(&residual_codec(width, 2, 4)).unwrap().analysis;
            assert_eq!((network.width(), network.blocks(), network.levels()), (width, 2, 4));
            let (before, levels) = (chunks(count), [0, 3, 1, 2, 0]);
            let mut first = None;
            for &level in Level::available() {
                let mut after = before.clone();
                network.apply_with(level, &mut after, &levels);
                assert!(*first.get_or_insert_with(|| after.clone()) == after, "{level:?} differs");
            }
            for (i, (before, after)) in before.iter().zip(first.unwrap()).enumerate() {
                let expected = naive(&network, before, usize::from(levels[i % 5]));
                for (a, b) in after.iter().zip(expected) {
                    assert!((f64::from(*a) - b).abs() < 1e-4, "{a} for {b}");
                }
            }
        }
    }
}

//! The paper's synthesis (arXiv 2510.11234) on tensor cores, as a stage of its own behind the decoding of its latents: x W + b, blocks { x += ReLU(LayerNorm(x W + b)); x *= level }, x W + b.
//!
//! It computes in binary16 with sums in binary32, so its weights are near those of hosts, not the same.

use super::intrinsics::{
    MOST_BF16, MOST_F16, block, f16_to_f32, load_matrices, load_shared, load_shared_2, multiply_add,
    pack_bf16, pack_f16, reciprocal_root, shared_base, shuffle, store_global, store_global_16,
    store_shared_2, store_shared_f32, sync_block, thread, threads,
};
use crate::layout::{
    CHUNK, LANES, RESIDUAL_CHUNKS, RESIDUAL_INPUT_STRIDE, RESIDUAL_OUTPUT_STRIDE, ResidualRecord,
};
use nwc_decode_core::DType;

/// Matrices of 16 rows that a block's chunks are.
const PARTS: usize = RESIDUAL_CHUNKS / CHUNK;
/// Matrices of 8 columns that a warp computes of a layer.
const TILES: usize = 4;
/// What layer normalisation adds to the variance.
const EPSILON: f32 = 1e-5;

/// Sums of a warp: of each part and tile two neighbouring columns of the rows g and g + 8, in thread 4g + t.
type Sums = [[[f32; 4]; TILES]; PARTS];

/// The numbers of parts and of tiles: loops over them are written as maps, so that sums lie in registers.
const EACH: [usize; 4] = [0, 1, 2, 3];
const _: () = assert!(PARTS == EACH.len() && TILES == EACH.len());

/// Words of weights as a thread reads them.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Four([u32; 4]);

/// Restores the weights of latents, with a thread for each hidden unit of the network and a block for each [`RESIDUAL_CHUNKS`] chunks.
///
/// `weights` are the layers' weights in binary16, in the order in which threads multiply by them, `vectors` biases, gains, offsets and levels (`residual.rs` of the launcher); `latents` [16 * batch * ceil(out / 16),
/// in], `columns` has the level of each column, `rows` the deviation of each row, [batch * out]; `output` [batch, out, in] of the record's type. The block has
/// as much shared memory as [`ResidualRecord::shared`] says.
///
/// # Safety
/// All of them have these lengths; there are as many threads and blocks, and no level that the network does not know.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn nwc_restore_residual(
    record: ResidualRecord,
    weights: *const u32,
    vectors: *const f32,
    latents: *const f32,
    columns: *const u8,
    rows: *const f32,
    output: *mut u8,
) {
    let stage = Stage::new(record, vectors);
    // SAFETY: by the caller.
    unsafe {
        stage.load(latents);
        sync_block();
        let mut vectors = vectors;
        let mut at = weights;
        let sums = stage.multiply(stage.inputs, RESIDUAL_INPUT_STRIDE, CHUNK as u32, &mut at);
        stage.keep(stage.add_biases(sums, &mut vectors));
        sync_block();
        let levels = stage.levels(columns);
        let mut number = 0;
        while number < record.blocks {
            let sums = stage.multiply(stage.hidden, stage.stride(), record.width, &mut at);
            let sums = stage.add_biases(sums, &mut vectors);
            stage.update(stage.normalise(sums, &mut vectors), &levels);
            sync_block();
            number += 1;
        }
        stage.leave(at, vectors);
        sync_block();
        stage.store(rows, output);
    }
}

/// A block at work.
struct Stage {
    record: ResidualRecord,
    /// Levels, behind all other vectors.
    factors: *const f32,
    /// Its first chunk, counted along the rows of chunks.
    first: u32,
    warp: u32,
    lane: u32,
    /// In shared memory: inputs `[chunk][16]` and hidden units `[chunk][width]` in binary16, sums and sums of squares `[warp][chunk][2]`, mean and factor of each chunk, outputs `[chunk][16]`.
    inputs: u32,
    hidden: u32,
    partial: u32,
    moments: u32,
    outputs: u32,
}

impl Stage {
    #[inline(always)]
    fn new(record: ResidualRecord, vectors: *const f32) -> Self {
        let chunks = RESIDUAL_CHUNKS as u32;
        let inputs = shared_base();
        let [hidden, partial, moments, outputs, _] = record.shared().map(|place| inputs + place);
        let (warp, lane) = (thread() / LANES as u32, thread() % LANES as u32);
        let factors = vectors.wrapping_add(record.factors() as usize);
        Self {
            record,
            factors,
            first: block() * chunks,
            warp,
            lane,
            inputs,
            hidden,
            partial,
            moments,
            outputs,
        }
    }

    #[inline(always)]
    fn stride(&self) -> u32 {
        self.record.hidden_stride()
    }

    /// The block of rows and the column of a chunk, if there is such a chunk.
    #[inline(always)]
    fn place(&self, chunk: u32) -> Option<(u32, u32)> {
        let at = u64::from(self.first) + u64::from(chunk);
        let input = u64::from(self.record.input);
        (at < u64::from(self.record.row_blocks()) * input).then(|| ((at / input) as u32, (at % input) as u32))
    }

    /// Where a thread's first column of a warp's tile is.
    #[inline(always)]
    fn column(&self, tile: usize) -> u32 {
        self.warp * LANES as u32 + 8 * tile as u32 + self.lane % 4 * 2
    }

    /// The row of a part that a thread's sums of number 0 and 1, or 2 and 3, are of.
    #[inline(always)]
    fn row(&self, part: usize, half: usize) -> u32 {
        (CHUNK * part + 8 * half) as u32 + self.lane / 4
    }

    #[inline(always)]
    unsafe fn load(&self, latents: *const f32) {
        let mut at = thread();
        while at < (RESIDUAL_CHUNKS * CHUNK / 2) as u32 {
            let (chunk, pair) = (at % RESIDUAL_CHUNKS as u32, at / RESIDUAL_CHUNKS as u32);
            let mut values = [0.0; 2];
            if let Some((block, column)) = self.place(chunk) {
                let row = block as usize * CHUNK + 2 * pair as usize;
                let from = latents.wrapping_add(row * self.record.input as usize + column as usize);
                // SAFETY: by the caller, there are such latents.
                values = unsafe { [from.read(), from.add(self.record.input as usize).read()] };
            }
            let to = self.inputs + chunk * RESIDUAL_INPUT_STRIDE + pair * 4;
            // SAFETY: the block's shared memory.
            unsafe { store_shared_f32(to, f32::from_bits(pack_f16(values[0], values[1]))) };
            at += threads();
        }
    }

    /// The products of all chunks, of so many inputs in shared memory, with the weights of the warp's columns.
    #[inline(always)]
    unsafe fn multiply(&self, from: u32, stride: u32, inputs: u32, weights: &mut *const u32) -> Sums {
        let step_words = self.record.width / CHUNK as u32 * 128;
        let mut fragments =
            weights.wrapping_add((self.warp * 2 * 128 + self.lane * 4) as usize).cast::<Four>();
        let mut at = from + self.lane % 16 * stride + self.lane / 16 * 16;
        let mut steps = inputs / CHUNK as u32;
        *weights = weights.wrapping_add((steps * step_words) as usize);
        // SAFETY: by the caller; those of the next step are asked for before the products of this one.
        let mut next = unsafe { [fragments.read(), fragments.add(LANES).read()] };
        let mut sums = [[[0.0; 4]; TILES]; PARTS];
        while steps > 0 {
            let [Four([a, b, c, d]), Four([e, f, g, h])] = next;
            steps -= 1;
            fragments = fragments.wrapping_add(step_words as usize / 4);
            if steps > 0 {
                // SAFETY: as above.
                next = unsafe { [fragments.read(), fragments.add(LANES).read()] };
            }
            let add = |part: u32, [mut i, mut j, mut k, mut l]: [[f32; 4]; TILES]| {
                // SAFETY: the block's shared memory.
                let rows = unsafe { load_matrices::<false>(at + part * 16 * stride) };
                multiply_add(&mut i, rows, [a, b]);
                multiply_add(&mut j, rows, [c, d]);
                multiply_add(&mut k, rows, [e, f]);
                multiply_add(&mut l, rows, [g, h]);
                [i, j, k, l]
            };
            let [i, j, k, l] = sums;
            sums = [add(0, i), add(1, j), add(2, k), add(3, l)];
            at += 32;
        }
        sums
    }

    /// A thread's columns of a vector, which is taken.
    #[inline(always)]
    unsafe fn take(&self, vectors: &mut *const f32) -> [[f32; 2]; TILES] {
        let vector = *vectors;
        *vectors = vectors.wrapping_add(self.record.width as usize);
        // SAFETY: by the caller.
        EACH.map(|tile| unsafe { vector.add(self.column(tile) as usize).cast::<[f32; 2]>().read() })
    }

    #[inline(always)]
    unsafe fn add_biases(&self, sums: Sums, vectors: &mut *const f32) -> Sums {
        // SAFETY: by the caller.
        let biases = unsafe { self.take(vectors) };
        sums.map(|sums| {
            EACH.map(|tile| {
                let ([a, b, c, d], [e, f]) = (sums[tile], biases[tile]);
                [a + e, b + f, c + e, d + f]
            })
        })
    }

    /// Where two neighbouring hidden units of a chunk are.
    #[inline(always)]
    fn unit(&self, part: usize, half: usize, tile: usize) -> u32 {
        self.hidden + self.row(part, half) * self.stride() + self.column(tile) * 2
    }

    /// Makes hidden units of sums.
    #[inline(always)]
    unsafe fn keep(&self, sums: Sums) {
        EACH.into_iter().for_each(|part| {
            EACH.into_iter().for_each(|tile| {
                let [a, b, c, d] = sums[part][tile];
                // SAFETY: the block's shared memory.
                unsafe {
                    store_shared_f32(self.unit(part, 0, tile), f32::from_bits(pack_f16(a, b)));
                    store_shared_f32(self.unit(part, 1, tile), f32::from_bits(pack_f16(c, d)));
                }
            })
        });
    }

    /// Where the factors for the chunks of a thread's rows begin, among all levels'.
    #[inline(always)]
    unsafe fn levels(&self, columns: *const u8) -> [[u32; 2]; PARTS] {
        EACH.map(|part| {
            [0, 1].map(|half| {
                let level = match self.place(self.row(part, half)) {
                    // SAFETY: by the caller.
                    Some((_, column)) => unsafe { columns.add(column as usize).read() },
                    None => 0,
                };
                u32::from(level) * self.record.width
            })
        })
    }

    /// Layer normalisation, gains and offsets.
    #[inline(always)]
    unsafe fn normalise(&self, sums: Sums, vectors: &mut *const f32) -> Sums {
        let share = 1.0 / self.record.width as f32;
        let warps = self.record.width / LANES as u32;
        let halves = |sums: [f32; 4]| [[sums[0], sums[1]], [sums[2], sums[3]]];
        // SAFETY: by the caller, and the block's shared memory.
        unsafe {
            EACH.into_iter().for_each(|part| {
                [0, 1].into_iter().for_each(|half| {
                    let [[a, b], [c, d], [e, f], [g, h]] = sums[part].map(|sums| halves(sums)[half]);
                    let sum = ((a + b) + (c + d)) + ((e + f) + (g + h));
                    let squares = ((a * a + b * b) + (c * c + d * d)) + ((e * e + f * f) + (g * g + h * h));
                    let add = |sum: f32, apart: u32| {
                        sum + f32::from_bits(shuffle(sum.to_bits(), self.lane ^ apart))
                    };
                    let moments = [sum, squares].map(|sum| add(add(sum, 1), 2));
                    if self.lane % 4 == 0 {
                        let chunk = self.warp * RESIDUAL_CHUNKS as u32 + self.row(part, half);
                        store_shared_2(self.partial + chunk * 8, moments);
                    }
                })
            });
            sync_block();
            let mut chunk = thread();
            while chunk < RESIDUAL_CHUNKS as u32 {
                let mut moments = [0.0; 2];
                let mut warp = 0;
                while warp < warps {
                    let of_warp = load_shared_2(self.partial + (warp * RESIDUAL_CHUNKS as u32 + chunk) * 8);
                    moments = [moments[0] + of_warp[0], moments[1] + of_warp[1]];
                    warp += 1;
                }
                let mean = moments[0] * share;
                let variance = (moments[1] * share - mean * mean).max(0.0);
                store_shared_2(self.moments + chunk * 8, [mean, reciprocal_root(variance + EPSILON)]);
                chunk += threads();
            }
            sync_block();
            let (gains, offsets) = (self.take(vectors), self.take(vectors));
            EACH.map(|part| {
                let moments = [0, 1].map(|half| load_shared_2(self.moments + self.row(part, half) * 8));
                EACH.map(|tile| {
                    let [a, b, c, d] = sums[part][tile];
                    let unit = |sum: f32, half: usize, i: usize| {
                        (sum - moments[half][0]) * moments[half][1] * gains[tile][i] + offsets[tile][i]
                    };
                    [unit(a, 0, 0), unit(b, 0, 1), unit(c, 1, 0), unit(d, 1, 1)]
                })
            })
        }
    }

    /// Adds what is positive to the hidden units, and multiplies by what their chunks' levels say.
    #[inline(always)]
    unsafe fn update(&self, sums: Sums, levels: &[[u32; 2]; PARTS]) {
        EACH.into_iter().for_each(|part| {
            EACH.into_iter().for_each(|tile| {
                let [a, b, c, d] = sums[part][tile];
                let add = |half: usize, sums: [f32; 2]| {
                    let at = self.unit(part, half, tile);
                    let factors =
                        self.factors.wrapping_add((levels[part][half] + self.column(tile)) as usize);
                    // SAFETY: by the caller, and the block's shared memory.
                    unsafe {
                        let (factors, before) = (factors.cast::<[f32; 2]>().read(), load_shared(at));
                        let unit =
                            |before: u16, i: usize| (f16_to_f32(before) + sums[i].max(0.0)) * factors[i];
                        let pair = pack_f16(unit(before as u16, 0), unit((before >> 16) as u16, 1));
                        store_shared_f32(at, f32::from_bits(pair));
                    }
                };
                add(0, [a, b]);
                add(1, [c, d]);
            })
        });
    }

    /// The last layer: a warp for each part.
    #[inline(always)]
    unsafe fn leave(&self, weights: *const u32, biases: *const f32) {
        let mut part = self.warp;
        while part < PARTS as u32 {
            let mut sums = [[0.0; 4]; 2];
            let mut at = self.hidden + (part * 16 + self.lane % 16) * self.stride() + self.lane / 16 * 16;
            let mut fragments = weights.wrapping_add(self.lane as usize * 4).cast::<Four>();
            let mut step = 0;
            while step < self.record.width / CHUNK as u32 {
                // SAFETY: by the caller, and the block's shared memory.
                let (a, Four(b)) = unsafe { (load_matrices::<false>(at), fragments.read()) };
                multiply_add(&mut sums[0], a, [b[0], b[1]]);
                multiply_add(&mut sums[1], a, [b[2], b[3]]);
                at += 32;
                fragments = fragments.wrapping_add(LANES);
                step += 1;
            }
            for (tile, sums) in sums.iter().enumerate() {
                for (i, sum) in sums.iter().enumerate() {
                    let row = part * 16 + self.lane / 4 + i as u32 / 2 * 8;
                    let column = 8 * tile as u32 + self.lane % 4 * 2 + i as u32 % 2;
                    // SAFETY: as above.
                    unsafe {
                        let bias = biases.add(column as usize).read();
                        store_shared_f32(
                            self.outputs + row * RESIDUAL_OUTPUT_STRIDE + column * 4,
                            sum + bias,
                        );
                    }
                }
            }
            part += threads() / LANES as u32;
        }
    }

    /// Writes weights: outputs times the deviations of their rows.
    #[inline(always)]
    unsafe fn store(&self, rows: *const f32, output: *mut u8) {
        let ResidualRecord { out, input, dtype, .. } = self.record;
        let each = out.div_ceil(CHUNK as u32);
        let mut at = thread();
        while at < (RESIDUAL_CHUNKS * CHUNK) as u32 {
            let (chunk, j) = (at % RESIDUAL_CHUNKS as u32, at / RESIDUAL_CHUNKS as u32);
            at += threads();
            let Some((block, column)) = self.place(chunk) else { continue };
            let row = block % each * CHUNK as u32 + j;
            if row >= out {
                continue;
            }
            let row = block as usize / each as usize * out as usize + row as usize;
            let place = row * input as usize + column as usize;
            // SAFETY: by the caller, and the block's shared memory.
            unsafe {
                let value = load_shared(self.outputs + chunk * RESIDUAL_OUTPUT_STRIDE + j * 4);
                let weight = f32::from_bits(value) * rows.add(row).read();
                if dtype == DType::F32 as u32 {
                    store_global(output.add(4 * place), weight.to_bits());
                } else if dtype == DType::F16 as u32 {
                    let bits = pack_f16(weight.clamp(-MOST_F16, MOST_F16), 0.0);
                    store_global_16(output.add(2 * place), bits as u16);
                } else {
                    let bits = pack_bf16(weight.clamp(-MOST_BF16, MOST_BF16), 0.0);
                    store_global_16(output.add(2 * place), bits as u16);
                }
            }
        }
    }
}

//! Learned syntheses (docs/bitstream.md §9.3) as kernels have them: behind a tensor's tables, in the pieces that tensor cores multiply by.
//!
//! A *fragment* holds weights of [`UNITS`] units for [`INPUTS`] inputs, a word for each of 32 threads: thread 4u + t has those of unit u for inputs 4t to 4t + 3.

use crate::lane::Memory;
use crate::layout::CHUNK;

/// Words before the first fragment: the first has the numbers of [`BLOCK`]s of units of the two hidden layers in its lower bytes, 0 for none, and their shifts in the upper. Others are zero.
pub const HEAD: u32 = 4;
/// Units of a fragment.
pub const UNITS: usize = 8;
/// Inputs of a fragment.
pub const INPUTS: usize = 16;
/// Units of a layer that are computed together, those that a layer lacks being always 0.
pub const BLOCK: usize = 32;
/// Words of a fragment.
pub const FRAGMENT: u32 = 32;
/// Words of the matrix.
pub const MATRIX: u32 = 2 * FRAGMENT;
/// Words of the biases of a block of units.
pub const BIASES: u32 = BLOCK as u32;
/// Words of the weights of a block of units of the first layer: a fragment for each eight.
pub const FIRST: u32 = 4 * FRAGMENT;
/// Words of the weights of a block of units of the second layer for a block of the first: two fragments for each eight units, side by side.
pub const SECOND: u32 = 8 * FRAGMENT;
/// Words of the output weights for a block of units.
pub const OUTPUT: u32 = 4 * FRAGMENT;

/// Which row of a chunk an input of a fragment is: as a [`Bytes`](crate::lane::Bytes) has rows.
#[inline(always)]
pub const fn row_of(input: usize) -> usize {
    input / 4 + input % 4 * 4
}

/// Which input of the next layer's two fragments a unit of a block is: a thread has the units 2t and 2t + 1 of each eight, and makes one word of those of sixteen.
#[inline(always)]
pub const fn input_of(unit: usize) -> usize {
    let (eight, unit) = (unit / UNITS, unit % UNITS);
    INPUTS * (eight / 2) + unit / 2 * 4 + eight % 2 * 2 + unit % 2
}

/// Where a network's parts are, in words behind its [`HEAD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Blocks of units of the two layers.
    pub blocks: [u32; 2],
    /// Shifts of the two layers.
    pub shifts: [u32; 2],
}

impl Parts {
    /// Of the first word of the head.
    #[inline(always)]
    pub const fn new(head: u32) -> Self {
        Self { blocks: [head & 0xFF, head >> 8 & 0xFF], shifts: [head >> 16 & 15, head >> 24 & 15] }
    }

    /// A block of the first layer: its biases, and behind them its weights.
    #[inline(always)]
    pub const fn first(&self, block: u32) -> u32 {
        MATRIX + block * (BIASES + FIRST)
    }

    /// A block of the second layer: its biases, and behind them its weights for each block of the first.
    #[inline(always)]
    pub const fn second(&self, block: u32) -> u32 {
        self.first(self.blocks[0]) + block * (BIASES + self.blocks[0] * SECOND)
    }

    /// The output weights for a block of the last layer.
    #[inline(always)]
    pub const fn output(&self, block: u32) -> u32 {
        self.second(self.blocks[1]) + block * OUTPUT
    }
}

/// The latents of a whole chunk, one lane's: slow, and the same on every processor.
pub fn latents(memory: &impl Memory, at: u32, indices: &[i32; CHUNK]) -> [i32; CHUNK] {
    let parts = Parts::new(memory.word(at));
    let word = |place: u32| memory.word(at + 4 * (HEAD + place));
    // The weight of a unit for an input, in fragments of `inputs` / 16 side by side for each eight units.
    let weight = |first: u32, inputs: usize, unit: usize, input: usize| {
        let fragment = unit / UNITS * (inputs / INPUTS) + input / INPUTS;
        let thread = unit % UNITS * 4 + input % INPUTS / 4;
        (word(first + fragment as u32 * FRAGMENT + thread as u32) >> (input % 4 * 8)) as i8
    };
    let mut latents = [0i32; CHUNK];
    for (unit, latent) in latents.iter_mut().enumerate() {
        for input in 0..INPUTS {
            let product = i32::from(weight(0, INPUTS, unit, input)).wrapping_mul(indices[row_of(input)]);
            *latent = latent.wrapping_add(product);
        }
    }
    if parts.blocks[0] == 0 {
        return latents;
    }
    // By unit of a block.
    let mut active = [[0i32; BLOCK]; 2];
    for block in 0..parts.blocks[0].min(2) {
        let first = parts.first(block);
        for unit in 0..BLOCK {
            let mut sum = word(first + unit as u32).cast_signed();
            for input in 0..INPUTS {
                let index = indices[row_of(input)].clamp(-128, 127);
                sum += i32::from(weight(first + BIASES, INPUTS, unit, input)) * index;
            }
            active[block as usize][unit] = (sum >> parts.shifts[0]).clamp(0, 127);
        }
    }
    let mut last = parts.blocks[0].min(2);
    if parts.blocks[1] > 0 {
        let before = active;
        active = [[0; BLOCK]; 2];
        for block in 0..parts.blocks[1].min(2) {
            let first = parts.second(block);
            for unit in 0..BLOCK {
                let mut sum = word(first + unit as u32).cast_signed();
                for from in 0..last {
                    for input in 0..BLOCK {
                        let weight = weight(first + BIASES + from * SECOND, BLOCK, unit, input_of(input));
                        sum += i32::from(weight) * before[from as usize][input];
                    }
                }
                active[block as usize][unit] = (sum >> parts.shifts[1]).clamp(0, 127);
            }
        }
        last = parts.blocks[1].min(2);
    }
    for block in 0..last {
        for (unit, latent) in latents.iter_mut().enumerate() {
            for input in 0..BLOCK {
                let weight = weight(parts.output(block), BLOCK, unit, input_of(input));
                *latent = latent.wrapping_add(i32::from(weight) * active[block as usize][input]);
            }
        }
    }
    latents
}

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
/// Words of the biases of a block of units: those of each eight for thread 4u + t at 4t, of units 2t and 2t + 1, and once more, for both lanes that the thread has.
///
/// They have the [`places`] of what they are added to.
pub const BIASES: u32 = 2 * BLOCK as u32;
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

/// Where the bias of a unit of a block is, in words; it is there again two words further on.
#[inline(always)]
pub const fn bias_of(unit: usize) -> usize {
    unit / UNITS * 2 * UNITS + unit % UNITS / 2 * 4 + unit % 2
}

/// The binary places of what biases of a layer are added to, where inputs of the network are indices times 2^`unit`. Activations come twice as large, as what makes them
/// from a byte's range clears its last bit.
#[inline(always)]
pub const fn places(layer: usize, unit: u32) -> u32 {
    if layer == 0 { unit } else { 1 }
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

/// The latents of a whole chunk, one lane's: slow, and the same on every processor. `unit` is the tensor's.
pub fn latents(memory: &impl Memory, at: u32, indices: &[i32; CHUNK], unit: u32) -> [i32; CHUNK] {
    let parts = Parts::new(memory.word(at));
    let network = Portable { memory, at: at + 4 * HEAD };
    let inputs = |limit: fn(i32) -> i32| (0..INPUTS).map(move |input| (input, limit(indices[row_of(input)])));
    let mut latents = [0; CHUNK];
    for (unit, latent) in latents.iter_mut().enumerate() {
        *latent = network.product(0, unit, 1, inputs(|index| index));
    }
    if parts.blocks[0] == 0 {
        return latents;
    }
    let bias = |block: u32, unit_of_block: usize, layer: usize| {
        network.word(block + bias_of(unit_of_block) as u32).cast_signed() >> places(layer, unit)
    };
    let active = |sum: i32, layer: usize| (sum >> parts.shifts[layer]).clamp(0, 127);
    // The units of a block of the layer before are inputs of the next, in an order of their own.
    let of_block = |block: &[i32; BLOCK]| {
        let mut inputs = [(0, 0); BLOCK];
        inputs.iter_mut().zip(block).enumerate().for_each(|(unit, (input, &y))| *input = (input_of(unit), y));
        inputs.into_iter()
    };
    let mut last = [[0; BLOCK]; 2];
    for (number, block) in (0..parts.blocks[0]).zip(&mut last) {
        let first = parts.first(number);
        for (unit, y) in block.iter_mut().enumerate() {
            let products = network.product(first + BIASES, unit, 1, inputs(|index| index.clamp(-128, 127)));
            *y = active(bias(first, unit, 0) + products, 0);
        }
    }
    if parts.blocks[1] > 0 {
        let before = last;
        last = [[0; BLOCK]; 2];
        for (number, block) in (0..parts.blocks[1]).zip(&mut last) {
            let first = parts.second(number);
            for (unit, y) in block.iter_mut().enumerate() {
                let mut sum = bias(first, unit, 1);
                for (from, before) in (0..parts.blocks[0]).zip(&before) {
                    sum += network.product(first + BIASES + from * SECOND, unit, 2, of_block(before));
                }
                *y = active(sum, 1);
            }
        }
    }
    let blocks = if parts.blocks[1] > 0 { parts.blocks[1] } else { parts.blocks[0] };
    for (number, block) in (0..blocks).zip(&last) {
        for (unit, latent) in latents.iter_mut().enumerate() {
            let products = network.product(parts.output(number), unit, 2, of_block(block));
            *latent = latent.wrapping_add(products);
        }
    }
    latents
}

/// A network in any memory.
struct Portable<'m, M> {
    memory: &'m M,
    /// Where its fragments begin, in bytes.
    at: u32,
}

impl<M: Memory> Portable<'_, M> {
    fn word(&self, place: u32) -> u32 {
        self.memory.word(self.at + 4 * place)
    }

    /// The sum of a unit's weights times inputs, by number; the weights are in fragments from a place on, `beside` of them side by side for each eight units.
    fn product(
        &self,
        first: u32,
        unit: usize,
        beside: usize,
        inputs: impl Iterator<Item = (usize, i32)>,
    ) -> i32 {
        let weight = |input: usize| {
            let fragment = unit / UNITS * beside + input / INPUTS;
            let thread = unit % UNITS * 4 + input % INPUTS / 4;
            let word = self.word(first + fragment as u32 * FRAGMENT + thread as u32);
            i32::from((word >> (input % 4 * 8)) as i8)
        };
        inputs.fold(0, |sum, (input, value)| sum.wrapping_add(weight(input).wrapping_mul(value)))
    }
}

//! Learned syntheses (docs/bitstream.md §9.3) as kernels have them: behind a tensor's tables, in words of four weights, so that four products take one instruction.

use crate::lane::{Bytes, Memory, rows};
use crate::layout::CHUNK;
use crate::num::{dot_product, signed_byte};

/// Words of a network before its matrix: the widths of its layers in the two low bytes of the first, 0 for none, and their shifts in the next two. Others are zero.
pub const HEAD: usize = 4;

/// The most units of a layer.
const WIDTH: usize = 64;
/// Words of their activations.
const PACKED: usize = WIDTH / 4;

/// Activations of a layer, unit 4w + b in byte b of word w.
type Activations = [u32; PACKED];

/// A network in memory. The matrix comes first, four words an output; then for each layer its biases, up to a multiple of four, and its weights, a row of whole words a unit; then the output
/// weights, likewise. The first layer's rows and the matrix's have their weights in the order of [`Bytes`].
#[derive(Clone, Copy)]
pub struct Network<'m, M> {
    memory: &'m M,
    at: u32,
    widths: [u32; 2],
    shifts: [u32; 2],
}

impl<'m, M: Memory> Network<'m, M> {
    /// The network at an offset.
    #[inline(always)]
    pub fn new(memory: &'m M, at: u32) -> Self {
        let head = memory.word(at);
        Self {
            memory,
            at: at + 4 * HEAD as u32,
            widths: [head & 0xFF, head >> 8 & 0xFF],
            shifts: [head >> 16 & 15, head >> 24 & 15],
        }
    }

    /// The latents of a chunk whose indices are bytes, times 2^`unit`.
    #[inline(always)]
    pub fn of_bytes(&self, bytes: Bytes, unit: u32) -> [i32; CHUNK] {
        let latents = rows!(ROW => {
            let row = self.at + ROW as u32 * 16;
            self.product::<4>(row, &bytes, 0) >> unit
        });
        if self.widths[0] == 0 { latents } else { self.add_hidden(latents, bytes, unit) }
    }

    /// The latents of a chunk of any indices, if it is a whole one.
    #[inline(always)]
    pub fn of_indices(&self, indices: [i32; CHUNK]) -> [i32; CHUNK] {
        let latents = rows!(ROW => {
            let mut sum = 0i32;
            for group in 0..4 {
                let word = self.memory.word(self.at + (ROW * 16 + group * 4) as u32);
                let weights =
                    [signed_byte::<0>(word), signed_byte::<1>(word), signed_byte::<2>(word), signed_byte::<3>(word)];
                for (byte, weight) in weights.into_iter().enumerate() {
                    sum = sum.wrapping_add(weight.wrapping_mul(indices[group + 4 * byte]));
                }
            }
            sum
        });
        if self.widths[0] == 0 {
            return latents;
        }
        let byte = |index: i32| (index.clamp(-128, 127) as u32) & 0xFF;
        let bytes = [0, 1, 2, 3].map(|group| {
            byte(indices[group])
                | byte(indices[group + 4]) << 8
                | byte(indices[group + 8]) << 16
                | byte(indices[group + 12]) << 24
        });
        self.add_hidden(latents, bytes, 0)
    }

    /// The sum of products with a row of words, and of `sum`.
    #[inline(always)]
    fn product<const WORDS: usize>(&self, row: u32, inputs: &[u32], mut sum: i32) -> i32 {
        let mut word = 0;
        while word < WORDS {
            sum = dot_product(inputs[word], self.memory.word(row + word as u32 * 4), sum);
            word += 1;
        }
        sum
    }

    /// Adds what the hidden layers make of bytes, which are indices times 2^`unit`.
    #[inline(always)]
    fn add_hidden(&self, latents: [i32; CHUNK], bytes: Bytes, unit: u32) -> [i32; CHUNK] {
        let mut at = self.at + 16 * CHUNK as u32;
        let mut activations: Activations = [0; PACKED];
        activations[..4].copy_from_slice(&bytes);
        let (mut words, mut unit) = (4, unit);
        for layer in 0..2 {
            let width = self.widths[layer];
            if width > 0 {
                activations = self.layer(at, width, words, &activations, self.shifts[layer], unit);
                at += 4 * (width.next_multiple_of(4) + width * words);
                (words, unit) = (width.div_ceil(4), 0);
            }
        }
        rows!(ROW => {
            let mut sum = latents[ROW];
            for (word, &inputs) in activations.iter().enumerate() {
                if (word as u32) < words {
                    sum = dot_product(inputs, self.memory.word(at + (ROW as u32 * words + word as u32) * 4), sum);
                }
            }
            sum
        })
    }

    /// A layer's activations.
    #[inline(always)]
    fn layer(
        &self,
        at: u32,
        width: u32,
        words: u32,
        inputs: &Activations,
        shift: u32,
        unit: u32,
    ) -> Activations {
        let weights = at + 4 * width.next_multiple_of(4);
        let mut packed = [0; PACKED];
        let mut number = 0;
        while number < width {
            let mut sum = self.memory.word(at + 4 * number).cast_signed() << unit;
            for (word, &input) in inputs.iter().enumerate() {
                if (word as u32) < words {
                    let weight = self.memory.word(weights + (number * words + word as u32) * 4);
                    sum = dot_product(input, weight, sum);
                }
            }
            let activation = (sum >> (shift + unit)).clamp(0, 127).cast_unsigned();
            packed[(number / 4) as usize % PACKED] |= activation << (8 * (number % 4));
            number += 1;
        }
        packed
    }
}

//! Learned syntheses in the form that kernels have them (`nwc_decode_kernels::network`).

use nwc_decode_core::{CHUNK_ROWS, Synthesis};
use nwc_decode_kernels::layout::{UNIT, synthesis};
use nwc_decode_kernels::network::{BLOCK, FRAGMENT, HEAD, INPUTS, UNITS, input_of, row_of};

/// What no latent is above if indices are bytes, in steps: a transform of sixteen gains four at most.
const LARGEST: f32 = 512.0;

/// Appends the network of a synthesis, if it has one, to what goes to shared memory. Returns the synthesis's number, what a latent of it counts, and how many steps the
/// largest latent is if indices are bytes.
pub(crate) fn add(synthesis: Synthesis<'_>, shared: &mut Vec<u32>) -> (u32, f32, f32) {
    let unit = ((1u32 << synthesis.fraction_bits()) as f32).recip();
    let Synthesis::Learned(network) = synthesis else {
        let hadamard = synthesis == Synthesis::Hadamard;
        return (if hadamard { synthesis::HADAMARD } else { synthesis::IDENTITY }, unit, LARGEST);
    };
    // Its form was checked when the container was opened (docs/bitstream.md §9.3).
    let mut stored = network.stored().iter().copied();
    let mut byte = || stored.next().unwrap_or(0);
    byte(); // the binary places
    let rows = |count: usize, inputs: usize, byte: &mut dyn FnMut() -> u8| -> Vec<Vec<u8>> {
        (0..count).map(|_| (0..inputs).map(|_| byte()).collect()).collect()
    };
    let matrix = rows(CHUNK_ROWS, CHUNK_ROWS, &mut byte);
    let mut head = 0;
    let mut words = Vec::new();
    put(&mut words, &matrix, |unit, input| (unit, row_of(input)), (CHUNK_ROWS, INPUTS));
    let (mut width, layers) = (CHUNK_ROWS, usize::from(byte()));
    for layer in 0..layers {
        let inputs = std::mem::replace(&mut width, usize::from(byte()));
        let blocks = width.div_ceil(BLOCK);
        head |= (blocks as u32) << (8 * layer) | u32::from(byte()) << (16 + 8 * layer);
        let biases: Vec<i16> = (0..width).map(|_| i16::from_le_bytes([byte(), byte()])).collect();
        let weights = rows(width, inputs, &mut byte);
        for first in (0..blocks).map(|block| block * BLOCK) {
            let bias = |unit: usize| biases.get(first + unit).copied().unwrap_or(0);
            words.extend((0..BLOCK).map(|unit| i32::from(bias(unit)).cast_unsigned()));
            if layer == 0 {
                put(&mut words, &weights, |unit, input| (first + unit, row_of(input)), (BLOCK, INPUTS));
            } else {
                put_blocks(&mut words, &weights, first, BLOCK, inputs);
            }
        }
    }
    let output = rows(if layers > 0 { CHUNK_ROWS } else { 0 }, width, &mut byte);
    put_blocks(&mut words, &output, 0, CHUNK_ROWS, if layers > 0 { width } else { 0 });
    let gain = |row: &Vec<u8>| row.iter().map(|weight| u32::from(weight.cast_signed().unsigned_abs())).sum();
    let most: u32 = output.iter().map(gain).max().unwrap_or(0);
    shared.push(head);
    shared.resize(shared.len() + HEAD as usize - 1, 0);
    shared.extend(words);
    debug_assert!(shared.len().is_multiple_of(UNIT / 4));
    let number = if layers > 0 { synthesis::LAYERS } else { synthesis::LINEAR };
    (number, unit, LARGEST + (most * 127) as f32 * unit)
}

/// Appends the fragments of some units, for all inputs that are blocks of units of the layer before, block by block.
fn put_blocks(words: &mut Vec<u32>, weights: &[Vec<u8>], first: usize, units: usize, inputs: usize) {
    for block in (0..inputs.div_ceil(BLOCK)).map(|block| block * BLOCK) {
        let mut place = [0; BLOCK];
        (0..BLOCK).for_each(|unit| place[input_of(unit)] = block + unit);
        put(words, weights, |unit, input| (first + unit, place[input]), (units, BLOCK));
    }
}

/// Appends the fragments of some units and inputs, which lie where `place` says, or are 0 if there is no such weight.
fn put(
    words: &mut Vec<u32>,
    weights: &[Vec<u8>],
    place: impl Fn(usize, usize) -> (usize, usize),
    (units, inputs): (usize, usize),
) {
    for eight in (0..units).step_by(UNITS) {
        for sixteen in (0..inputs).step_by(INPUTS) {
            words.extend((0..FRAGMENT as usize).map(|thread| {
                u32::from_le_bytes(std::array::from_fn(|byte| {
                    let (unit, input) = place(eight + thread / 4, sixteen + thread % 4 * 4 + byte);
                    weights.get(unit).and_then(|row| row.get(input)).copied().unwrap_or(0)
                }))
            }));
        }
    }
}

//! Learned syntheses in the form that kernels have them (`nwc_decode_kernels::network`).

use nwc_decode_core::{CHUNK_ROWS, NetworkLayer, NetworkParts, Synthesis};
use nwc_decode_kernels::layout::{UNIT, synthesis};
use nwc_decode_kernels::network::{
    BIASES, BLOCK, FRAGMENT, HEAD, INPUTS, UNITS, bias_of, input_of, places, row_of,
};

/// What no latent is above if indices are bytes, in steps: a transform of sixteen gains four at most.
const LARGEST: f32 = 512.0;

/// Appends the network of a synthesis, if it has one, to what goes to shared memory; the tensor's indices are multiplied by 2^`unit_bits` in bytes. Returns the synthesis's number, what a latent of it counts, and how many steps the
/// largest latent is if indices are bytes.
pub(crate) fn add(synthesis: Synthesis<'_>, unit_bits: u32, shared: &mut Vec<u32>) -> (u32, f32, f32) {
    let unit = ((1u32 << synthesis.fraction_bits()) as f32).recip();
    let Synthesis::Learned(network) = synthesis else {
        let hadamard = synthesis == Synthesis::Hadamard;
        return (if hadamard { synthesis::HADAMARD } else { synthesis::IDENTITY }, unit, LARGEST);
    };
    let NetworkParts { matrix, hidden, output, .. } = network.parts();
    let mut head = 0;
    let mut words = Vec::new();
    put(
        &mut words,
        (matrix.as_flattened(), CHUNK_ROWS),
        |unit, input| (unit, row_of(input)),
        (CHUNK_ROWS, INPUTS),
    );
    let mut width = CHUNK_ROWS;
    let layers = hidden.iter().take_while(|layer| !layer.biases.is_empty());
    let layers_here = layers.clone().count();
    for (number, NetworkLayer { shift, biases, weights, inputs }) in layers.enumerate() {
        width = biases.len();
        let blocks = width.div_ceil(BLOCK);
        head |= (blocks as u32) << (8 * number) | shift << (16 + 8 * number);
        for first in (0..blocks).map(|block| block * BLOCK) {
            let bias =
                |unit: usize| i16::from_le_bytes(biases.get(first + unit).copied().unwrap_or_default());
            let here = words.len();
            words.resize(here + BIASES as usize, 0);
            for unit in 0..BLOCK {
                let word = (i32::from(bias(unit)) << places(number, unit_bits)).cast_unsigned();
                let at = here + bias_of(unit);
                (words[at], words[at + 2]) = (word, word);
            }
            let weights = (*weights, *inputs);
            if number == 0 {
                put(&mut words, weights, |unit, input| (first + unit, row_of(input)), (BLOCK, INPUTS));
            } else {
                put_blocks(&mut words, weights, first, BLOCK);
            }
        }
    }
    if !output.is_empty() {
        put_blocks(&mut words, (output, width), 0, CHUNK_ROWS);
    }
    let gain = |row: &[u8]| row.iter().map(|weight| u32::from(weight.cast_signed().unsigned_abs())).sum();
    let most: u32 = output.chunks_exact(width).map(gain).max().unwrap_or(0);
    shared.push(head);
    shared.resize(shared.len() + HEAD as usize - 1, 0);
    shared.extend(words);
    debug_assert!(shared.len().is_multiple_of(UNIT / 4));
    let number = match layers_here {
        0 => synthesis::LINEAR,
        1 => synthesis::LAYER,
        _ => synthesis::LAYERS,
    };
    (number, unit, LARGEST + (most * 127) as f32 * unit)
}

/// Weights of units, one behind the other, and the number of each one's inputs.
type Weights<'a> = (&'a [u8], usize);

/// Appends the fragments of some units, for all inputs that are blocks of units of the layer before, block by block.
fn put_blocks(words: &mut Vec<u32>, weights: Weights<'_>, first: usize, units: usize) {
    for block in (0..weights.1.div_ceil(BLOCK)).map(|block| block * BLOCK) {
        let mut place = [0; BLOCK];
        (0..BLOCK).for_each(|unit| place[input_of(unit)] = block + unit);
        put(words, weights, |unit, input| (first + unit, place[input]), (units, BLOCK));
    }
}

/// Appends the fragments of some units and inputs, which lie where `place` says, or are 0 if there is no such weight.
fn put(
    words: &mut Vec<u32>,
    (weights, width): Weights<'_>,
    place: impl Fn(usize, usize) -> (usize, usize),
    (units, inputs): (usize, usize),
) {
    let weight = |(unit, input): (usize, usize)| {
        let row = weights.chunks_exact(width).nth(unit);
        row.and_then(|row| row.get(input)).copied().unwrap_or(0)
    };
    for eight in (0..units).step_by(UNITS) {
        for sixteen in (0..inputs).step_by(INPUTS) {
            words.extend((0..FRAGMENT as usize).map(|thread| {
                u32::from_le_bytes(std::array::from_fn(|byte| {
                    weight(place(eight + thread / 4, sixteen + thread % 4 * 4 + byte))
                }))
            }));
        }
    }
}

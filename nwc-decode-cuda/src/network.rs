//! Learned syntheses in the form that kernels have them (`nwc_decode_kernels::network`).

use nwc_decode_core::{CHUNK_ROWS, Synthesis};
use nwc_decode_kernels::layout::{UNIT, synthesis};
use nwc_decode_kernels::network::HEAD;

/// What no latent is above if indices are bytes, in steps: a transform of sixteen gains four at most.
const LARGEST: f32 = 512.0;

/// Appends the network of a synthesis, if it has one, to what goes to shared memory. Returns the synthesis's number, what a latent of it counts, and how many steps the largest latent is if indices are
/// bytes.
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
    let matrix: Vec<u8> = (0..CHUNK_ROWS * CHUNK_ROWS).map(|_| byte()).collect();
    let head = shared.len();
    shared.resize(head + HEAD, 0);
    shared.extend(matrix.chunks_exact(CHUNK_ROWS).flat_map(by_chunk));
    let (mut inputs, layers) = (CHUNK_ROWS, usize::from(byte()));
    for layer in 0..layers {
        let width = usize::from(byte());
        let shift = byte();
        shared[head] |= (width as u32) << (8 * layer) | u32::from(shift) << (16 + 8 * layer);
        let biases: Vec<i16> = (0..width).map(|_| i16::from_le_bytes([byte(), byte()])).collect();
        shared.extend(biases.iter().map(|&bias| i32::from(bias).cast_unsigned()));
        shared.resize((shared.len() - head).next_multiple_of(4) + head, 0);
        for _ in 0..width {
            let row: Vec<u8> = (0..inputs).map(|_| byte()).collect();
            shared.extend(if layer == 0 { by_chunk(&row).to_vec() } else { in_order(&row) });
        }
        inputs = width;
    }
    let mut most = 0u32;
    for _ in 0..if layers > 0 { CHUNK_ROWS } else { 0 } {
        let row: Vec<u8> = (0..inputs).map(|_| byte()).collect();
        most = most.max(row.iter().map(|&weight| u32::from(weight.cast_signed().unsigned_abs())).sum());
        shared.extend(in_order(&row));
    }
    shared.resize(shared.len().next_multiple_of(UNIT / 4), 0);
    (synthesis::LEARNED, unit, LARGEST + (most * 127) as f32 * unit)
}

/// Sixteen weights as kernels have a chunk's bytes: row 4b + w in byte b of word w.
fn by_chunk(row: &[u8]) -> [u32; 4] {
    std::array::from_fn(|word| u32::from_le_bytes(std::array::from_fn(|byte| row[4 * byte + word])))
}

/// Weights four a word.
fn in_order(row: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| four.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    row.chunks(4).map(word).collect()
}

//! Analysis: from weights in units of their step to what is quantised, the inverse of the decoder's synthesis (docs/bitstream.md §9).

use nwc_decode_core::{CHUNK_ROWS, Synthesis};

use super::search::LANES;

/// Transforms the rows of a group of columns, `[row][LANES]`, in place.
pub fn analyse(synthesis: Synthesis, weights: &mut [f32]) {
    if synthesis == Synthesis::Hadamard {
        // Orthonormal and its own inverse; rows after the last whole chunk stay as they are.
        weights.chunks_exact_mut(CHUNK_ROWS * LANES).for_each(hadamard);
    }
}

fn hadamard(chunk: &mut [f32]) {
    for distance in [1, 2, 4, 8] {
        for block in chunk.chunks_exact_mut(2 * distance * LANES) {
            let (first, second) = block.split_at_mut(distance * LANES);
            for (first, second) in first.iter_mut().zip(second) {
                (*first, *second) = (*first + *second, *first - *second);
            }
        }
    }
    chunk.iter_mut().for_each(|weight| *weight *= 0.25);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn analysis_keeps_energy_and_undoes_itself() {
        let before: Vec<f32> = (0..40 * LANES).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let mut weights = before.clone();
        analyse(Synthesis::Hadamard, &mut weights);
        assert_ne!(weights[..32 * LANES], before[..32 * LANES]);
        assert_eq!(weights[32 * LANES..], before[32 * LANES..], "no whole chunk");
        let energy = |weights: &[f32]| weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
        assert!((energy(&weights) / energy(&before) - 1.0).abs() < 1e-6);
        analyse(Synthesis::Hadamard, &mut weights);
        assert_eq!(weights, before);
        analyse(Synthesis::Identity, &mut weights);
        assert_eq!(weights, before);
    }
}

//! Transforms: from weights in units of their step to what is quantised, and the decoder's synthesis that undoes it (docs/bitstream.md §9).

use std::sync::Arc;

use nwc_decode_core::{CHUNK_ROWS, Network, Synthesis};

use super::search::LANES;

/// A row of a group of columns.
type Row = [f32; LANES];
/// A chunk of rows: what a transform mixes.
type Chunk = [Row; CHUNK_ROWS];
type Matrix = [[f32; CHUNK_ROWS]; CHUNK_ROWS];

/// Rounds in which the hidden layers' share is taken out of what the matrix is to make: each finds what is left by a tenth or so.
const HIDDEN_ROUNDS: usize = 3;

/// What is done to chunks of rows before they are quantised.
#[derive(Debug, Clone, PartialEq)]
pub enum Transform {
    /// Nothing.
    Identity,
    /// The orthonormal Hadamard transform, its own inverse.
    Hadamard,
    /// Whatever a learned synthesis undoes.
    Learned(Arc<Learned>),
}

/// A learned synthesis, and how to find its inputs.
#[derive(Debug, PartialEq)]
pub struct Learned {
    /// The stored form of the network.
    stored: Vec<u8>,
    /// What the network's matrix does, and its inverse.
    matrix: Matrix,
    inverse: Matrix,
}

impl Learned {
    fn network(&self) -> Network<'_> {
        Network::new(&self.stored).expect("it was checked when it was made")
    }
}

impl Transform {
    /// The transform of a synthesis in its stored form (docs/bitstream.md §9.3); `None` if it breaks the rules there, or if its matrix has no inverse.
    pub fn learned(stored: Vec<u8>) -> Option<Self> {
        let parts = Network::new(&stored)?.parts();
        let unit = f64::from(1u32 << parts.places).recip();
        let matrix = parts.matrix.map(|row| row.map(|entry| f64::from(entry.cast_signed()) * unit));
        let inverse = inverse(matrix)?;
        let narrow = |matrix: [[f64; CHUNK_ROWS]; CHUNK_ROWS]| matrix.map(|row| row.map(|x| x as f32));
        Some(Self::Learned(Arc::new(Learned { matrix: narrow(matrix), inverse: narrow(inverse), stored })))
    }

    /// What a decoder does.
    pub fn synthesis(&self) -> Synthesis<'_> {
        match self {
            Self::Identity => Synthesis::Identity,
            Self::Hadamard => Synthesis::Hadamard,
            Self::Learned(learned) => Synthesis::Learned(learned.network()),
        }
    }

    /// Its fields in a codec (§4.1).
    pub fn stored(&self) -> Vec<u8> {
        match self {
            Self::Identity => vec![0],
            Self::Hadamard => vec![1],
            Self::Learned(learned) => [&[2], &learned.stored[..]].concat(),
        }
    }

    /// Multiplications of a decoder for each weight.
    pub fn multiplications(&self) -> usize {
        match self {
            Self::Identity | Self::Hadamard => 0,
            Self::Learned(learned) => learned.network().multiplications(),
        }
    }

    /// Whether it is more than a matrix.
    pub fn has_layers(&self) -> bool {
        self.multiplications() > CHUNK_ROWS
    }

    /// Transforms the rows of a group of columns, `[row][LANES]`, in place; rows after the last whole chunk stay as they are.
    pub fn analyse(&self, weights: &mut [f32]) {
        let rows = weights.as_chunks_mut::<LANES>().0;
        let chunks = rows.as_chunks_mut::<CHUNK_ROWS>().0.iter_mut();
        match self {
            Self::Identity => {}
            Self::Hadamard => chunks.for_each(hadamard),
            Self::Learned(learned) => {
                let network = learned.network();
                let rounds = if self.has_layers() { HIDDEN_ROUNDS } else { 0 };
                chunks.for_each(|chunk| {
                    let weights = *chunk;
                    *chunk = multiply(&learned.inverse, &weights);
                    for _ in 0..rounds {
                        // What the matrix must make is the weights less what the hidden layers add at the nearest indices.
                        let indices =
                            chunk.map(|row| row.map(|x| x.round_ties_even().clamp(-65_536.0, 65_535.0)));
                        let made = synthesise(Synthesis::Learned(network), &indices);
                        let linear = multiply(&learned.matrix, &indices);
                        let wanted: Chunk = std::array::from_fn(|row| {
                            std::array::from_fn(|lane| {
                                weights[row][lane] - (made[row][lane] - linear[row][lane])
                            })
                        });
                        *chunk = multiply(&learned.inverse, &wanted);
                    }
                });
            }
        }
    }

    /// What a decoder makes of the indices of a group of columns, `[row][LANES]`.
    pub fn reconstruct(&self, indices: &[i32], out: &mut [f32]) {
        out.iter_mut().zip(indices).for_each(|(out, &index)| *out = index as f32);
        if *self != Self::Identity {
            synthesise_all(self.synthesis(), out);
        }
    }

    /// [`analyse`](Self::analyse) for one column.
    pub fn analyse_column(&self, column: &mut [f32]) {
        if *self != Self::Identity {
            by_chunks(column, |chunks| self.analyse(chunks));
        }
    }

    /// [`reconstruct`](Self::reconstruct) for one column.
    pub fn reconstruct_column(&self, indices: &[i32], out: &mut [f32]) {
        out.iter_mut().zip(indices).for_each(|(out, &index)| *out = index as f32);
        if *self != Self::Identity {
            by_chunks(out, |chunks| synthesise_all(self.synthesis(), chunks));
        }
    }

    /// Moves targets of the search closer to what makes the decoder's error small: to `indices`, plus how its error, `weights` less what it made of them, looks before the
    /// synthesis. For a matrix without hidden layers this never raises the error that the search then finds (majorisation: `|A|` is at most 1, or nearly so).
    pub fn retarget(&self, error: &[f32], indices: &[i32], targets: &mut [f32]) {
        targets.copy_from_slice(error);
        let chunks = targets.as_chunks_mut::<LANES>().0.as_chunks_mut::<CHUNK_ROWS>().0.iter_mut();
        match self {
            Self::Identity => {}
            Self::Hadamard => chunks.for_each(hadamard),
            Self::Learned(learned) => {
                let transposed: Matrix = std::array::from_fn(|k| learned.matrix.map(|row| row[k]));
                chunks.for_each(|chunk| *chunk = multiply(&transposed, chunk));
            }
        }
        targets.iter_mut().zip(indices).for_each(|(target, &index)| *target += index as f32);
    }
}

/// Hands on the whole chunks of a column, side by side as those of as many columns.
fn by_chunks(column: &mut [f32], mut job: impl FnMut(&mut [f32])) {
    let mut lanes = [0.0; LANES * CHUNK_ROWS];
    for chunks in column.as_chunks_mut::<CHUNK_ROWS>().0.chunks_mut(LANES) {
        for (lane, chunk) in chunks.iter().enumerate() {
            lanes[lane..].iter_mut().step_by(LANES).zip(chunk).for_each(|(to, from)| *to = *from);
        }
        job(&mut lanes);
        for (lane, chunk) in chunks.iter_mut().enumerate() {
            chunk.iter_mut().zip(lanes[lane..].iter().step_by(LANES)).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Synthesises the whole chunks of a group of columns, `[row][LANES]`, in place.
fn synthesise_all(synthesis: Synthesis<'_>, rows: &mut [f32]) {
    for chunk in rows.as_chunks_mut::<LANES>().0.as_chunks_mut::<CHUNK_ROWS>().0 {
        *chunk = synthesise(synthesis, chunk);
    }
}

/// What the decoder's own synthesis makes of a chunk of indices.
fn synthesise(synthesis: Synthesis<'_>, indices: &Chunk) -> Chunk {
    let mut latents = indices.map(|row| row.map(|index| index as i32));
    synthesis.apply(&mut latents, CHUNK_ROWS);
    let unit = ((1u32 << synthesis.fraction_bits()) as f32).recip();
    latents.map(|row| row.map(|latent| latent as f32 * unit))
}

fn multiply(matrix: &Matrix, chunk: &Chunk) -> Chunk {
    std::array::from_fn(|j| {
        let mut sums = [0.0; LANES];
        for (factor, row) in matrix[j].iter().zip(chunk) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
        }
        sums
    })
}

fn hadamard(chunk: &mut Chunk) {
    for distance in [1, 2, 4, 8] {
        for block in chunk.chunks_exact_mut(2 * distance) {
            let (first, second) = block.split_at_mut(distance);
            for (first, second) in first.iter_mut().flatten().zip(second.iter_mut().flatten()) {
                (*first, *second) = (*first + *second, *first - *second);
            }
        }
    }
    chunk.iter_mut().flatten().for_each(|weight| *weight *= 0.25);
}

/// By elimination with pivots; `None` if there is none that is good for anything.
fn inverse<const N: usize>(mut matrix: [[f64; N]; N]) -> Option<[[f64; N]; N]> {
    let mut inverse: [[f64; N]; N] = std::array::from_fn(|j| std::array::from_fn(|k| f64::from(j == k)));
    for column in 0..N {
        let pivot =
            (column..N).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))?;
        if matrix[pivot][column].abs() < 1e-3 {
            return None;
        }
        matrix.swap(column, pivot);
        inverse.swap(column, pivot);
        let scale = matrix[column][column].recip();
        matrix[column].iter_mut().chain(&mut inverse[column]).for_each(|x| *x *= scale);
        let (row, made) = (matrix[column], inverse[column]);
        for other in (0..N).filter(|&other| other != column) {
            let factor = matrix[other][column];
            matrix[other].iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
            inverse[other].iter_mut().zip(made).for_each(|(x, y)| *x -= factor * y);
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::synthetic::network;

    fn weights() -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        (0..40 * LANES).map(|_| rng.random_range(-9.0..9.0)).collect()
    }

    fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len() as f64
    }

    #[test]
    fn a_decoder_undoes_each_transform() {
        let before = weights();
        for (transform, most) in [
            (Transform::Identity, 0.085),
            (Transform::Hadamard, 0.085),
            (Transform::learned(network(&[])).unwrap(), 0.087),
            (Transform::learned(network(&[24])).unwrap(), 0.11),
        ] {
            let mut latents = before.clone();
            transform.analyse(&mut latents);
            assert_eq!(latents[32 * LANES..], before[32 * LANES..], "no whole chunk");
            let indices: Vec<i32> = latents.iter().map(|x| x.round() as i32).collect();
            let mut made = vec![0.0; before.len()];
            transform.reconstruct(&indices, &mut made);
            // Rounding alone costs 1/12.
            let error = squared_distance(&made, &before);
            assert!((0.08..most).contains(&error), "{transform:?}: {error}");
        }
    }

    #[test]
    fn new_targets_lower_the_error_of_a_matrix_that_is_no_rotation() {
        let mut stored = network(&[]);
        // Entries of a fifth of the size, here and there.
        stored[1..257].iter_mut().step_by(3).for_each(|x| *x = (x.cast_signed() / 5).cast_unsigned());
        let transform = Transform::learned(stored).unwrap();
        let before = weights();
        let mut targets = before.clone();
        transform.analyse(&mut targets);
        let mut made = vec![0.0; before.len()];
        let mut errors = Vec::new();
        for _ in 0..4 {
            let indices: Vec<i32> = targets.iter().map(|x| x.round() as i32).collect();
            transform.reconstruct(&indices, &mut made);
            errors.push(squared_distance(&made, &before));
            let error: Vec<f32> = before.iter().zip(&made).map(|(w, made)| w - made).collect();
            transform.retarget(&error, &indices, &mut targets);
        }
        assert!(errors.windows(2).all(|pair| pair[1] <= pair[0] * 1.000_001), "{errors:?}");
        assert!(errors[3] < 0.97 * errors[0], "{errors:?}");
    }

    #[test]
    fn what_cannot_be_undone_is_refused() {
        let mut singular = network(&[]);
        let row: Vec<u8> = singular[1..17].to_vec();
        singular[17..33].copy_from_slice(&row);
        assert_eq!(Transform::learned(singular), None);
        assert_eq!(Transform::learned(vec![7; 30]), None);
    }
}

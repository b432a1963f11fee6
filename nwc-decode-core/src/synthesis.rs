//! Synthesis: from quantisation indices to weights in units of the step (§9).

use crate::tile::{CHUNK_ROWS, MAX_LANES};

/// How indices become weights in units of the step (§9).
///
/// A synthesis works on fixed-point integers, so that every device computes the same, and mixes only the rows of a lane's chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Synthesis {
    /// An index is the weight.
    Identity = 0,
    /// The orthonormal Hadamard transform of each whole chunk of [`CHUNK_ROWS`] rows.
    Hadamard = 1,
}

impl Synthesis {
    /// Every synthesis, in the order of the codes.
    pub const ALL: [Self; 2] = [Self::Identity, Self::Hadamard];

    /// The code that codecs store.
    pub const fn code(self) -> u8 {
        crate::num::synthesis_code(self)
    }

    /// The synthesis with this code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Hadamard => "hadamard",
        }
    }

    /// Turns the indices of a chunk's first `rows` rows into latents with [`fraction_bits`](Self::fraction_bits) binary places, in place.
    /// All lanes are computed, those that rest too: what comes of them has no meaning, and a fixed width makes vectors of the loops.
    #[inline]
    pub(crate) fn apply(self, chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS], rows: usize) {
        match self {
            Self::Identity => {}
            Self::Hadamard if rows == CHUNK_ROWS => hadamard(chunk),
            Self::Hadamard => {
                for latent in chunk.iter_mut().take(rows).flatten() {
                    *latent <<= 2;
                }
            }
        }
    }

    /// Binary places after the point of what `apply` leaves.
    pub(crate) const fn fraction_bits(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Hadamard => 2,
        }
    }
}

/// Four times the orthonormal transform down each lane: sums and differences at distances of 1, 2, 4 and 8 rows. Indices are below 2^17 in magnitude
/// (§9.2), so no sum of sixteen overflows.
fn hadamard(chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS]) {
    butterflies::<2>(chunk);
    butterflies::<4>(chunk);
    butterflies::<8>(chunk);
    butterflies::<16>(chunk);
}

/// Sums and differences of the first and the second half of each block of `ROWS` rows.
fn butterflies<const ROWS: usize>(chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS]) {
    let (blocks, _) = chunk.as_chunks_mut::<ROWS>();
    for block in blocks {
        let Some((first, second)) = block.split_at_mut_checked(ROWS >> 1) else { continue };
        for (first, second) in first.iter_mut().flatten().zip(second.iter_mut().flatten()) {
            (*first, *second) = (first.wrapping_add(*second), first.wrapping_sub(*second));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hadamard_is_the_sylvester_matrix_and_its_own_inverse() {
        for k in 0..CHUNK_ROWS {
            let mut chunk = [[0; MAX_LANES]; CHUNK_ROWS];
            for (lane, index) in chunk[k].iter_mut().enumerate() {
                *index = if lane % 2 == 0 { 65_535 } else { -65_536 };
            }
            let before = chunk;
            Synthesis::Hadamard.apply(&mut chunk, CHUNK_ROWS);
            for (j, row) in chunk.iter().enumerate() {
                let sign = if (j & k).count_ones() % 2 == 0 { 1 } else { -1 };
                assert_eq!(row.map(|v| v * sign), before[k], "row {j} of unit vector {k}");
            }
            Synthesis::Hadamard.apply(&mut chunk, CHUNK_ROWS);
            assert_eq!(chunk, before.map(|row| row.map(|v| v * 16)));
        }
    }

    #[test]
    fn the_largest_indices_do_not_overflow() {
        let mut chunk = [[-65_536; MAX_LANES]; CHUNK_ROWS];
        Synthesis::Hadamard.apply(&mut chunk, CHUNK_ROWS);
        assert_eq!(chunk[0], [-(1 << 20); MAX_LANES]);
        assert_eq!(chunk[1..], [[0; MAX_LANES]; CHUNK_ROWS - 1]);
    }

    #[test]
    fn rows_of_a_partial_chunk_stay_as_they_are() {
        let mut chunk: [[i32; MAX_LANES]; CHUNK_ROWS] = std::array::from_fn(|r| [r as i32 - 7; MAX_LANES]);
        Synthesis::Hadamard.apply(&mut chunk, 15);
        assert_eq!(chunk[..15], std::array::from_fn::<_, 15, _>(|r| [4 * (r as i32 - 7); MAX_LANES]));
    }
}

//! Synthesis: from quantisation indices to weights in units of the step (§9).

use crate::codec::Synthesis;
use crate::tile::{CHUNK_ROWS, MAX_LANES};

impl Synthesis {
    /// Turns the indices of a chunk into latents, in place. `rows` and `lanes` say how much of the chunk is in use.
    ///
    /// A synthesis works on fixed-point integers, so that every device computes the same, and mixes only the rows
    /// of a lane: [`fraction_bits`](Self::fraction_bits) says where the binary point is afterwards.
    #[inline]
    pub(crate) fn apply(self, _chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS], _rows: usize, _lanes: usize) {
        match self {
            Self::Identity => {}
        }
    }

    /// Binary places after the point of what `apply` leaves.
    pub(crate) const fn fraction_bits(self) -> u32 {
        match self {
            Self::Identity => 0,
        }
    }
}

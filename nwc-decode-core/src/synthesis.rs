//! Synthesis: from quantisation indices to weights in units of the step (§9).

use crate::bytes::Reader;
use crate::tile::{CHUNK_ROWS, MAX_LANES};
use crate::{Error, num};

/// How indices become weights in units of the step (§9).
///
/// A synthesis works on fixed-point integers, so that every device computes the same, and mixes only the rows of a lane's chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Synthesis<'a> {
    /// An index is the weight.
    Identity,
    /// The orthonormal Hadamard transform of each whole chunk of [`CHUNK_ROWS`] rows.
    Hadamard,
    /// A network that was learned, on each whole chunk of [`CHUNK_ROWS`] rows.
    Learned(Network<'a>),
}

impl<'a> Synthesis<'a> {
    /// The synthesis at the front of a codec.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, Error> {
        match reader.u8().ok_or(Error::Codec)? {
            0 => Ok(Self::Identity),
            1 => Ok(Self::Hadamard),
            2 => Network::read(reader).map(Self::Learned).ok_or(Error::Codec),
            _ => Err(Error::Unsupported),
        }
    }

    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Hadamard => "hadamard",
            Self::Learned(_) => "learned",
        }
    }

    /// Turns the indices of a chunk's first `rows` rows into latents with [`fraction_bits`](Self::fraction_bits) binary places, in place.
    /// All lanes are computed, those that rest too: what comes of them has no meaning, and a fixed width makes vectors of the loops.
    ///
    /// It is inlined whole, so that a caller with instructions that others lack (`#[target_feature]`) has it with these.
    #[inline(always)]
    pub fn apply(self, chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS], rows: usize) {
        self.apply_abreast::<ABREAST>(chunk, rows);
    }

    /// The same, with so many lanes of a learned synthesis computed together, a divisor of [`MAX_LANES`]: a weight is then read for all of them, but activations take
    /// 512 bytes of stack for each.
    #[inline(always)]
    pub fn apply_abreast<const LANES: usize>(self, chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS], rows: usize) {
        const { assert!(LANES > 0 && MAX_LANES.is_multiple_of(LANES), "lanes are computed in equal parts") };
        match self {
            Self::Hadamard if rows == CHUNK_ROWS => hadamard(chunk),
            Self::Learned(network) if rows == CHUNK_ROWS => network.parts().apply::<LANES>(chunk),
            _ => {
                let places = self.fraction_bits();
                if places > 0 {
                    chunk.iter_mut().take(rows).flatten().for_each(|latent| *latent <<= places & 15);
                }
            }
        }
    }

    /// Binary places after the point of what `apply` leaves.
    pub const fn fraction_bits(self) -> u32 {
        match self {
            Self::Identity => 0,
            Self::Hadamard => 2,
            Self::Learned(network) => network.places,
        }
    }
}

/// A learned synthesis (§9.3): a matrix, and up to two hidden layers whose output is added to what the matrix gives.
///
/// A view of its stored form, which was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network<'a> {
    places: u32,
    stored: &'a [u8],
}

/// The most hidden layers.
const MAX_LAYERS: usize = 2;
/// The most units of one.
const MAX_WIDTH: usize = 64;
/// The most binary places.
const MAX_PLACES: u32 = 12;
/// The largest activation of a hidden layer.
const MAX_ACTIVATION: i32 = 127;
/// Lanes that are computed together unless the caller says otherwise: a vector of most processors, and few enough that activations fit a small stack.
const ABREAST: usize = 8;

/// A hidden layer of a [`Network`]; one without units is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkLayer<'a> {
    /// Bits that sums are shifted down by.
    pub shift: u32,
    /// An i16 for each unit, little-endian.
    pub biases: &'a [[u8; 2]],
    /// A row for each unit, one i8 for each input.
    pub weights: &'a [u8],
    /// Number of inputs.
    pub inputs: usize,
}

impl<'a> NetworkLayer<'a> {
    const NONE: Self = Self { shift: 0, biases: &[], weights: &[], inputs: 0 };

    fn read(reader: &mut Reader<'a>, inputs: usize) -> Option<Self> {
        let width = usize::from(reader.u8()?);
        let shift = u32::from(reader.u8()?);
        if !(1..=MAX_WIDTH).contains(&width) || shift > 15 {
            return None;
        }
        let (biases, _) = reader.take(width.wrapping_mul(2))?.as_chunks::<2>();
        Some(Self { shift, biases, weights: reader.take(width.wrapping_mul(inputs))?, inputs })
    }

    /// From the activations of the layer before to this one's.
    #[inline]
    fn apply<const LANES: usize>(&self, activations: &mut [[i32; LANES]; MAX_WIDTH]) {
        let before = *activations;
        let mut weights = self.weights;
        for (activation, &bias) in activations.iter_mut().zip(self.biases) {
            let Some((row, rest)) = weights.split_at_checked(self.inputs) else { return };
            weights = rest;
            let mut sums = [num::sign_extend_16(u32::from(u16::from_le_bytes(bias))); LANES];
            add_products(&mut sums, &before, row);
            *activation = sums.map(|sum| (sum >> (self.shift & 15)).clamp(0, MAX_ACTIVATION));
        }
    }
}

/// What the stored form of a [`Network`] says (§9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkParts<'a> {
    /// Binary places of its outputs.
    pub places: u32,
    /// `[output][input]`, an i8 each.
    pub matrix: &'a [[u8; CHUNK_ROWS]; CHUNK_ROWS],
    /// The hidden layers, from the inputs on; those that it lacks have no units.
    pub hidden: [NetworkLayer<'a>; MAX_LAYERS],
    /// [`CHUNK_ROWS`] rows of an i8 for each unit of the last hidden layer; empty if there is none.
    pub output: &'a [u8],
}

impl<'a> Network<'a> {
    /// Reads and checks the stored form.
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let all = reader.rest;
        let NetworkParts { places, matrix, .. } = NetworkParts::read(reader)?;
        // As Hadamard's: no latent is larger than four times the largest index.
        let gain = |row: &[u8; CHUNK_ROWS]| {
            row.iter().fold(0u32, |sum, &entry| sum.wrapping_add(num::sign_extend_8(entry).unsigned_abs()))
        };
        if places > MAX_PLACES || matrix.iter().any(|row| gain(row) > 4u32 << (places & 15)) {
            return None;
        }
        Some(Self { places, stored: all.get(..all.len().checked_sub(reader.rest.len())?)? })
    }

    /// A network from its stored form (§9.3), which it must fill; `None` if it breaks that.
    pub fn new(stored: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(stored);
        let network = Self::read(&mut reader)?;
        reader.rest.is_empty().then_some(network)
    }

    /// What it consists of.
    pub fn parts(&self) -> NetworkParts<'a> {
        // It was read before, when it was checked.
        NetworkParts::read(&mut Reader::new(self.stored)).unwrap_or(NetworkParts::NOTHING)
    }

    /// Multiplications of integers for each weight.
    pub fn multiplications(&self) -> usize {
        let NetworkParts { hidden, output, .. } = self.parts();
        let of_layers: usize = hidden.iter().map(|layer| layer.weights.len()).sum();
        CHUNK_ROWS.wrapping_add(of_layers.wrapping_add(output.len()).div_ceil(CHUNK_ROWS))
    }
}

impl<'a> NetworkParts<'a> {
    const NOTHING: Self = Self {
        places: 0,
        matrix: &[[0; CHUNK_ROWS]; CHUNK_ROWS],
        hidden: [NetworkLayer::NONE; MAX_LAYERS],
        output: &[],
    };

    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let places = u32::from(reader.u8()?);
        let (rows, _) = reader.take(CHUNK_ROWS.wrapping_mul(CHUNK_ROWS))?.as_chunks::<CHUNK_ROWS>();
        let matrix = rows.first_chunk()?;
        let layers = usize::from(reader.u8()?);
        if layers > MAX_LAYERS {
            return None;
        }
        let mut hidden = [NetworkLayer::NONE; MAX_LAYERS];
        let mut width = CHUNK_ROWS;
        for layer in hidden.iter_mut().take(layers) {
            *layer = NetworkLayer::read(reader, width)?;
            width = layer.biases.len();
        }
        let output = if layers == 0 { &[] } else { reader.take(width.wrapping_mul(CHUNK_ROWS))? };
        Some(Self { places, matrix, hidden, output })
    }

    #[inline]
    fn apply<const LANES: usize>(&self, chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS]) {
        for first in (0..MAX_LANES).step_by(LANES) {
            let mut indices = [[0; LANES]; CHUNK_ROWS];
            for (indices, latents) in indices.iter_mut().zip(chunk.iter()) {
                if let Some(lanes) = latents.get(first..).and_then(|lanes| lanes.first_chunk()) {
                    *indices = *lanes;
                }
            }
            let mut latents = [[0; LANES]; CHUNK_ROWS];
            for (latent, row) in latents.iter_mut().zip(self.matrix) {
                add_products(latent, &indices, row);
            }
            if !self.output.is_empty() {
                self.add_hidden(&indices, &mut latents);
            }
            for (row, latent) in chunk.iter_mut().zip(&latents) {
                if let Some(lanes) = row.get_mut(first..).and_then(|lanes| lanes.first_chunk_mut()) {
                    *lanes = *latent;
                }
            }
        }
    }

    /// Adds what the hidden layers make of indices to latents.
    #[inline]
    fn add_hidden<const LANES: usize>(
        &self,
        indices: &[[i32; LANES]; CHUNK_ROWS],
        latents: &mut [[i32; LANES]; CHUNK_ROWS],
    ) {
        let mut activations = [[0; LANES]; MAX_WIDTH];
        for (activation, indices) in activations.iter_mut().zip(indices) {
            *activation = indices.map(|index| index.clamp(-128, 127));
        }
        let mut width = CHUNK_ROWS;
        for layer in self.hidden.iter().filter(|layer| !layer.biases.is_empty()) {
            layer.apply(&mut activations);
            width = layer.biases.len();
        }
        let mut weights = self.output;
        for latent in latents {
            let Some((row, rest)) = weights.split_at_checked(width) else { return };
            weights = rest;
            add_products(latent, &activations, row);
        }
    }
}

/// Adds the products of inputs and weights of a row.
#[inline(always)]
fn add_products<const LANES: usize>(sums: &mut [i32; LANES], inputs: &[[i32; LANES]], weights: &[u8]) {
    for (inputs, &weight) in inputs.iter().zip(weights) {
        let weight = num::sign_extend_8(weight);
        for (sum, input) in sums.iter_mut().zip(inputs) {
            *sum = sum.wrapping_add(input.wrapping_mul(weight));
        }
    }
}

/// Four times the orthonormal transform down each lane: sums and differences at distances of 1, 2, 4 and 8 rows. Indices are below 2^17 in magnitude
/// (§9.2), so no sum of sixteen overflows.
#[inline]
fn hadamard(chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS]) {
    butterflies::<2>(chunk);
    butterflies::<4>(chunk);
    butterflies::<8>(chunk);
    butterflies::<16>(chunk);
}

/// Sums and differences of the first and the second half of each block of `ROWS` rows.
#[inline]
fn butterflies<const ROWS: usize>(chunk: &mut [[i32; MAX_LANES]; CHUNK_ROWS]) {
    let (blocks, _) = chunk.as_chunks_mut::<ROWS>();
    for block in blocks {
        let Some((first, second)) = block.split_at_mut_checked(ROWS >> 1) else { continue };
        for (first, second) in first.as_flattened_mut().iter_mut().zip(second.as_flattened_mut()) {
            (*first, *second) = (first.wrapping_add(*second), first.wrapping_sub(*second));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

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

    /// A matrix with these entries, and layers of (shift, biases, weights) with output weights behind the last.
    fn stored(
        places: u8,
        entry: impl Fn(usize, usize) -> i8,
        layers: &[(u8, &[i16], &[i8])],
        output: &[i8],
    ) -> Vec<u8> {
        let mut bytes = vec![places];
        bytes.extend((0..256).map(|at| entry(at / 16, at % 16).cast_unsigned()));
        bytes.push(layers.len() as u8);
        for (shift, biases, weights) in layers {
            bytes.extend([biases.len() as u8, *shift]);
            bytes.extend(biases.iter().flat_map(|bias| bias.to_le_bytes()));
            bytes.extend(weights.iter().map(|weight| weight.cast_unsigned()));
        }
        bytes.extend(output.iter().map(|weight| weight.cast_unsigned()));
        bytes
    }

    #[test]
    fn a_matrix_is_applied_as_it_is_written() {
        let entry = |j: usize, k: usize| ((j * 5 + k * 3) % 7) as i8 - 3;
        let bytes = stored(6, entry, &[], &[]);
        let network = Network::new(&bytes).unwrap();
        assert_eq!(
            (network.parts().places, network.parts().output, network.multiplications()),
            (6, &[][..], 16)
        );
        let before: [[i32; MAX_LANES]; CHUNK_ROWS] =
            std::array::from_fn(|r| std::array::from_fn(|lane| (r * 37 + lane * 11) as i32 % 65_536 - 900));
        let mut chunk = before;
        let synthesis = Synthesis::Learned(network);
        synthesis.apply(&mut chunk, CHUNK_ROWS);
        assert_eq!(synthesis.fraction_bits(), 6);
        for (j, row) in chunk.iter().enumerate() {
            for (lane, &latent) in row.iter().enumerate() {
                let sum: i32 =
                    before.iter().enumerate().map(|(k, row)| i32::from(entry(j, k)) * row[lane]).sum();
                assert_eq!(latent, sum, "row {j}, lane {lane}");
            }
        }
        let mut partial = before;
        synthesis.apply(&mut partial, 15);
        assert_eq!(partial[..15], before.map(|row| row.map(|index| index << 6))[..15]);
    }

    #[test]
    fn hidden_layers_round_down_and_saturate() {
        // One unit sums the first two indices, the next layer's takes it and its negative; they go to rows 0 and 1.
        let mut first = [0i8; 16];
        (first[0], first[1]) = (100, 100);
        let bytes = stored(0, |_, _| 0, &[(3, &[5], &first), (1, &[0, 9], &[2, -1])], &{
            let mut output = [0i8; 32];
            (output[0], output[3]) = (1, -128);
            output
        });
        let network = Network::new(&bytes).unwrap();
        assert_eq!(network.multiplications(), 16 + usize::div_ceil(16 + 2 + 32, 16));
        for (a, b) in
            [(0, 0), (1, 0), (1, 1), (-1, 0), (3, 4), (5, 5), (200, -128), (-70_000, 127), (1_000, 0)]
        {
            let mut chunk = [[0; MAX_LANES]; CHUNK_ROWS];
            (chunk[0], chunk[1]) = ([a; MAX_LANES], [b; MAX_LANES]);
            Synthesis::Learned(network).apply(&mut chunk, CHUNK_ROWS);
            let (a, b): (i32, i32) = (a.clamp(-128, 127), b.clamp(-128, 127));
            let unit = ((5 + 100 * a + 100 * b).div_euclid(8)).clamp(0, 127);
            let next = [(2 * unit).div_euclid(2).clamp(0, 127), (9 - unit).div_euclid(2).clamp(0, 127)];
            assert_eq!([chunk[0][7], chunk[1][31], chunk[2][0]], [next[0], -128 * next[1], 0], "{a}, {b}");
        }
    }

    #[test]
    fn what_is_no_network_is_none() {
        let fine = stored(6, |j, k| if j == k { 64 } else { 0 }, &[(0, &[0], &[1; 16])], &[1; 16]);
        assert!(Network::new(&fine).is_some());
        for cut in 0..fine.len() {
            assert!(Network::new(&fine[..cut]).is_none(), "{cut} bytes");
        }
        let changed = |at: usize, to: u8| {
            let mut bytes = fine.clone();
            bytes[at] = to;
            Network::new(&bytes).is_some()
        };
        let layers = 1 + 256;
        assert!(changed(0, 12) && !changed(0, 13), "binary places");
        assert!(!changed(0, 3) && changed(0, 4), "a matrix with a gain above 4");
        assert!(!changed(layers, 0) && !changed(layers, 2) && !changed(layers, 3), "layers");
        assert!(!changed(layers + 1, 0) && !changed(layers + 1, 65), "width");
        assert!(changed(layers + 2, 15) && !changed(layers + 2, 16), "shift");
        assert!(Network::new(&[&fine[..], &[0]].concat()).is_none(), "a byte more");
    }
}

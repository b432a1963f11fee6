//! Transforms on tensor cores: the chunks of a warp's lanes are a matrix of bytes, which a network's layers multiply one after the other. The Hadamard transform is a network too.
//!
//! What one product gives a thread are the very numbers that it needs for the next, so nothing is moved between layers; and what the last one gives it are neighbours in two rows.

use super::intrinsics::{
    load_matrices, load_shared, load_shared_4, multiply_add_bytes_16, multiply_add_columns,
    multiply_add_rows, pack_bytes, store_shared_4, store_shared_f32, sync_warp,
};
use super::item::LAYER;
use crate::lane::{Bytes, by_rows, rows};
use crate::layout::{CHUNK, LANES, synthesis};
use crate::network::{BIASES, FRAGMENT, HEAD, Parts, SECOND, places, row_of};

/// Words from a lane's eight latents to the next lane's, and as many again from eight lanes to the next, so that what threads write at a time goes to different banks.
const EIGHT: usize = 8;

/// Bytes of shared memory that a warp needs.
pub(crate) const SCRATCH: usize = (LANES + LANES / 8 - 1) * EIGHT * 4;

/// A product of [16, 8] as a thread has it, thread 4g + t: of rows g and g + 8 the columns 2t and 2t + 1.
type Sums = [i32; 4];

/// The latents of a chunk of all lanes: product n has, in columns 2q and 2q + 1, the lanes 8q + 2n and 8q + 2n + 1. So thread 4g + t has eight neighbours, 8t to 8t + 7, of rows g and g + 8:
/// [`Neighbours`].
///
/// All such arrays are written out, so that they lie in registers.
pub(crate) type Latents = [Sums; 4];

/// Eight neighbours of a row, and those of the row eight below.
pub(crate) type Neighbours<T> = [[T; 8]; 2];

/// Latents by rows.
#[inline(always)]
pub(crate) const fn neighbours([a, b, c, d]: Latents) -> Neighbours<i32> {
    [[a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]], [a[2], a[3], b[2], b[3], c[2], c[3], d[2], d[3]]]
}

/// Binary places of activations, and of what comes of them.
const HIDDEN_PLACES: u32 = places(1, 0);

/// A block of activations as two halves of the lanes are multiplied.
type Active = [[u32; 4]; 2];

/// The matrix of a transform, as a thread multiplies by it.
pub(crate) type Matrix = [u32; 2];

/// A network in shared memory; `TRANSFORM` says whether it may have hidden layers.
#[derive(Clone, Copy)]
pub(crate) struct Network<const TRANSFORM: u32> {
    at: u32,
    scratch: u32,
    lane: u32,
    matrix: Matrix,
    parts: Parts,
    /// Binary places of the tensor's indices in bytes.
    unit: u32,
}

/// The matrix of a synthesis, which a thread keeps from chunk to chunk; of one that is learned it is at an address.
///
/// # Safety
/// It is there.
#[inline(always)]
pub(crate) unsafe fn matrix(synthesis: u32, at: u32, lane: u32) -> Matrix {
    if synthesis >= synthesis::LINEAR {
        let at = at + 4 * (HEAD + lane);
        // SAFETY: by the caller.
        return unsafe { [load_shared(at), load_shared(at + 4 * FRAGMENT)] };
    }
    // Row j of the Hadamard transform has input k with the sign of the parity of j & k.
    [lane / 4, lane / 4 + 8].map(|unit| {
        let sign = |input: u32| {
            let row = row_of((lane % 4 * 4 + input) as usize) as u32;
            if (unit & row).count_ones() % 2 == 0 { 0x01 << (8 * input) } else { 0xFF << (8 * input) }
        };
        sign(0) | sign(1) | sign(2) | sign(3)
    })
}

impl<const TRANSFORM: u32> Network<TRANSFORM> {
    /// A synthesis with this matrix, whose network, if it is learned, is at an address, of indices that are times 2^`unit` in bytes; `scratch` is [`SCRATCH`] bytes of the warp, at a multiple of 16.
    ///
    /// # Safety
    /// The network is there.
    #[inline(always)]
    pub(crate) unsafe fn new(
        synthesis: u32,
        matrix: Matrix,
        at: u32,
        unit: u32,
        scratch: u32,
        lane: u32,
    ) -> Self {
        let hidden = TRANSFORM >= LAYER && synthesis >= synthesis::LAYER;
        // SAFETY: by the caller.
        let parts = Parts::new(if hidden { unsafe { load_shared(at) } } else { 0 });
        Self { at: at + 4 * HEAD, scratch, lane, matrix, parts, unit }
    }

    /// The binary places that [`of_bytes`](Self::of_bytes) gives.
    #[inline(always)]
    pub(crate) const fn places(&self) -> u32 {
        if TRANSFORM >= LAYER { HIDDEN_PLACES } else { self.unit }
    }

    /// Whether [`of_bytes`](Self::of_bytes) can be asked: what hidden layers give has a binary place, and so must have what the matrix gives.
    #[inline(always)]
    pub(crate) const fn takes_bytes(&self) -> bool {
        TRANSFORM < LAYER || self.unit >= HIDDEN_PLACES
    }

    /// The latents of chunks that [are bytes](Self::takes_bytes): with [`places`](Self::places), and `zero` added. They are below 2^22 in magnitude.
    ///
    /// # Safety
    /// All threads of the warp come, to scratch that is theirs.
    #[inline(always)]
    pub(crate) unsafe fn of_bytes(&self, bytes: Bytes, zero: i32) -> Latents {
        // SAFETY: by the caller.
        unsafe {
            let inputs = self.share(bytes);
            if TRANSFORM < LAYER {
                return self.linear([[zero; 4]; 4], inputs);
            }
            let sums = if self.unit > HIDDEN_PLACES {
                let sums = self.linear([[0; 4]; 4], inputs);
                sums.map(|sums| sums.map(|sum| (sum >> (self.unit - HIDDEN_PLACES)) + zero))
            } else {
                self.linear([[zero; 4]; 4], inputs)
            };
            self.add_hidden::<false>(sums, inputs)
        }
    }

    /// The latents of the thread's own chunk, given as bytes.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn of_lane(&self, bytes: Bytes) -> [i32; CHUNK] {
        // SAFETY: by the caller.
        unsafe {
            if !self.takes_bytes() {
                return self.of_indices(by_rows(bytes, 4 - self.unit));
            }
            let latents = self.to_lanes(self.of_bytes(bytes, 0));
            rows!(ROW => latents[ROW] >> self.places())
        }
    }

    /// The same of any indices.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn of_indices(&self, indices: [i32; CHUNK]) -> [i32; CHUNK] {
        // An index is its three signed digits to the base of 256.
        let middle = rows!(ROW => (indices[ROW] + 0x80) >> 8);
        let high = rows!(ROW => (middle[ROW] + 0x80) >> 8);
        let up = |latents: Latents| latents.map(|sums| sums.map(|sum| sum << 8));
        // SAFETY: by the caller.
        unsafe {
            let mut sums = [[0; 4]; 4];
            if TRANSFORM >= LAYER {
                let inputs = self.share(low_bytes(rows!(ROW => indices[ROW].clamp(-128, 127))));
                sums = self.add_hidden::<true>(sums, inputs);
            }
            let hidden = sums.map(|sums| sums.map(|sum| sum >> HIDDEN_PLACES));
            let sums = self.linear([[0; 4]; 4], self.share(low_bytes(high)));
            let sums = self.linear(up(sums), self.share(low_bytes(middle)));
            let [a, b, c, d] = self.linear(up(sums), self.share(low_bytes(indices)));
            let add = |[a, b, c, d]: Sums, [e, f, g, h]: Sums| [a + e, b + f, c + g, d + h];
            self.to_lanes([add(a, hidden[0]), add(b, hidden[1]), add(c, hidden[2]), add(d, hidden[3])])
        }
    }

    /// Gives threads their part of all lanes' bytes: in word n of thread 4g + t, word t of the lane that is column g of product n.
    #[inline(always)]
    unsafe fn share(&self, bytes: Bytes) -> [u32; 4] {
        let (product, column) = (self.lane / 8, self.lane % 8);
        let from = 8 * (column / 2) + 2 * product + column % 2;
        sync_warp();
        // SAFETY: by the caller.
        unsafe { store_shared_4(self.scratch + Self::place(self.lane), bytes) };
        sync_warp();
        // SAFETY: by the caller.
        unsafe { load_matrices::<false>(self.scratch + Self::place(from)) }
    }

    /// Where a lane's bytes lie while they are shared: so that neither the eight that are written at a time nor the eight of a product meet in a bank.
    #[inline(always)]
    const fn place(lane: u32) -> u32 {
        (lane / 8 * 8 + (lane + lane / 8 * 2) % 8) * 16
    }

    /// The thread's word of fragment `number` of those at a place.
    #[inline(always)]
    unsafe fn fragment(&self, place: u32, number: u32) -> u32 {
        // SAFETY: by the caller.
        unsafe { load_shared(self.at + 4 * (place + number * FRAGMENT + self.lane)) }
    }

    /// Products of a chunk with the weights of eight units, and their biases, which `CAREFUL` inputs, not being in bytes as others, need as they are.
    #[inline(always)]
    unsafe fn inputs<const CAREFUL: bool>(
        &self,
        [a, b, c, d]: [u32; 4],
        place: u32,
        eight: u32,
    ) -> [Sums; 2] {
        // SAFETY: by the caller.
        let (weights, biases) = unsafe { (self.fragment(place + BIASES, eight), self.biases(place, eight)) };
        let biases = if CAREFUL { biases.map(|bias| bias >> self.unit) } else { biases };
        [multiply_add_bytes_16(biases, [a, b], [weights]), multiply_add_bytes_16(biases, [c, d], [weights])]
    }

    /// Adds products of a block of activations with the weights of eight units.
    #[inline(always)]
    unsafe fn add_active(&self, [low, high]: [Sums; 2], active: Active, place: u32, eight: u32) -> [Sums; 2] {
        // SAFETY: by the caller.
        let weights = unsafe { [self.fragment(place, 2 * eight), self.fragment(place, 2 * eight + 1)] };
        [multiply_add_rows(low, active[0], weights), multiply_add_rows(high, active[1], weights)]
    }

    /// Adds what the matrix gives.
    #[inline(always)]
    fn linear(&self, [a, b, c, d]: Latents, inputs: [u32; 4]) -> Latents {
        let add = |sums: Sums, input: u32| multiply_add_bytes_16(sums, self.matrix, [input]);
        [add(a, inputs[0]), add(b, inputs[1]), add(c, inputs[2]), add(d, inputs[3])]
    }

    /// Adds what the hidden layers make of the inputs, with [`HIDDEN_PLACES`].
    #[inline(always)]
    unsafe fn add_hidden<const CAREFUL: bool>(&self, mut sums: Latents, inputs: [u32; 4]) -> Latents {
        let Parts { blocks, .. } = self.parts;
        // SAFETY: by the caller.
        unsafe {
            if TRANSFORM == LAYER || blocks[1] == 0 {
                let mut block = 0;
                while block < blocks[0] {
                    sums = self.add_output(sums, block, self.first::<CAREFUL>(block, inputs));
                    block += 1;
                }
                return sums;
            }
            let before = [
                self.first::<CAREFUL>(0, inputs),
                if blocks[0] > 1 { self.first::<CAREFUL>(1, inputs) } else { [[0; 4]; 2] },
            ];
            let mut block = 0;
            while block < blocks[1] {
                sums = self.add_output(sums, block, self.second(block, before));
                block += 1;
            }
            sums
        }
    }

    /// The activations of a block of the first layer.
    #[inline(always)]
    unsafe fn first<const CAREFUL: bool>(&self, block: u32, inputs: [u32; 4]) -> Active {
        let place = self.parts.first(block);
        let [shift, _] = self.parts.shifts;
        // SAFETY: by the caller.
        let eight = |eight: u32| unsafe {
            let sums = self.inputs::<CAREFUL>(inputs, place, eight);
            // Without places of their own sums get that of the activations.
            if CAREFUL {
                shifted(sums.map(|sums| sums.map(|sum| sum << HIDDEN_PLACES)), shift)
            } else {
                shifted(sums, shift + self.unit - HIDDEN_PLACES)
            }
        };
        activate([eight(0), eight(1), eight(2), eight(3)])
    }

    /// The activations of a block of the second layer.
    #[inline(always)]
    unsafe fn second(&self, block: u32, before: [Active; 2]) -> Active {
        let place = self.parts.second(block);
        let weights = place + BIASES;
        // SAFETY: by the caller.
        let eight = |eight: u32| unsafe {
            let biases = self.biases(place, eight);
            let mut sums = self.add_active([biases, biases], before[0], weights, eight);
            if self.parts.blocks[0] > 1 {
                sums = self.add_active(sums, before[1], weights + SECOND, eight);
            }
            shifted(sums, self.parts.shifts[1])
        };
        activate([eight(0), eight(1), eight(2), eight(3)])
    }

    /// Adds what a block of the last layer gives.
    #[inline(always)]
    unsafe fn add_output(&self, [a, b, c, d]: Latents, block: u32, [low, high]: Active) -> Latents {
        let place = self.parts.output(block);
        // SAFETY: by the caller.
        let weights = unsafe { [0, 2, 1, 3].map(|number| self.fragment(place, number)) };
        let add = |sums: Sums, first: u32, second: u32| multiply_add_columns(sums, weights, [first, second]);
        [add(a, low[0], low[2]), add(b, low[1], low[3]), add(c, high[0], high[2]), add(d, high[1], high[3])]
    }

    /// The biases of eight units of a block at a place, for a thread's two lanes.
    #[inline(always)]
    unsafe fn biases(&self, place: u32, eight: u32) -> Sums {
        let at = self.at + 4 * (place + eight * 16 + self.lane % 4 * 4);
        // SAFETY: by the caller.
        unsafe { load_shared_4(at) }.map(|bias| bias.to_bits().cast_signed())
    }

    /// Gives every thread the latents of its own lane.
    #[inline(always)]
    unsafe fn to_lanes(&self, latents: Latents) -> [i32; CHUNK] {
        let [low, high] = neighbours(latents);
        // SAFETY: by the caller.
        let [low, high] = unsafe { [self.eight_to_lanes(low), self.eight_to_lanes(high)] };
        sync_warp(); // the scratch is somebody else's now
        rows!(ROW => (if ROW < 8 { low[ROW / 4] } else { high[ROW / 4 - 2] })[ROW % 4].to_bits().cast_signed())
    }

    /// The same of eight rows, one of which each thread has for eight lanes.
    #[inline(always)]
    unsafe fn eight_to_lanes(&self, latents: [i32; 8]) -> [[f32; 4]; 2] {
        const WORD: u32 = 4;
        let line = EIGHT as u32 * WORD;
        let to = self.scratch + self.lane % 4 * 9 * line + self.lane / 4 * WORD;
        let from = self.scratch + (self.lane + self.lane / 8) * line;
        // SAFETY: by the caller.
        let put = |lane: usize| unsafe {
            store_shared_f32(to + lane as u32 * line, f32::from_bits(latents[lane].cast_unsigned()));
        };
        sync_warp();
        (put(0), put(1), put(2), put(3), put(4), put(5), put(6), put(7));
        sync_warp();
        // SAFETY: by the caller.
        unsafe { [load_shared_4(from), load_shared_4(from + 4 * WORD)] }
    }
}

/// Sums of eight units, of two lanes of each half of the lanes, as they are activated.
type Shifted = [[[i32; 2]; 2]; 2];

/// The sums of eight units, shifted.
#[inline(always)]
fn shifted([low, high]: [Sums; 2], shift: u32) -> Shifted {
    let half = |[a, b, c, d]: Sums| [[a >> shift, b >> shift], [c >> shift, d >> shift]];
    [half(low), half(high)]
}

/// A block of activations of the shifted sums of its eights, which have a binary place: a byte's range, and its last bit away, are 0 to 127 with such a place. A word for sixteen units, the first eight's in its lower half.
#[inline(always)]
fn activate([a, b, c, d]: [Shifted; 4]) -> Active {
    let half = |half: usize| {
        let word = |low: Shifted, high: Shifted, lane: usize| {
            let bytes = pack_bytes(pack_bytes(0, high[half][lane]), low[half][lane]);
            bytes & 0xFEFE_FEFE
        };
        [word(a, b, 0), word(a, b, 1), word(c, d, 0), word(c, d, 1)]
    };
    [half(0), half(1)]
}

/// The low bytes of a chunk's numbers, as a chunk's bytes lie.
#[inline(always)]
fn low_bytes(numbers: [i32; CHUNK]) -> Bytes {
    let byte = |row: usize, place: u32| (numbers[row].cast_unsigned() & 0xFF) << place;
    let word =
        |group: usize| byte(group, 0) | byte(group + 4, 8) | byte(group + 8, 16) | byte(group + 12, 24);
    [word(0), word(1), word(2), word(3)]
}

//! Learned syntheses on tensor cores: the chunks of a warp's lanes are a matrix of bytes, which a network's layers multiply one after the other.
//!
//! What one product gives a thread are the very numbers that it needs for the next, so nothing is moved between layers.

use super::intrinsics::{
    load_matrices, load_shared, load_shared_2, load_shared_4, multiply_add_bytes, multiply_add_bytes_16,
    store_shared_2, store_shared_4, sync_warp,
};
use super::item::LAYERS;
use crate::lane::{Bytes, rows};
use crate::layout::CHUNK;
use crate::network::{BIASES, FRAGMENT, HEAD, Parts, SECOND};

/// Bytes of shared memory that a warp needs.
pub(crate) const SCRATCH: usize = 16 * CHUNK * 4;

/// What a thread has of a product of all lanes' chunks with eight units: of lanes u and u + 8 of half the lanes, units 2t and 2t + 1, in thread 4u + t.
type Sums = [i32; 4];

/// The same of sixteen units: of each eight the two halves of the lanes. All such arrays are written out, so that they lie in registers.
type Latents = [[Sums; 2]; 2];

/// A block of activations as two halves of the lanes are multiplied.
type Active = [[u32; 4]; 2];

/// A network in shared memory; `TRANSFORM` says whether it may have hidden layers.
#[derive(Clone, Copy)]
pub(crate) struct Network<const TRANSFORM: u32> {
    at: u32,
    scratch: u32,
    lane: u32,
    parts: Parts,
}

impl<const TRANSFORM: u32> Network<TRANSFORM> {
    /// The network at an address; `scratch` is [`SCRATCH`] bytes of the warp, at a multiple of 16.
    ///
    /// # Safety
    /// There is a network.
    #[inline(always)]
    pub(crate) unsafe fn new(at: u32, scratch: u32, lane: u32) -> Self {
        // SAFETY: by the caller.
        let parts = Parts::new(if TRANSFORM == LAYERS { unsafe { load_shared(at) } } else { 0 });
        Self { at: at + 4 * HEAD, scratch, lane, parts }
    }

    /// The latents of the thread's chunk, whose indices are bytes, times 2^`unit`.
    ///
    /// # Safety
    /// All threads of the warp come, with a network that is there, to scratch that is theirs.
    #[inline(always)]
    pub(crate) unsafe fn of_bytes(&self, bytes: Bytes, unit: u32) -> [i32; CHUNK] {
        // SAFETY: by the caller.
        unsafe {
            let inputs = self.share(bytes);
            let [[a, b], [c, d]] = self.linear([[[0; 4]; 2]; 2], inputs);
            let halved = |sums: Sums| sums.map(|sum| sum >> unit);
            let linear = [[halved(a), halved(b)], [halved(c), halved(d)]];
            self.to_lanes(if TRANSFORM == LAYERS { self.add_hidden(linear, inputs, unit) } else { linear })
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
        let up = |latents: Latents| latents.map(|halves| halves.map(|sums| sums.map(|sum| sum << 8)));
        // SAFETY: by the caller.
        unsafe {
            let sums = self.linear([[[0; 4]; 2]; 2], self.share(low_bytes(high)));
            let sums = self.linear(up(sums), self.share(low_bytes(middle)));
            let sums = self.linear(up(sums), self.share(low_bytes(indices)));
            self.to_lanes(if TRANSFORM == LAYERS {
                let inputs = self.share(low_bytes(rows!(ROW => indices[ROW].clamp(-128, 127))));
                self.add_hidden(sums, inputs, 0)
            } else {
                sums
            })
        }
    }

    /// Gives threads their part of all lanes' bytes: of lanes u, u + 8, u + 16 and u + 24, word t, in thread 4u + t.
    #[inline(always)]
    unsafe fn share(&self, bytes: Bytes) -> [u32; 4] {
        let at = self.scratch + self.lane * 16;
        sync_warp();
        // SAFETY: by the caller.
        unsafe { store_shared_4(at, bytes) };
        sync_warp();
        // SAFETY: by the caller.
        unsafe { load_matrices::<false>(at) }
    }

    /// The thread's word of fragment `number` of those at a place.
    #[inline(always)]
    unsafe fn fragment(&self, place: u32, number: u32) -> u32 {
        // SAFETY: by the caller.
        unsafe { load_shared(self.at + 4 * (place + number * FRAGMENT + self.lane)) }
    }

    /// Adds products of a chunk with the weights of eight units.
    #[inline(always)]
    unsafe fn add_inputs(
        &self,
        [low, high]: [Sums; 2],
        [a, b, c, d]: [u32; 4],
        place: u32,
        eight: u32,
    ) -> [Sums; 2] {
        // SAFETY: by the caller.
        let weights = unsafe { self.fragment(place, eight) };
        [multiply_add_bytes_16(low, [a, b], weights), multiply_add_bytes_16(high, [c, d], weights)]
    }

    /// Adds products of a block of activations with the weights of eight units.
    #[inline(always)]
    unsafe fn add_active(&self, [low, high]: [Sums; 2], active: Active, place: u32, eight: u32) -> [Sums; 2] {
        // SAFETY: by the caller.
        let weights = unsafe { [self.fragment(place, 2 * eight), self.fragment(place, 2 * eight + 1)] };
        [multiply_add_bytes(low, active[0], weights), multiply_add_bytes(high, active[1], weights)]
    }

    /// Adds what the matrix gives.
    #[inline(always)]
    unsafe fn linear(&self, [low, high]: Latents, inputs: [u32; 4]) -> Latents {
        // SAFETY: by the caller.
        unsafe { [self.add_inputs(low, inputs, 0, 0), self.add_inputs(high, inputs, 0, 1)] }
    }

    /// Adds what the hidden layers make of the inputs, which are indices times 2^`unit`.
    #[inline(always)]
    unsafe fn add_hidden(&self, mut sums: Latents, inputs: [u32; 4], unit: u32) -> Latents {
        let Parts { blocks, .. } = self.parts;
        // SAFETY: by the caller.
        unsafe {
            if blocks[1] == 0 {
                let mut block = 0;
                while block < blocks[0] {
                    sums = self.add_output(sums, block, self.first(block, inputs, unit));
                    block += 1;
                }
                return sums;
            }
            let before = [
                self.first(0, inputs, unit),
                if blocks[0] > 1 { self.first(1, inputs, unit) } else { [[0; 4]; 2] },
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
    unsafe fn first(&self, block: u32, inputs: [u32; 4], unit: u32) -> Active {
        let place = self.parts.first(block);
        let shift = self.parts.shifts[0] + unit;
        // SAFETY: by the caller.
        let eight = |eight: u32| unsafe {
            let sums = self.add_inputs(self.biases(place, eight, unit), inputs, place + BIASES, eight);
            activate(sums, shift)
        };
        join([eight(0), eight(1), eight(2), eight(3)])
    }

    /// The activations of a block of the second layer.
    #[inline(always)]
    unsafe fn second(&self, block: u32, before: [Active; 2]) -> Active {
        let place = self.parts.second(block);
        let weights = place + BIASES;
        // SAFETY: by the caller.
        let eight = |eight: u32| unsafe {
            let mut sums = self.add_active(self.biases(place, eight, 0), before[0], weights, eight);
            if self.parts.blocks[0] > 1 {
                sums = self.add_active(sums, before[1], weights + SECOND, eight);
            }
            activate(sums, self.parts.shifts[1])
        };
        join([eight(0), eight(1), eight(2), eight(3)])
    }

    /// Adds what a block of the last layer gives.
    #[inline(always)]
    unsafe fn add_output(&self, [low, high]: Latents, block: u32, active: Active) -> Latents {
        let place = self.parts.output(block);
        // SAFETY: by the caller.
        unsafe { [self.add_active(low, active, place, 0), self.add_active(high, active, place, 1)] }
    }

    /// The biases of eight units of a block at a place, times 2^`unit`.
    #[inline(always)]
    unsafe fn biases(&self, place: u32, eight: u32, unit: u32) -> [Sums; 2] {
        let at = self.at + 4 * (place + eight * 8 + self.lane % 4 * 2);
        // SAFETY: by the caller.
        let biases = unsafe { load_shared_2(at) }.map(|bias| bias.to_bits().cast_signed() << unit);
        let of_lane = [biases[0], biases[1], biases[0], biases[1]];
        [of_lane, of_lane]
    }

    /// Gives every thread the sums of its own lane.
    #[inline(always)]
    unsafe fn to_lanes(&self, [[a, b], [c, d]]: Latents) -> [i32; CHUNK] {
        // SAFETY: by the caller.
        unsafe {
            let low = self.to_half([a, c]);
            let high = self.to_half([b, d]);
            sync_warp(); // the scratch is somebody else's now
            let upper = self.lane >= 16;
            let row = |row: usize| if upper { high[row / 4][row % 4] } else { low[row / 4][row % 4] };
            rows!(ROW => row(ROW).to_bits().cast_signed())
        }
    }

    /// The sums of half the lanes, in the order of rows; threads of the other half get the same.
    #[inline(always)]
    unsafe fn to_half(&self, [low, high]: [Sums; 2]) -> [[f32; 4]; 4] {
        let (column, row) = (self.lane / 4, self.lane % 4 * 2);
        let bits = |sum: i32| f32::from_bits(sum.cast_unsigned());
        sync_warp();
        // SAFETY: by the caller.
        unsafe {
            store_shared_2(self.scratch + Self::place(column, row), [bits(low[0]), bits(low[1])]);
            store_shared_2(self.scratch + Self::place(column + 8, row), [bits(low[2]), bits(low[3])]);
            store_shared_2(self.scratch + Self::place(column, row + 8), [bits(high[0]), bits(high[1])]);
            store_shared_2(self.scratch + Self::place(column + 8, row + 8), [bits(high[2]), bits(high[3])]);
        }
        sync_warp();
        // SAFETY: by the caller.
        let four = |four: u32| unsafe { load_shared_4(self.scratch + Self::place(self.lane % 16, 4 * four)) };
        [four(0), four(1), four(2), four(3)]
    }

    /// Where a row of a column lies while sums are moved, in bytes: so that neighbours meet in no bank.
    #[inline(always)]
    const fn place(column: u32, row: u32) -> u32 {
        (column * 16 + (row ^ (column & 2) << 2 ^ (column & 4))) * 4
    }
}

/// The activations of eight units: of both lanes of a half two bytes.
#[inline(always)]
fn activate([low, high]: [Sums; 2], shift: u32) -> [[u32; 2]; 2] {
    let half = |sums: Sums| {
        let [a, b, c, d] = sums.map(|sum| (sum >> shift).clamp(0, 127).cast_unsigned());
        [a | b << 8, c | d << 8]
    };
    [half(low), half(high)]
}

/// A block of activations of those of its eights: a word for sixteen units, the first eight's in its lower half.
#[inline(always)]
fn join([a, b, c, d]: [[[u32; 2]; 2]; 4]) -> Active {
    let half = |half: usize| {
        let word =
            |low: [[u32; 2]; 2], high: [[u32; 2]; 2], lane: usize| low[half][lane] | high[half][lane] << 16;
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

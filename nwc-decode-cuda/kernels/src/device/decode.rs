//! Decoding to memory, as F32, F16 or BF16.

use nwc_decode_core::DType;

use super::block::Block;
use super::intrinsics::{
    MOST_BF16, MOST_F16, block, bytes_to_f32, commit_and_wait, load_matrices, pack_bf16, pack_f16,
    store_global, store_global_4, store_global_16, store_shared_4, sync_block, sync_warp,
};
use super::item::{LAYER, LAYERS, LINEAR, NONE, Place, Sink, Walk, decode, weights};
use super::network::{Neighbours, Network, neighbours};
use crate::lane::{Bytes, rows, unit_bits};
use crate::layout::{self, BlockRecord, CHUNK, LANES, TILE_BYTES, flag};

/// Kernels for tensors without transforms, without hidden layers, with one, and for all.
macro_rules! kernels {
    ($($name:ident: $transform:expr;)*) => {$(
        /// Decodes items into tensors in the memory of the device. The grid has a block for each of `blocks`; each block has a multiple of 32 threads, and for each
        /// warp [`layout::AHEAD_BYTES`] and [`layout::DECODE_WARP_BYTES`] of shared memory, and the tables of its tensor. A block has a warp for each of its items.
        ///
        /// `outputs` has the tensors' addresses, `dtype` is the code of their type, `status` takes an error code, or 0, for each item of the image. Transforms take
        /// registers, so there are kernels of their own for them.
        ///
        /// # Safety
        /// `image` is an image; every block names items of one of its tensors, whose synthesis the kernel knows; an output has as many elements of the type as its tensor
        /// has weights.
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name(
            image: *const u8,
            blocks: *const BlockRecord,
            outputs: *const *mut u8,
            dtype: u32,
            status: *mut u32,
        ) {
            // SAFETY: by the caller.
            unsafe { decode_block::<{ $transform }>(image, blocks, outputs, dtype, status) }
        }
    )*};
}

kernels! {
    nwc_decode: NONE;
    nwc_decode_linear: LINEAR;
    nwc_decode_layer: LAYER;
    nwc_decode_layers: LAYERS;
}

#[inline(always)]
unsafe fn decode_block<const TRANSFORM: u32>(
    image: *const u8,
    blocks: *const BlockRecord,
    outputs: *const *mut u8,
    dtype: u32,
    status: *mut u32,
) {
    // SAFETY: by the caller.
    unsafe {
        let record = blocks.add(block() as usize).read();
        let block = Block::enter(image, record, Block::warps() * WARP_BYTES);
        let output = outputs.add(block.record.output as usize).read();
        let number = Block::warp();
        let place = block.place(number.min(block.record.items - 1));
        let walk = Walk::new(&place, true);
        let tile = block.own + number * WARP_BYTES;
        let mut writer = Writer::new(&place, place.column_scale(), output, dtype, tile);
        commit_and_wait::<0>();
        sync_block();
        if number < block.record.items {
            let code = decode::<TRANSFORM>(&place, walk, false, &mut writer);
            block.report(status, number, &place, code);
        }
    }
}

/// Bytes of shared memory of a warp.
const WARP_BYTES: u32 = layout::DECODE_WARP_BYTES as u32;

/// A type that weights are written as.
trait Format {
    const BYTES: usize;
    /// The largest finite number, to which larger ones are cut (docs/bitstream.md §10.4).
    const MAX: f32;
    /// Words that a chunk of a column takes.
    type Words: AsRef<[u32]>;

    fn pack(values: [f32; CHUNK]) -> Self::Words;

    /// Writes number `row` of a chunk.
    ///
    /// # Safety
    /// It has its place there.
    unsafe fn write(out: *mut u8, words: &Self::Words, row: usize);
}

enum F32 {}
enum F16 {}
enum Bf16 {}

impl Format for F32 {
    const BYTES: usize = 4;
    const MAX: f32 = f32::MAX;
    type Words = [u32; CHUNK];

    #[inline(always)]
    fn pack(values: [f32; CHUNK]) -> Self::Words {
        rows!(ROW => values[ROW].to_bits())
    }

    #[inline(always)]
    unsafe fn write(out: *mut u8, words: &Self::Words, row: usize) {
        // SAFETY: by the caller.
        unsafe { store_global(out, words[row]) }
    }
}

/// Two numbers of 16 bits in a word.
trait Half {
    const MAX: f32;
    fn pair(low: f32, high: f32) -> u32;
}

impl Half for F16 {
    const MAX: f32 = MOST_F16;

    #[inline(always)]
    fn pair(low: f32, high: f32) -> u32 {
        pack_f16(low, high)
    }
}

impl Half for Bf16 {
    const MAX: f32 = MOST_BF16;

    #[inline(always)]
    fn pair(low: f32, high: f32) -> u32 {
        pack_bf16(low, high)
    }
}

impl<T: Half> Format for T {
    const BYTES: usize = 2;
    const MAX: f32 = <T as Half>::MAX;
    type Words = [u32; CHUNK / 2];

    #[inline(always)]
    fn pack(values: [f32; CHUNK]) -> Self::Words {
        let pair = |i: usize| T::pair(values[2 * i], values[2 * i + 1]);
        [pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)]
    }

    #[inline(always)]
    unsafe fn write(out: *mut u8, words: &Self::Words, row: usize) {
        // SAFETY: by the caller.
        unsafe { store_global_16(out, (words[row / 2] >> (row % 2 * 16)) as u16) }
    }
}

/// Writes the weights of a lane.
struct Writer {
    /// Where the weight of the item's first row goes.
    out: *mut u8,
    /// Bytes from a row's weight to the next row's.
    stride: usize,
    /// The column's scale.
    scale: f32,
    /// Where the scales of the eight neighbours are that the thread has if it writes whole rows.
    column_scales: *const u8,
    /// Where they go in the item's first rows: in row g for thread 4g + t.
    two_rows: *mut u8,
    /// The code of the output's type.
    dtype: u32,
    /// True if the scales of all columns are 1.
    plain: bool,
    /// False for lanes beside the matrix.
    active: bool,
    along: Along,
    /// Shared memory of the warp for a chunk.
    tile: u32,
}

/// How a lane's weights lie in the tensor.
#[derive(Clone, Copy, PartialEq)]
enum Along {
    /// Anyhow: they are written one by one.
    Nothing,
    /// Those of a chunk one behind the other, at multiples of 16 bytes.
    Lanes,
    /// Beside those of the other lanes, whose rows begin at multiples of 16 bytes, and the type has 16 bits.
    Rows,
}

impl Writer {
    #[inline(always)]
    fn new(place: &Place, scale: f32, output: *mut u8, dtype: u32, tile: u32) -> Self {
        let (tensor, item) = (&place.tensor, &place.item);
        let row = item.first_row as usize;
        let col = (item.first_column + place.lane) as usize;
        let input = tensor.input as usize;
        let matrix = item.matrix as usize * tensor.out as usize * input;
        let transposed = tensor.transposed != 0;
        let (at, stride) = if transposed { (col * input + row, 1) } else { (row * input + col, input) };
        let bytes = if dtype == DType::F32 as u32 { F32::BYTES } else { F16::BYTES };
        let out = output.wrapping_add((matrix + at) * bytes);
        let whole = item.columns_here as usize == LANES && input * bytes % 16 == 0;
        let warp_out = out.wrapping_sub(place.lane as usize * bytes);
        let along = if transposed && input * bytes % 16 == 0 && out.addr() % 16 == 0 {
            Along::Lanes
        } else if !transposed && whole && bytes == 2 && warp_out.addr() % 16 == 0 {
            Along::Rows
        } else {
            Along::Nothing
        };
        let eighth = (place.lane % 4) as usize;
        Self {
            out,
            stride: stride * bytes,
            scale,
            column_scales: place.image.at(item.column_scales).wrapping_add(eighth * 8 * size_of::<f32>()),
            two_rows: warp_out.wrapping_add((place.lane / 4) as usize * stride * bytes + eighth * 16),
            dtype,
            plain: item.flags & flag::PLAIN_COLUMNS != 0,
            active: place.lane < item.columns_here,
            along,
            tile,
        }
    }

    /// # Safety
    /// The weights' places are within the tensor.
    #[inline(always)]
    unsafe fn write_as_dtype<const CAREFUL: bool>(&self, place: &Place, row: u32, values: [f32; CHUNK]) {
        // SAFETY: by the caller.
        unsafe {
            if self.dtype == DType::F32 as u32 {
                self.write::<F32, CAREFUL>(place, row, values);
            } else if self.dtype == DType::F16 as u32 {
                self.write::<F16, CAREFUL>(place, row, values);
            } else {
                self.write::<Bf16, CAREFUL>(place, row, values);
            }
        }
    }

    /// # Safety
    /// As [`write_as_dtype`](Self::write_as_dtype).
    #[inline(always)]
    unsafe fn write<T: Format, const CAREFUL: bool>(&self, place: &Place, row: u32, values: [f32; CHUNK]) {
        let values = rows!(ROW => if CAREFUL { values[ROW].clamp(-T::MAX, T::MAX) } else { values[ROW] });
        let words = T::pack(values);
        let out = self.out.wrapping_add(row as usize * self.stride);
        let count = if CAREFUL { (place.item.rows - row) as usize } else { CHUNK };
        let whole = count >= CHUNK;
        // SAFETY: by the caller.
        unsafe {
            if whole && self.along == Along::Rows && T::BYTES == 2 {
                self.write_rows(place.lane, row, words.as_ref());
            } else if !self.active {
            } else if whole && self.along == Along::Lanes {
                for (i, four) in words.as_ref().as_chunks::<4>().0.iter().enumerate() {
                    store_global_4(out.wrapping_add(16 * i), *four);
                }
            } else {
                rows!(ROW => if ROW < count {
                    T::write(out.wrapping_add(ROW * self.stride), &words, ROW);
                });
            }
        }
    }

    /// Writes a chunk of 16-bit numbers by rows: each thread 8 columns of two rows.
    ///
    /// The matrices that `load_matrices` hands out give a thread two neighbours of each; so columns 2q and 2q + 1 of every eight go to matrix q, and what a
    /// thread gets of the four matrices are eight neighbours.
    ///
    /// # Safety
    /// As [`write`](Self::write).
    #[inline(always)]
    unsafe fn write_rows(&self, lane: u32, row: u32, words: &[u32]) {
        // A matrix takes 128 bytes and 32 to spare, so that eight neighbouring lanes write to different banks.
        let (matrix, half) = (TILE_BYTES as u32 / 8, TILE_BYTES as u32 / 2);
        let to = self.tile + lane / 2 % 4 * matrix + (lane / 8 * 2 + lane % 2) * 16;
        let from = self.tile + lane / 8 * matrix + lane % 8 * 16;
        // SAFETY: the warp's own shared memory, and by the caller.
        unsafe {
            store_shared_4(to, [words[0], words[1], words[2], words[3]]);
            store_shared_4(to + half, [words[4], words[5], words[6], words[7]]);
            sync_warp();
            self.write_two_rows(row, [load_matrices::<true>(from), load_matrices::<true>(from + half)]);
            sync_warp();
        }
    }

    /// Writes a whole chunk of 16-bit numbers, each times a scale, of which each thread has its part: thread 4g + t that of columns 8t to 8t + 7, of rows g and g + 8.
    ///
    /// # Safety
    /// As [`write`](Self::write), and whole rows can be written.
    #[inline(always)]
    unsafe fn write_neighbours(&self, row: u32, values: Neighbours<f32>, scales: Neighbours<f32>) {
        let scaled = |row: usize| {
            let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (values[row], scales[row]);
            [a * i, b * j, c * k, d * l, e * m, f * n, g * o, h * p]
        };
        let values = [scaled(0), scaled(1)];
        // SAFETY: by the caller.
        unsafe {
            if self.dtype == DType::F16 as u32 {
                self.write_two_rows(row, values.map(pairs::<F16>));
            } else {
                self.write_two_rows(row, values.map(pairs::<Bf16>));
            }
        }
    }

    /// Writes a thread's eight neighbours of two rows of a chunk, which are eight apart.
    ///
    /// # Safety
    /// As [`write_neighbours`](Self::write_neighbours).
    #[inline(always)]
    unsafe fn write_two_rows(&self, row: u32, [first, second]: [[u32; 4]; 2]) {
        let out = self.two_rows.wrapping_add(row as usize * self.stride);
        // SAFETY: by the caller.
        unsafe {
            store_global_4(out, first);
            store_global_4(out.wrapping_add(8 * self.stride), second);
        }
    }
}

/// Eight neighbours as numbers of 16 bits.
#[inline(always)]
fn pairs<T: Half>([a, b, c, d, e, f, g, h]: [f32; 8]) -> [u32; 4] {
    [T::pair(a, b), T::pair(c, d), T::pair(e, f), T::pair(g, h)]
}

impl Sink for Writer {
    #[inline(always)]
    fn scratch(&self) -> u32 {
        self.tile
    }

    #[inline(always)]
    fn chunk<const CAREFUL: bool>(&mut self, place: &Place, row: u32, latents: [i32; CHUNK]) {
        let values = weights::<CAREFUL>(place, self.scale, row, latents);
        // SAFETY: lanes beside the matrix write nothing.
        unsafe { self.write_as_dtype::<CAREFUL>(place, row, values) };
    }

    #[inline(always)]
    unsafe fn transform<const TRANSFORM: u32>(
        &mut self,
        place: &Place,
        row: u32,
        network: &Network<TRANSFORM>,
        bytes: Bytes,
    ) {
        // SAFETY: by the caller; lanes beside the matrix write nothing.
        unsafe {
            if self.along != Along::Rows || !network.takes_bytes() {
                self.chunk::<false>(place, row, network.of_lane(bytes));
                return;
            }
            // As a number of binary32 this has its last bit at the latents' last place, and half its range on both sides.
            let zero = 0x4B40_0000 - (network.places() << 23);
            let latents = neighbours(network.of_bytes(bytes, zero.cast_signed()));
            let values = latents
                .map(|row| row.map(|latent| f32::from_bits(latent.cast_unsigned()) - f32::from_bits(zero)));
            let first = row + place.lane / 4;
            let scales = [first, first + 8].map(|row| place.row_scale(row) * place.tensor.latent_unit);
            if self.plain {
                self.write_neighbours(row, values, scales.map(|scale| [scale; 8]));
            } else {
                let [low, high] = self.column_scales.cast::<[[f32; 4]; 2]>().read();
                let columns = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
                let scales = scales.map(|scale| columns.map(|column| column * scale));
                self.write_neighbours(row, values, scales);
            }
        }
    }

    #[inline(always)]
    fn bytes(&mut self, place: &Place, row: u32, indices: Bytes) {
        let unit_bits = unit_bits(place.tensor.low_bits);
        let indices = indices.map(|four| bytes_to_f32(four, unit_bits));
        let scales = place.row_scales(row);
        let (index, scale) = (|row: usize| indices[row % 4][row / 4], |row: usize| scales[row / 4][row % 4]);
        let values = if self.plain {
            rows!(ROW => index(ROW) * scale(ROW))
        } else {
            rows!(ROW => index(ROW) * (scale(ROW) * self.scale))
        };
        // SAFETY: as above.
        unsafe { self.write_as_dtype::<false>(place, row, values) };
    }
}

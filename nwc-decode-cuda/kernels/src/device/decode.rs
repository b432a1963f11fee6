//! Decoding to memory, as F32, F16 or BF16.

use nwc_decode_core::DType;

use super::block::Block;
use super::intrinsics::{load_global_4, pack_bf16, pack_f16, store_global_4};
use super::item::{Place, Sink, decode};
use crate::lane::{rows, weight};
use crate::layout::{BlockRecord, CHUNK, ColumnRecord};

/// Decodes items into tensors in the memory of the device. The grid has a block for each of `blocks`; each block has a multiple of 32 threads, and shared memory for
/// its threads' rings and the largest tables of its tensors.
///
/// `outputs` has the tensors' addresses, `dtype` is the code of their type, `status` takes an error code, or 0, for each item of the image.
///
/// # Safety
/// `image` is an image; every block names items of one of its tensors; an output has as many elements of the type as its tensor has weights.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn nwc_decode(
    image: *const u8,
    blocks: *const BlockRecord,
    outputs: *const *mut u8,
    dtype: u32,
    status: *mut u32,
) {
    // SAFETY: by the caller.
    unsafe {
        let block = Block::enter(image, blocks, 0);
        let output = outputs.add(block.record.output as usize).read();
        // Not by a closure, which would not be inlined.
        let mut number = Block::warp();
        while number < block.record.items {
            let place = block.place(number);
            let column: ColumnRecord = place.image.read(place.item.columns, place.lane);
            let code = decode(&place, column, &mut Writer::new(&place, column, output, dtype));
            block.report(status, number, &place, code);
            number += Block::warps();
        }
    }
}

/// A type that weights are written as.
trait Format {
    const BYTES: usize;
    /// The largest finite number, to which larger ones are cut (docs/bitstream.md §10.4).
    const MAX: f32;

    /// Writes numbers `stride` bytes apart.
    ///
    /// # Safety
    /// As many of them as `count` says have their place there.
    unsafe fn write(out: *mut u8, stride: usize, values: [f32; CHUNK], count: usize);

    /// Writes numbers one behind the other.
    ///
    /// # Safety
    /// They have their place there, at a multiple of 16 bytes.
    unsafe fn write_row(out: *mut u8, values: [f32; CHUNK]);
}

enum F32 {}
enum F16 {}
enum Bf16 {}

impl Format for F32 {
    const BYTES: usize = 4;
    const MAX: f32 = f32::MAX;

    #[inline(always)]
    unsafe fn write(out: *mut u8, stride: usize, values: [f32; CHUNK], count: usize) {
        rows!(ROW => if ROW < count {
            // SAFETY: by the caller.
            unsafe { out.wrapping_add(ROW * stride).cast::<f32>().write(values[ROW]) };
        });
    }

    #[inline(always)]
    unsafe fn write_row(out: *mut u8, values: [f32; CHUNK]) {
        // SAFETY: by the caller.
        unsafe { store(out, rows!(ROW => values[ROW].to_bits())) }
    }
}

/// Writes words, 16 bytes at a time.
///
/// # Safety
/// They have their place there, at a multiple of 16 bytes.
#[inline(always)]
unsafe fn store<const WORDS: usize>(out: *mut u8, words: [u32; WORDS]) {
    for (i, four) in words.as_chunks::<4>().0.iter().enumerate() {
        // SAFETY: by the caller.
        unsafe { store_global_4(out.add(16 * i), *four) };
    }
}

/// Two numbers of 16 bits in a word.
trait Half {
    const MAX: f32;
    fn pack(low: f32, high: f32) -> u32;
}

impl Half for F16 {
    const MAX: f32 = 65504.0;

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        pack_f16(low, high)
    }
}

impl Half for Bf16 {
    const MAX: f32 = f32::from_bits(0x7F7F_0000);

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        pack_bf16(low, high)
    }
}

impl<T: Half> Format for T {
    const BYTES: usize = 2;
    const MAX: f32 = <T as Half>::MAX;

    #[inline(always)]
    unsafe fn write(out: *mut u8, stride: usize, values: [f32; CHUNK], count: usize) {
        let pairs = pairs::<T>(values);
        rows!(ROW => if ROW < count {
            let bits = (pairs[ROW / 2] >> (ROW % 2 * 16)) as u16;
            // SAFETY: by the caller.
            unsafe { out.wrapping_add(ROW * stride).cast::<u16>().write(bits) };
        });
    }

    #[inline(always)]
    unsafe fn write_row(out: *mut u8, values: [f32; CHUNK]) {
        let pairs = pairs::<T>(values);
        // SAFETY: by the caller.
        unsafe { store(out, [pairs[0], pairs[1], pairs[2], pairs[3], pairs[4], pairs[5], pairs[6], pairs[7]]) }
    }
}

#[inline(always)]
fn pairs<T: Half>(values: [f32; CHUNK]) -> [u32; CHUNK] {
    // The second half is not there to be used.
    rows!(ROW => if ROW < CHUNK / 2 { T::pack(values[2 * ROW % CHUNK], values[(2 * ROW + 1) % CHUNK]) } else { 0 })
}

/// Writes the weights of a lane.
struct Writer {
    /// Where the weight of the item's first row goes.
    out: *mut u8,
    /// Bytes from a row's weight to the next row's.
    stride: usize,
    /// The column's scale.
    scale: f32,
    /// What a unit of a latent is.
    unit: f32,
    /// The code of the output's type.
    dtype: u32,
    /// False for lanes beside the matrix.
    active: bool,
    /// Rows of a lane lie one behind the other, at multiples of 16 bytes.
    along: bool,
}

impl Writer {
    #[inline(always)]
    fn new(place: &Place, column: ColumnRecord, output: *mut u8, dtype: u32) -> Self {
        let (tensor, item) = (&place.tensor, &place.item);
        let row = item.first_row as usize;
        let col = (item.first_column + place.lane) as usize;
        let input = tensor.input as usize;
        let matrix = item.matrix as usize * tensor.out as usize * input;
        let transposed = tensor.transposed != 0;
        let (at, stride) = if transposed { (col * input + row, 1) } else { (row * input + col, input) };
        let bytes = if dtype == DType::F32 as u32 { F32::BYTES } else { F16::BYTES };
        let out = output.wrapping_add((matrix + at) * bytes);
        Self {
            out,
            stride: stride * bytes,
            scale: column.scale,
            unit: if tensor.hadamard != 0 { 0.25 } else { 1.0 },
            dtype,
            active: place.lane < item.columns_here,
            along: transposed && out.addr() % 16 == 0,
        }
    }

    /// # Safety
    /// The weights' places are within the tensor.
    #[inline(always)]
    unsafe fn write<T: Format, const CAREFUL: bool>(
        &self,
        place: &Place,
        row: u32,
        values: [f32; CHUNK],
    ) {
        let values =
            rows!(ROW => if CAREFUL { values[ROW].clamp(-T::MAX, T::MAX) } else { values[ROW] });
        let out = self.out.wrapping_add(row as usize * self.stride);
        let count = if CAREFUL { (place.item.rows - row) as usize } else { CHUNK };
        // SAFETY: by the caller.
        unsafe {
            if self.along && count >= CHUNK {
                T::write_row(out, values);
            } else {
                T::write(out, self.stride, values, count);
            }
        }
    }
}

impl Sink for Writer {
    #[inline(always)]
    fn chunk<const CAREFUL: bool>(&mut self, place: &Place, row: u32, latents: [i32; CHUNK]) {
        let (scale, unit) = if CAREFUL { (self.scale, self.unit) } else { (self.scale * self.unit, 1.0) };
        let scales = place.image.at(place.item.row_scales).cast::<f32>().wrapping_add(row as usize);
        // SAFETY: row scales lie in memory for whole chunks, and items begin at whole ones.
        let scales = [0, 4, 8, 12].map(|first| unsafe { load_global_4(scales.add(first)) });
        let values = rows!(ROW => weight::<CAREFUL>(latents[ROW], unit, scales[ROW / 4][ROW % 4], scale));
        if !self.active {
            return;
        }
        // SAFETY: the lane is one of the matrix.
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
}

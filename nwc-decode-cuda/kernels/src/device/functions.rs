//! Functions for other people's kernels. What each does and asks of its caller stands in `include/nwc_decode.cuh` and docs/cuda.md; the signatures are
//! those there.

use nwc_decode_core::Error;

use super::intrinsics::{MOST_BF16, MOST_F16, commit_and_wait, lane, pack_bf16, pack_f16, shared, sync_warp};
use super::item::{Image, Place, Shared, Walk, first_code, is_careful, stage, weights};
use super::ring::RING_BYTES;
use super::view::{Item, Pairs, Rows, Tensor};
use crate::lane::{self, rows};
use crate::layout::{CHUNK, Header, ItemRecord, LANES, synthesis};

/// Finds a tensor.
///
/// # Safety
/// `image` is an image, or does at least not begin as one; `tensor` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_open(tensor: *mut Tensor, image: *const u8, number: u32) -> u32 {
    let image = Image(image);
    // SAFETY: by the caller.
    unsafe {
        let header: Header = image.read(0, 0);
        if header.magic != Header::MAGIC {
            return Error::Magic.code().into();
        }
        if number >= header.tensors {
            return Error::Index.code().into();
        }
        tensor.write(Tensor { record: image.read(header.tensor_records, number), image: image.0 });
    }
    0
}

/// Copies a thread's share of the tensor's tables, and waits for it.
///
/// # Safety
/// `tensor` is open; `tables` is shared memory for its tables, at a multiple of 16.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_stage(tensor: *const Tensor, tables: *mut u8, thread: u32, threads: u32) {
    // SAFETY: by the caller.
    unsafe {
        let Tensor { record, image } = *tensor;
        stage(Image(image), &record, shared(tables), thread, threads);
    }
    commit_and_wait::<0>();
}

/// Goes to an item's first row.
///
/// # Safety
/// `tensor` is open and stays where it is; its tables are in `tables`, seen by this thread; `ahead` is shared memory of the warp alone, `AHEAD_BYTES`, at a
/// multiple of `RING_BYTES`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_begin(
    item: *mut Item,
    tensor: *const Tensor,
    tables: *const u8,
    number: u32,
    ahead: *mut u8,
) -> u32 {
    let lane = lane();
    let nothing: ItemRecord = bytemuck::Zeroable::zeroed();
    let mut begun = Item {
        record: ItemRecord { error: Error::Index.code().into(), ..nothing },
        column_scale: 0.0,
        row: 0,
        lane,
        tensor,
        start: bytemuck::Zeroable::zeroed(),
        walk: bytemuck::Zeroable::zeroed(),
        ring_parts: bytemuck::Zeroable::zeroed(),
        item_record: 0,
        ahead: shared(ahead),
        tables: shared(tables),
    };
    // SAFETY: by the caller.
    unsafe {
        let Tensor { record, image } = *tensor;
        if number < record.items {
            begun.item_record = record.item_record(number);
            begun.record = Image(image).read(begun.item_record, 0);
        }
        if !begun.ahead.is_multiple_of(RING_BYTES) {
            begun.record.error = Error::Scratch.code().into();
        }
        if begun.record.error == 0 {
            begun.start = Image(image).read(record.lanes, number * LANES as u32 + lane);
            let place = begun.place();
            if lane < begun.record.columns_here {
                begun.column_scale = place.column_scale();
            }
            begun.keep(&Walk::new(&place, true));
            commit_and_wait::<0>();
        }
        item.write(begun);
    }
    begun.record.error
}

/// The next 16 rows, in binary32.
///
/// # Safety
/// `item` is begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_next_f32(item: *mut Item) -> Rows {
    // SAFETY: by the caller.
    Rows { weight: unsafe { next(item, f32::MAX) } }
}

/// The next 16 rows, in binary16.
///
/// # Safety
/// `item` is begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_next_f16(item: *mut Item) -> Pairs {
    // SAFETY: by the caller.
    let weights = unsafe { next(item, MOST_F16) };
    pairs(|i| pack_f16(weights[2 * i], weights[2 * i + 1]))
}

/// The next 16 rows, in bfloat16.
///
/// # Safety
/// `item` is begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_next_bf16(item: *mut Item) -> Pairs {
    // SAFETY: by the caller.
    let weights = unsafe { next(item, MOST_BF16) };
    pairs(|i| pack_bf16(weights[2 * i], weights[2 * i + 1]))
}

/// Leaves an item: its error code, or 0, to all threads of the warp.
///
/// # Safety
/// `item` is begun; all threads of the warp come.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_end(item: *const Item) -> u32 {
    // What is still to come would come into memory that is the caller's again, and other lanes may still read there.
    commit_and_wait::<0>();
    sync_warp();
    // SAFETY: by the caller.
    unsafe {
        let item = &*item;
        if item.record.error != 0 {
            return item.record.error;
        }
        let place = item.place();
        first_code(&place, item.walk(&place).finish())
    }
}

impl Item {
    /// # Safety
    /// The tensor is where it was.
    #[inline(always)]
    unsafe fn place(&self) -> Place {
        // SAFETY: by the caller.
        unsafe {
            let Tensor { record, image } = *self.tensor;
            Place {
                image: Image(image),
                tensor: record,
                item: self.record,
                item_record: self.item_record,
                record: self.start,
                lane: self.lane,
                ahead: self.ahead,
                tables: self.tables,
            }
        }
    }

    /// # Safety
    /// The item is begun, and not known to be damaged.
    #[inline(always)]
    unsafe fn walk(&self, place: &Place) -> Walk {
        // SAFETY: by the caller.
        unsafe { Walk::resume(place, (self.walk, self.ring_parts)) }
    }

    #[inline(always)]
    fn keep(&mut self, walk: &Walk) {
        (self.walk, self.ring_parts) = walk.parts();
    }
}

#[inline(always)]
fn pairs(pair: impl Fn(usize) -> u32) -> Pairs {
    Pairs { pair: [pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)] }
}

/// The latents of a chunk.
#[inline(always)]
fn synthesise(place: &Place, indices: [i32; CHUNK], rows: u32) -> [i32; CHUNK] {
    if place.tensor.synthesis < synthesis::LINEAR {
        lane::synthesise(&place.tensor, indices, rows)
    } else {
        learned(place, indices, rows)
    }
}

/// The same if they are learned: one lane's work, for a warp has no shared memory to spare here. Not inlined, as that is long.
#[inline(never)]
fn learned(place: &Place, indices: [i32; CHUNK], rows: u32) -> [i32; CHUNK] {
    lane::synthesise_any(&place.tensor, &Shared(place.tables), indices, rows)
}

/// The next chunk's weights, which are cut to `most`; zeros behind the last row, and if the item is damaged.
#[inline(always)]
unsafe fn next(item: *mut Item, most: f32) -> [f32; CHUNK] {
    // SAFETY: by the caller.
    unsafe {
        let item = &mut *item;
        if item.record.error != 0 || item.row >= item.record.rows {
            return [0.0; CHUNK];
        }
        let place = item.place();
        let mut walk = item.walk(&place);
        let bytes = walk.chunk::<false>(&place, item.row, item.row / CHUNK as u32 % 2 != 0);
        let values = if is_careful(&place, item.row) {
            let indices = walk.careful(&place, item.row, bytes);
            let latents = synthesise(&place, indices, place.item.rows - item.row);
            let values = weights::<true>(&place, item.column_scale, item.row, latents);
            rows!(ROW => values[ROW].clamp(-most, most))
        } else {
            let latents = synthesise(&place, lane::by_rows(bytes, place.tensor.low_bits), CHUNK as u32);
            weights::<false>(&place, item.column_scale, item.row, latents)
        };
        item.keep(&walk);
        item.row += CHUNK as u32;
        values
    }
}

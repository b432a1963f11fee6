//! Functions for other people's kernels. What each does and asks of its caller stands in `include/nwc_decode.cuh` and docs/cuda.md; the signatures are
//! those there.

use nwc_decode_core::Error;

use super::intrinsics::{commit_and_wait, lane, pack_bf16, pack_f16, shared};
use super::item::{Image, Job, Place, Walk, class, first_code, is_careful, stage, weights, with_symbols};
use super::ring::{RING_BYTES, Ring};
use super::view::{Item, Pairs, Rows, Tensor};
use crate::lane::{Lane, Symbols, rows};
use crate::layout::{CHUNK, ColumnRecord, Header, ItemRecord};

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
        let record = image.read(header.tensor_records, number);
        let (units, item_records) = (header.units, header.item_records);
        tensor.write(Tensor { record, image: image.0, units, item_records });
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
        let Tensor { record, image, .. } = *tensor;
        stage(Image(image), &record, shared(tables), thread, threads);
    }
}

/// Goes to an item's first row.
///
/// # Safety
/// `tensor` is open and stays where it is; its tables are in `tables`, seen by this thread; `rings` is shared memory of the warp alone, `RING_BYTES` a thread, at a
/// multiple of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_begin(
    item: *mut Item,
    tensor: *const Tensor,
    tables: *const u8,
    number: u32,
    rings: *mut u8,
) -> u32 {
    let lane = lane();
    let nothing: ItemRecord = bytemuck::Zeroable::zeroed();
    let mut begun = Item {
        record: ItemRecord { error: Error::Index.code().into(), ..nothing },
        column: ColumnRecord { scale: 0.0, class: 0 },
        row: 0,
        lane,
        tensor,
        x: 0,
        trellis: 0,
        first_class: 0,
        ring_parts: [0; 2],
        ring: shared(rings) + lane * RING_BYTES,
        tables: shared(tables),
    };
    // SAFETY: by the caller.
    unsafe {
        let Tensor { record, image, item_records, .. } = *tensor;
        if number < record.items {
            begun.record = Image(image).read(item_records, record.first_item + number);
        }
        if !begun.ring.is_multiple_of(RING_BYTES) {
            begun.record.error = Error::Scratch.code().into();
        }
        if begun.record.error == 0 {
            begun.column = Image(image).read(begun.record.columns, lane);
            if lane >= begun.record.columns_here {
                begun.column.scale = 0.0;
            }
            let place = begun.place();
            begun.first_class = class(&place, begun.column, 0);
            begun.keep(&Walk::new(&place));
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
    let weights = unsafe { next(item, 65504.0) };
    pairs(|i| pack_f16(weights[2 * i], weights[2 * i + 1]))
}

/// The next 16 rows, in bfloat16.
///
/// # Safety
/// `item` is begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_next_bf16(item: *mut Item) -> Pairs {
    // SAFETY: by the caller.
    let weights = unsafe { next(item, f32::from_bits(0x7F7F_0000)) };
    pairs(|i| pack_bf16(weights[2 * i], weights[2 * i + 1]))
}

/// Leaves an item: its error code, or 0, to all threads of the warp.
///
/// # Safety
/// `item` is begun; all threads of the warp come.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nwc_end(item: *const Item) -> u32 {
    // What is still to come would come into memory that is the caller's again.
    commit_and_wait::<0>();
    // SAFETY: by the caller.
    unsafe {
        let item = &*item;
        if item.record.error != 0 {
            return item.record.error;
        }
        let place = item.place();
        first_code(&place, item.walk(&place).finish(&place))
    }
}

impl Item {
    /// # Safety
    /// The tensor is where it was.
    #[inline(always)]
    unsafe fn place(&self) -> Place {
        // SAFETY: by the caller.
        let tensor = unsafe { *self.tensor };
        Place {
            image: Image(tensor.image),
            units: tensor.units,
            tensor: tensor.record,
            item: self.record,
            lane: self.lane,
            ring: self.ring,
            tables: self.tables,
        }
    }

    /// # Safety
    /// The item is begun, and not known to be damaged.
    #[inline(always)]
    unsafe fn walk(&self, place: &Place) -> Walk {
        // SAFETY: by the caller.
        let words =
            unsafe { Ring::resume(self.ring_parts, self.ring, Walk::source(place), Walk::last(place)) };
        Walk { lane: Lane { x: self.x, trellis: self.trellis }, words }
    }

    #[inline(always)]
    fn keep(&mut self, walk: &Walk) {
        (self.x, self.trellis) = (walk.lane.x, walk.lane.trellis);
        self.ring_parts = walk.words.parts();
    }
}

#[inline(always)]
fn pairs(pair: impl Fn(usize) -> u32) -> Pairs {
    Pairs { pair: [pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)] }
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
        let values = with_symbols(&place, Chunk { place: &place, walk: &mut walk, item, most });
        item.keep(&walk);
        item.row += CHUNK as u32;
        values
    }
}

struct Chunk<'a> {
    place: &'a Place,
    walk: &'a mut Walk,
    item: &'a Item,
    most: f32,
}

impl Job for Chunk<'_> {
    type Done = [f32; CHUNK];

    #[inline(always)]
    unsafe fn run<const CAREFUL: bool>(self, symbols: &impl Symbols) -> [f32; CHUNK] {
        let Self { place, walk, item: &Item { column, row, first_class, .. }, most } = self;
        // SAFETY: by the caller.
        unsafe {
            let class = symbols.class(first_class);
            if CAREFUL || is_careful(place, row) {
                let latents = walk.chunk::<true>(place, column, symbols, class, row);
                let values = weights::<true>(place, column.scale, row, latents);
                rows!(ROW => values[ROW].clamp(-most, most))
            } else {
                let latents = walk.chunk::<false>(place, column, symbols, class, row);
                weights::<false>(place, column.scale, row, latents)
            }
        }
    }
}

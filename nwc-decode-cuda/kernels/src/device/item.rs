//! Decoding an item, whatever becomes of its weights.

use super::intrinsics::{generic, load_shared, load_shared_byte};
use super::ring::Ring;
use crate::lane::{self, Direct, Indexed, Lane, LOWER_BOUND, Memory, Symbols};
use crate::layout::{CHUNK, ColumnRecord, Header, ItemRecord, LaneRecord, TensorRecord, UNIT, flag, form};

/// An image in global memory.
#[derive(Clone, Copy)]
pub(crate) struct Image(pub(crate) *const u8);

impl Image {
    /// What lies at an offset.
    ///
    /// # Safety
    /// `T` lies there, `index` elements further on.
    #[inline(always)]
    pub(crate) unsafe fn read<T: Copy>(self, offset: u32, index: u32) -> T {
        // SAFETY: by the caller.
        unsafe { self.at(offset).cast::<T>().add(index as usize).read() }
    }

    #[inline(always)]
    pub(crate) fn at(self, offset: u32) -> *const u8 {
        self.0.wrapping_add(offset as usize * UNIT)
    }

    /// The records of a tensor and of one of its items.
    ///
    /// # Safety
    /// The image is one, and has them.
    #[inline(always)]
    pub(crate) unsafe fn tensor(self, number: u32) -> (Header, TensorRecord) {
        // SAFETY: by the caller.
        unsafe {
            let header: Header = self.read(0, 0);
            (header, self.read(header.tensor_records, number))
        }
    }
}

/// Tables in shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) u32);

impl Memory for Shared {
    #[inline(always)]
    fn word(&self, at: u32) -> u32 {
        // SAFETY: tables are made so that no state leads out of them.
        unsafe { load_shared(self.0.wrapping_add(at)) }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u32 {
        // SAFETY: as above.
        unsafe { load_shared_byte(self.0.wrapping_add(at)) }
    }
}

/// Tables in shared or global memory, by an address that can be either.
#[derive(Clone, Copy)]
pub(crate) struct Anywhere(pub(crate) *const u8);

impl Memory for Anywhere {
    #[inline(always)]
    fn word(&self, at: u32) -> u32 {
        // SAFETY: tables are made so that no state leads out of them.
        unsafe { self.0.add(at as usize).cast::<u32>().read() }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u32 {
        // SAFETY: as above.
        unsafe { u32::from(self.0.add(at as usize).read()) }
    }
}

/// Where the threads of a warp find an item, and which of its lanes they are.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) image: Image,
    pub(crate) units: u32,
    pub(crate) tensor: TensorRecord,
    pub(crate) item: ItemRecord,
    pub(crate) lane: u32,
    /// This thread's ring.
    pub(crate) ring: u32,
    /// The tensor's tables in shared memory, if they are there.
    pub(crate) tables: u32,
}

/// What is done with the rows of a chunk.
pub(crate) trait Sink {
    /// Before a chunk is decoded: what comes from memory can be asked for.
    #[inline(always)]
    fn prepare(&mut self, _place: &Place, _row: u32) {}

    /// `latents` are quantisation indices, or after the Hadamard synthesis four times the latents; `row` counts from the item's first. `CAREFUL`: rows may be
    /// missing at the end, and latents large.
    fn chunk<const CAREFUL: bool>(&mut self, place: &Place, row: u32, latents: [i32; CHUNK]);

    /// A chunk of an item that is not decoded.
    #[inline(always)]
    fn skip(&mut self, _place: &Place, _row: u32) {}
}

/// Passes over an item's chunks.
#[inline(always)]
pub(crate) fn skip(place: &Place, sink: &mut impl Sink) {
    let mut row = 0;
    while row < place.item.rows {
        sink.skip(place, row);
        row += CHUNK as u32;
    }
}

/// Decodes an item. Returns this lane's error code, or 0.
///
/// # Safety
/// All threads of the warp come with the same place but for `lane` and `ring`, which are theirs.
#[inline(always)]
pub(crate) unsafe fn decode(place: &Place, column: ColumnRecord, sink: &mut impl Sink) -> u32 {
    if place.item.error != 0 {
        skip(place, sink);
        return place.item.error;
    }
    // SAFETY: by the caller.
    unsafe {
        if place.tensor.form == form::DIRECT {
            walk::<false>(place, column, &Direct::new(Shared(place.tables), &place.tensor), sink)
        } else {
            let tables = if place.tensor.form == form::INDEXED {
                generic(place.tables)
            } else {
                place.image.at(place.tensor.tables)
            };
            walk::<true>(place, column, &Indexed::new(Anywhere(tables), &place.tensor), sink)
        }
    }
}

/// `CAREFUL`: every chunk is decoded so, not only those that need it.
#[inline(always)]
unsafe fn walk<const CAREFUL: bool>(
    place: &Place,
    column: ColumnRecord,
    symbols: &impl Symbols,
    sink: &mut impl Sink,
) -> u32 {
    let item = &place.item;
    // SAFETY: the item has a record for each lane, and words up to the end of the image, which ends with a unit to spare.
    let (start, mut words) = unsafe {
        let start: LaneRecord = place.image.read(item.lanes, place.lane);
        let last = (place.units - 1 - item.words).min(u32::MAX / UNIT as u32) * UNIT as u32;
        (start, Ring::new(place.ring, place.image.at(item.words), start.start(), last))
    };
    let mut lane = Lane::new(start.state, start.trellis());
    // SAFETY: the item has a class for each row.
    let row_class = |row: u32| unsafe { place.image.read::<i32>(item.row_classes, row) };
    let class = symbols.class(column.class.wrapping_add(row_class(0)));

    let always = CAREFUL || item.flags & flag::CAREFUL != 0;
    let mut escapes = 0;
    let mut row = 0;
    while row < item.rows {
        let chunk = row / CHUNK as u32;
        if chunk % 32 == 0 {
            // SAFETY: the item has a bit for each chunk.
            escapes = unsafe { place.image.read(item.escapes, chunk / 32) };
        }
        let careful = always || escapes & 1 != 0;
        escapes >>= 1;
        sink.prepare(place, row);
        if careful {
            let rows = (item.rows - row).min(CHUNK as u32);
            let class_of = |r: u32| symbols.class(column.class.wrapping_add(row_class(row + r)));
            let indices = lane::chunk::<true>(symbols, &mut lane, &mut words, rows, class_of);
            let latents = if place.tensor.hadamard == 0 {
                indices
            } else if rows == CHUNK as u32 {
                lane::hadamard(indices)
            } else {
                lane::rows!(ROW => indices[ROW] * 4)
            };
            sink.chunk::<true>(place, row, latents);
        } else {
            let indices = lane::chunk::<false>(symbols, &mut lane, &mut words, CHUNK as u32, |_| class);
            let latents = if place.tensor.hadamard == 0 { indices } else { lane::hadamard(indices) };
            sink.chunk::<false>(place, row, latents);
        }
        row += CHUNK as u32;
    }
    // SAFETY: the item has a record for each lane, and one more after the last.
    let next: LaneRecord = unsafe { place.image.read(item.lanes, place.lane + 1) };
    let ends = item.flags & flag::LAST != 0;
    finish(words.position(), next.start(), if ends { lane.x } else { LOWER_BOUND })
}

/// Compares where a lane came to with where it must (§6.4): the code of what is wrong, or 0.
#[inline(always)]
fn finish(read: u32, end: u32, x: u32) -> u32 {
    use nwc_decode_core::Error;
    if read > end {
        Error::Overrun.code().into()
    } else if read < end {
        Error::Trailing.code().into()
    } else if x != LOWER_BOUND {
        Error::FinalState.code().into()
    } else {
        0
    }
}

//! Decoding an item, whatever becomes of its weights.

use super::intrinsics::{
    ballot, commit_and_wait, copy_async, generic, load_global_4, load_shared, load_shared_byte, shuffle,
};
use super::ring::Ring;
use crate::lane::{self, Direct, Indexed, LOWER_BOUND, Lane, Memory, Symbols};
use crate::layout::{
    CHUNK, ColumnRecord, Header, ItemRecord, LANES, LaneRecord, TensorRecord, UNIT, flag, form,
};

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

    /// The image's header, and the record of a tensor.
    ///
    /// # Safety
    /// The image is one, and has the tensor.
    #[inline(always)]
    pub(crate) unsafe fn tensor(self, number: u32) -> (Header, TensorRecord) {
        // SAFETY: by the caller.
        unsafe {
            let header: Header = self.read(0, 0);
            (header, self.read(header.tensor_records, number))
        }
    }
}

/// Copies a thread's share of a tensor's tables to shared memory, and waits for it.
///
/// # Safety
/// The image has the tensor; there is shared memory for its tables, at a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn stage(image: Image, tensor: &TensorRecord, tables: u32, thread: u32, threads: u32) {
    if tensor.form == form::GLOBAL {
        return;
    }
    let mut at = thread * UNIT as u32;
    while at < tensor.table_bytes {
        // SAFETY: by the caller.
        unsafe { copy_async(tables + at, image.at(tensor.tables).add(at as usize)) };
        at += threads * UNIT as u32;
    }
    commit_and_wait::<0>();
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

    /// After each chunk, decoded or not, at one place in the code: here all threads of a block can wait for each other.
    #[inline(always)]
    fn after(&mut self, _place: &Place, _row: u32) {}
}

/// Decodes an item. Returns this lane's error code, or 0. Chunks are skipped if the item is known to be damaged, or `idle`.
///
/// # Safety
/// All threads of the warp come with the same place but for `lane` and `ring`, which are theirs.
#[inline(always)]
pub(crate) unsafe fn decode(place: &Place, column: ColumnRecord, idle: bool, sink: &mut impl Sink) -> u32 {
    let idle = idle || place.item.error != 0;
    // SAFETY: by the caller.
    unsafe { with_symbols(place, WholeItem { place, column, idle, sink }) }
}

/// What is done with the tables of an item's tensor.
pub(crate) trait Job {
    type Done;

    /// `CAREFUL`: every chunk must be decoded so, not only those that [`is_careful`] tells of.
    ///
    /// # Safety
    /// As that of the caller of [`with_symbols`].
    unsafe fn run<const CAREFUL: bool>(self, symbols: &impl Symbols) -> Self::Done;
}

/// Does a job in the way that suits an item.
///
/// # Safety
/// The tensor's tables are where the place says.
#[inline(always)]
pub(crate) unsafe fn with_symbols<J: Job>(place: &Place, job: J) -> J::Done {
    // SAFETY: by the caller.
    unsafe {
        if place.tensor.form == form::DIRECT {
            job.run::<false>(&Direct::new(Shared(place.tables), &place.tensor))
        } else {
            let tables = if place.tensor.form == form::INDEXED {
                generic(place.tables)
            } else {
                place.image.at(place.tensor.tables)
            };
            job.run::<true>(&Indexed::new(Anywhere(tables), &place.tensor))
        }
    }
}

struct WholeItem<'a, S> {
    place: &'a Place,
    column: ColumnRecord,
    idle: bool,
    sink: &'a mut S,
}

impl<S: Sink> Job for WholeItem<'_, S> {
    type Done = u32;

    #[inline(always)]
    unsafe fn run<const CAREFUL: bool>(self, symbols: &impl Symbols) -> u32 {
        let Self { place, column, idle, sink } = self;
        // SAFETY: by the caller.
        unsafe {
            let class = symbols.class(class(place, column, 0));
            let mut walk = Walk::new(place);
            let always = CAREFUL || place.item.flags & flag::CAREFUL != 0;
            let mut escapes = 0;
            let mut row = 0;
            while row < place.item.rows {
                let chunk = row / CHUNK as u32;
                if chunk % 32 == 0 {
                    escapes = place.image.read(place.item.escapes, chunk / 32);
                }
                let careful = always || escapes & 1 != 0;
                escapes >>= 1;
                sink.prepare(place, row);
                if idle {
                    sink.skip(place, row);
                } else if careful {
                    let latents = walk.chunk::<true>(place, column, symbols, class, row);
                    sink.chunk::<true>(place, row, latents);
                } else {
                    let latents = walk.chunk::<false>(place, column, symbols, class, row);
                    sink.chunk::<false>(place, row, latents);
                }
                sink.after(place, row);
                row += CHUNK as u32;
            }
            if idle { place.item.error } else { walk.finish(place) }
        }
    }
}

/// Whether a chunk of an item must be decoded with every check.
///
/// # Safety
/// The image has the item, and that the row.
#[inline(always)]
pub(crate) unsafe fn is_careful(place: &Place, row: u32) -> bool {
    let chunk = row / CHUNK as u32;
    // SAFETY: the item has a bit for each chunk.
    let escapes: u32 = unsafe { place.image.read(place.item.escapes, chunk / 32) };
    place.item.flags & flag::CAREFUL != 0 || escapes >> (chunk % 32) & 1 != 0
}

/// The class of a weight.
///
/// # Safety
/// The image has the item, and that the row.
#[inline(always)]
pub(crate) unsafe fn class(place: &Place, column: ColumnRecord, row: u32) -> i32 {
    // SAFETY: the item has a class for each row.
    column.class.wrapping_add(unsafe { place.image.read::<i32>(place.item.row_classes, row) })
}

/// A lane on its way down an item.
pub(crate) struct Walk {
    pub(crate) lane: Lane,
    pub(crate) words: Ring,
}

impl Walk {
    /// At the item's first row.
    ///
    /// # Safety
    /// The image has the item, which is not known to be damaged; the ring is this thread's.
    #[inline(always)]
    pub(crate) unsafe fn new(place: &Place) -> Self {
        // SAFETY: the item has a record for each lane.
        let start: LaneRecord = unsafe { place.image.read(place.item.lanes, place.lane) };
        // SAFETY: the item has words up to the end of the image, which ends with a unit to spare.
        let words = unsafe { Ring::new(place.ring, Self::source(place), start.start(), Self::last(place)) };
        Self { lane: Lane::new(start.state, start.trellis()), words }
    }

    /// Where the item's words are.
    #[inline(always)]
    pub(crate) fn source(place: &Place) -> *const u8 {
        place.image.at(place.item.words)
    }

    /// The last place that words may be copied from, in bytes from the item's.
    #[inline(always)]
    pub(crate) fn last(place: &Place) -> u32 {
        (place.units - 1 - place.item.words).min(u32::MAX / UNIT as u32) * UNIT as u32
    }

    /// The latents of the chunk at `row`, as a [`Sink`] gets them. `class` is where the tables for all rows begin, if not `CAREFUL`.
    ///
    /// # Safety
    /// As of [`new`](Self::new); the chunks before this one are behind the lane.
    #[inline(always)]
    pub(crate) unsafe fn chunk<const CAREFUL: bool>(
        &mut self,
        place: &Place,
        column: ColumnRecord,
        symbols: &impl Symbols,
        class: u32,
        row: u32,
    ) -> [i32; CHUNK] {
        let rows = (place.item.rows - row).min(CHUNK as u32);
        let indices = if CAREFUL {
            // SAFETY: by the caller.
            let class_of = |r: u32| symbols.class(unsafe { self::class(place, column, row + r) });
            lane::chunk::<true>(symbols, &mut self.lane, &mut self.words, rows, class_of)
        } else {
            lane::chunk::<false>(symbols, &mut self.lane, &mut self.words, rows, |_| class)
        };
        lane::synthesise(indices, place.tensor.hadamard != 0, rows)
    }

    /// Behind the last row: the lane's error code, or 0.
    ///
    /// # Safety
    /// As of [`new`](Self::new).
    #[inline(always)]
    pub(crate) unsafe fn finish(&self, place: &Place) -> u32 {
        // SAFETY: the item has a record for each lane, and one more after the last.
        let next: LaneRecord = unsafe { place.image.read(place.item.lanes, place.lane + 1) };
        let ends = place.item.flags & flag::LAST != 0;
        lane::end_code(self.words.position(), next.start(), if ends { self.lane.x } else { LOWER_BOUND })
    }
}

/// The code of the item's first lane that has one, to all lanes.
#[inline(always)]
pub(crate) fn first_code(place: &Place, code: u32) -> u32 {
    let wrong = ballot(place.lane < place.item.columns_here && code != 0);
    let first = shuffle(code, wrong.trailing_zeros() % LANES as u32);
    if wrong == 0 { 0 } else { first }
}

/// The weights of a chunk's latents.
///
/// # Safety
/// The image has the item, and that the row.
#[inline(always)]
pub(crate) unsafe fn weights<const CAREFUL: bool>(
    place: &Place,
    column_scale: f32,
    row: u32,
    latents: [i32; CHUNK],
) -> [f32; CHUNK] {
    // What a unit of a latent is.
    let unit = if place.tensor.hadamard != 0 { 0.25 } else { 1.0 };
    let (scale, unit) = if CAREFUL { (column_scale, unit) } else { (column_scale * unit, 1.0) };
    let scales = place.image.at(place.item.row_scales).cast::<f32>().wrapping_add(row as usize);
    // SAFETY: row scales lie in memory for whole chunks, and items begin at whole ones.
    let scales = [0, 4, 8, 12].map(|first| unsafe { load_global_4(scales.add(first)) });
    lane::rows!(ROW => lane::weight::<CAREFUL>(latents[ROW], unit, scales[ROW / 4][ROW % 4], scale))
}

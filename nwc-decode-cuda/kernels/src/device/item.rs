//! Decoding an item, whatever becomes of its weights.

use super::intrinsics::{
    ballot, copy_async, copy_word_async, here, load_shared, load_shared_4, shuffle, sync_warp,
};
use super::network::{Matrix, Network, SCRATCH, matrix};
use super::ring::{RING_BYTES, Ring, RingPlace};
use super::view::{RingParts, WalkState};
use crate::lane::{self, Lane, Memory, Planes, Symbols};
use crate::layout::{
    CHUNK, ItemRecord, LANES, LaneRecord, Patch, TILE_BYTES, TensorRecord, UNIT, flag, synthesis,
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
}

/// Begins to copy a thread's share of a tensor's tables to shared memory.
///
/// # Safety
/// The image has the tensor; there is shared memory for its tables, at a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn stage(image: Image, tensor: &TensorRecord, tables: u32, thread: u32, threads: u32) {
    let mut at = thread * UNIT as u32;
    while at < tensor.table_bytes {
        // SAFETY: by the caller.
        unsafe { copy_async(tables + at, image.at(tensor.tables).add(at as usize)) };
        at += threads * UNIT as u32;
    }
}

/// Tables in shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) u32);

impl Memory for Shared {
    #[inline(always)]
    fn word(&self, at: u32) -> u32 {
        // SAFETY: no slot is outside of its table.
        unsafe { load_shared(self.0.wrapping_add(at)) }
    }
}

/// Where the threads of a warp find an item, and which of its lanes they are.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) image: Image,
    pub(crate) tensor: TensorRecord,
    pub(crate) item: ItemRecord,
    /// Where that is.
    pub(crate) item_record: u32,
    /// The lane at the item's first row.
    pub(crate) record: LaneRecord,
    pub(crate) lane: u32,
    /// Shared memory of the warp for what it reads ahead.
    pub(crate) ahead: u32,
    /// The tensor's tables in shared memory.
    pub(crate) tables: u32,
}

impl Place {
    /// Item `number` of a tensor, for a lane. What the item's record tells need not be waited for to know where the lane's is.
    ///
    /// # Safety
    /// The tensor is of the image, and has the item; `ahead` is the warp's; there are the tensor's tables in shared memory.
    #[inline(always)]
    pub(crate) unsafe fn new(
        image: Image,
        tensor: &TensorRecord,
        number: u32,
        lane: u32,
        ahead: u32,
        tables: u32,
    ) -> Self {
        // SAFETY: by the caller.
        unsafe {
            let item_record = tensor.item_record(number);
            let item = image.read(item_record, 0);
            let record = image.read(tensor.lanes, number * LANES as u32 + lane);
            Self { image, tensor: *tensor, item, item_record, record, lane, ahead, tables }
        }
    }

    /// The item's record, read again: what is seldom needed does not lie in registers.
    ///
    /// # Safety
    /// The image has the item.
    #[inline(always)]
    unsafe fn again(&self) -> ItemRecord {
        // SAFETY: by the caller.
        unsafe { self.image.read(here(self.item_record), 0) }
    }

    /// The scales of a chunk's rows, which have been read ahead.
    #[inline(always)]
    pub(crate) fn row_scales(&self, row: u32) -> [[f32; 4]; 4] {
        sync_warp(); // the other lanes' copies have arrived too
        let at = scale_slot(self, row / 32) + row / CHUNK as u32 % 2 * CHUNK as u32 * 4;
        // SAFETY: the warp's own shared memory.
        [0, 16, 32, 48].map(|place| unsafe { load_shared_4(at + place) })
    }

    /// The scale of a row, likewise; the warp has come together since.
    #[inline(always)]
    pub(crate) fn row_scale(&self, row: u32) -> f32 {
        // SAFETY: the warp's own shared memory.
        f32::from_bits(unsafe { load_shared(scale_slot(self, row / 32) + row % 32 * 4) })
    }

    /// The scale of the thread's column.
    ///
    /// # Safety
    /// The image has the item.
    #[inline(always)]
    pub(crate) unsafe fn column_scale(&self) -> f32 {
        // SAFETY: the item has one for each lane.
        unsafe { self.image.read(self.item.column_scales, self.lane) }
    }
}

/// What is done with the rows of a chunk.
pub(crate) trait Sink {
    /// `latents` are in units of the tensor's; `row` counts from the item's first. `CAREFUL`: rows may be
    /// missing at the end, and latents large.
    fn chunk<const CAREFUL: bool>(&mut self, place: &Place, row: u32, latents: [i32; CHUNK]);

    /// The same for indices as they are decoded, of an item that is not careful.
    #[inline(always)]
    fn bytes(&mut self, place: &Place, row: u32, indices: lane::Bytes) {
        self.chunk::<false>(place, row, lane::by_rows(indices, place.tensor.low_bits));
    }

    /// The same for indices of which a network makes latents.
    ///
    /// # Safety
    /// All threads of the warp come, with the tensor's network.
    #[inline(always)]
    unsafe fn transform<const TRANSFORM: u32>(
        &mut self,
        place: &Place,
        row: u32,
        network: &Network<TRANSFORM>,
        bytes: lane::Bytes,
    ) {
        // SAFETY: by the caller.
        self.chunk::<false>(place, row, unsafe { network.of_lane(bytes) });
    }

    /// Shared memory of the warp that is free between chunks, [`TILE_BYTES`] at a multiple of 16.
    fn scratch(&self) -> u32;

    /// A chunk of an item that is not decoded.
    #[inline(always)]
    fn skip(&mut self, _place: &Place, _row: u32) {}

    /// After each chunk, decoded or not: here all threads of a block can wait for each other, for all are at the same row.
    #[inline(always)]
    fn after(&mut self, _place: &Place, _row: u32) {}
}

/// Decodes an item; `TRANSFORM` says which it may have. Returns this lane's error code, or 0. Chunks are skipped if the item is known to be damaged, or `idle`.
///
/// # Safety
/// All threads of the warp come, with a walk that has arrived at the item's first row. The image has the item.
#[inline(always)]
pub(crate) unsafe fn decode<const TRANSFORM: u32>(
    place: &Place,
    walk: Walk,
    idle: bool,
    sink: &mut impl Sink,
) -> u32 {
    let idle = idle || place.item.error != 0;
    let Place { tensor, .. } = place;
    // SAFETY: by the caller.
    unsafe {
        let usual = tensor.trellis == USUAL_TRELLIS && tensor.low_bits == USUAL_LOW_BITS;
        if usual && (TRANSFORM != NONE || tensor.synthesis == synthesis::IDENTITY) {
            decode_rows::<true, TRANSFORM>(place, walk, idle, sink)
        } else {
            decode_rows::<false, TRANSFORM>(place, walk, idle, sink)
        }
    }
}

/// None, or Hadamard, though not as fast as it could be.
pub(crate) const NONE: u32 = 0;
/// A transform without hidden layers, or none.
pub(crate) const LINEAR: u32 = 1;
/// The same, or one with a hidden layer.
pub(crate) const LAYER: u32 = 2;
/// Any.
pub(crate) const LAYERS: u32 = 3;

/// That of encoders, if they are not told otherwise: of 64 states. Three low bits are what 4 bits a weight ask for.
const USUAL_TRELLIS: u32 = 6;
const USUAL_LOW_BITS: u32 = 3;

/// `USUAL`: the trellis is the usual one, and there are three low bits.
///
/// # Safety
/// As [`decode`].
#[inline(always)]
unsafe fn decode_rows<const USUAL: bool, const TRANSFORM: u32>(
    place: &Place,
    walk: Walk,
    idle: bool,
    sink: &mut impl Sink,
) -> u32 {
    let matrix = if TRANSFORM == NONE {
        Matrix::default()
    } else {
        // SAFETY: a tensor has what its synthesis asks for.
        unsafe { matrix(place.tensor.synthesis, place.tables + place.tensor.network, place.lane) }
    };
    let mut work = Work { walk, careful: Careful::new(place), matrix, idle, sink };
    let mut row = 0;
    while row < place.item.rows {
        // SAFETY: by the caller.
        unsafe {
            if USUAL {
                // Two at a time, so that what is done for 32 rows is done where it is due.
                work.chunk::<true, TRANSFORM>(place, row, false);
                row += CHUNK as u32;
                if row < place.item.rows {
                    work.chunk::<true, TRANSFORM>(place, row, true);
                }
            } else {
                work.chunk::<false, TRANSFORM>(place, row, row / CHUNK as u32 % 2 != 0);
            }
        }
        row += CHUNK as u32;
    }
    if idle { place.item.error } else { work.walk.finish() }
}

/// An item on its way through a sink.
struct Work<'s, S> {
    walk: Walk,
    careful: Careful,
    /// That of the tensor's transform, if the kernel knows any.
    matrix: Matrix,
    idle: bool,
    sink: &'s mut S,
}

impl<S: Sink> Work<'_, S> {
    /// # Safety
    /// As [`decode`]; this is the next chunk.
    #[inline(always)]
    unsafe fn chunk<const USUAL: bool, const TRANSFORM: u32>(
        &mut self,
        place: &Place,
        row: u32,
        is_odd: bool,
    ) {
        let Self { walk, careful, matrix, idle, sink } = self;
        // SAFETY: by the caller.
        unsafe {
            let is_careful = careful.next(place, row);
            if *idle {
                sink.skip(place, row);
            } else {
                let bytes = walk.chunk::<USUAL>(place, row, is_odd);
                let synthesis =
                    if USUAL && TRANSFORM == NONE { synthesis::IDENTITY } else { place.tensor.synthesis };
                let low_bits = if USUAL { USUAL_LOW_BITS } else { place.tensor.low_bits };
                if is_careful {
                    let indices = walk.careful(place, row, bytes);
                    let rows = place.item.rows - row;
                    let latents = if TRANSFORM == NONE || synthesis < synthesis::LINEAR || rows < CHUNK as u32
                    {
                        lane::synthesise(&place.tensor, indices, rows)
                    } else {
                        network::<TRANSFORM>(place, *matrix, low_bits, sink.scratch()).of_indices(indices)
                    };
                    sink.chunk::<true>(place, row, latents);
                } else if synthesis == synthesis::IDENTITY {
                    sink.bytes(place, row, bytes);
                } else if TRANSFORM == NONE {
                    let indices = lane::by_rows(bytes, low_bits);
                    sink.chunk::<false>(place, row, lane::synthesise(&place.tensor, indices, CHUNK as u32));
                } else {
                    let network = network::<TRANSFORM>(place, *matrix, low_bits, sink.scratch());
                    sink.transform(place, row, &network, bytes);
                }
            }
            sink.after(place, row);
        }
    }
}

/// The tensor's network.
///
/// # Safety
/// The tensor has one, with this matrix; `scratch` is the warp's.
#[inline(always)]
unsafe fn network<const TRANSFORM: u32>(
    place: &Place,
    matrix: Matrix,
    low_bits: u32,
    scratch: u32,
) -> Network<TRANSFORM> {
    const _: () = assert!(SCRATCH <= TILE_BYTES);
    let Place { tensor, .. } = place;
    let at = place.tables + tensor.network;
    // SAFETY: by the caller.
    unsafe { Network::new(tensor.synthesis, matrix, at, lane::unit_bits(low_bits), scratch, place.lane) }
}

/// Which chunks of an item must be decoded with every check.
struct Careful {
    always: bool,
    /// A bit for each of the next chunks, up to a multiple of 32.
    patched: u32,
}

impl Careful {
    #[inline(always)]
    fn new(place: &Place) -> Self {
        Self { always: place.item.flags & flag::CAREFUL != 0, patched: place.item.first_patched }
    }

    /// # Safety
    /// The image has the item, and that the row.
    #[inline(always)]
    unsafe fn next(&mut self, place: &Place, row: u32) -> bool {
        let chunk = row / CHUNK as u32;
        if chunk % 32 == 0 && chunk > 0 {
            // SAFETY: the item has a bit for each chunk.
            self.patched = unsafe { place.image.read(place.again().patched, chunk / 32) };
        }
        let careful = self.always || self.patched & 1 != 0;
        self.patched >>= 1;
        careful
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
    let patched: u32 = unsafe { place.image.read(place.item.patched, chunk / 32) };
    place.item.flags & flag::CAREFUL != 0 || patched >> (chunk % 32) & 1 != 0
}

/// A lane on its way down an item.
pub(crate) struct Walk {
    /// Whether scales of rows are read ahead.
    scales: bool,
    state: WalkState,
    words: Ring,
    symbols: Symbols<Shared>,
}

impl Walk {
    /// At the item's first row, where it has arrived when all copies have (`commit_and_wait`). `scales`: those of rows are wanted, too.
    ///
    /// # Safety
    /// All threads of the warp come.
    #[inline(always)]
    pub(crate) unsafe fn new(place: &Place, scales: bool) -> Self {
        // SAFETY: whatever the lane's record says, what is copied is in the image and goes to the ring.
        unsafe {
            let words = Ring::new(place.image, Self::ring_place(place));
            ask_for_rows(place, place.tensor.planes, scales, 0);
            let lane = Lane::new(place.record);
            let state = WalkState { x: lane.x, path: lane.path, planes: [0; 2], patch: 0 };
            Self { scales, state, words, symbols: Self::symbols(place) }
        }
    }

    /// The walk that [`parts`](Self::parts) were taken from.
    ///
    /// # Safety
    /// As [`new`](Self::new), with the same place; nobody has written to the ring since.
    #[inline(always)]
    pub(crate) unsafe fn resume(place: &Place, (state, ring): (WalkState, RingParts)) -> Self {
        // SAFETY: by the caller.
        let words = unsafe { Ring::resume(ring, place.image, Self::ring_place(place)) };
        Self { scales: true, state, words, symbols: Self::symbols(place) }
    }

    #[inline(always)]
    fn ring_place(place: &Place) -> RingPlace {
        RingPlace {
            bytes: place.record.words() * 2,
            ring: place.ahead + place.lane * RING_BYTES,
            words: place.item.words,
            last: lane::last_group(place.tensor.units, place.item.words),
        }
    }

    #[inline(always)]
    fn symbols(place: &Place) -> Symbols<Shared> {
        Symbols::new(Shared(place.tables), &place.tensor, place.record.table())
    }

    /// What changes from chunk to chunk.
    #[inline(always)]
    pub(crate) fn parts(&self) -> (WalkState, RingParts) {
        (self.state, self.words.parts())
    }

    /// The chunk at `row`, the second one of two if `is_odd`, as it is coded.
    ///
    /// # Safety
    /// As of [`new`](Self::new); the chunks before this one are behind the lane.
    #[inline(always)]
    pub(crate) unsafe fn chunk<const USUAL: bool>(
        &mut self,
        place: &Place,
        row: u32,
        is_odd: bool,
    ) -> lane::Bytes {
        let tensor = &if USUAL {
            TensorRecord { trellis: USUAL_TRELLIS, planes: 2, low_bits: USUAL_LOW_BITS, ..place.tensor }
        } else {
            place.tensor
        };
        let pair = row / (2 * CHUNK as u32);
        if !is_odd && row + 2 * (CHUNK as u32) < place.item.rows {
            sync_warp(); // the scales whose place is taken have been read
            // SAFETY: there are such rows.
            unsafe { ask_for_rows(place, tensor.planes, self.scales, pair + 1) };
        }
        self.words.top_up();
        if !is_odd {
            let slots = plane_slots(place, pair);
            // SAFETY: they have arrived, for they were asked for two chunks ago.
            let word = |number: usize| unsafe {
                if tensor.planes > number as u32 { load_shared(slots[number]) } else { 0 }
            };
            self.state.planes = [word(0), word(1)];
        }
        let [first, second] = self.state.planes;
        let mut planes = Planes { first, ..Planes::default() };
        if tensor.trellis == 0 {
            planes.lowest = second
        } else {
            planes.highest = second
        }
        let high = tensor.high_planes();
        // SAFETY: the item has a word for each lane; there are as many planes.
        unsafe {
            if tensor.trellis == 0 && tensor.low_bits > 2 {
                planes.highest = plane(place, pair, high);
            }
            if tensor.low_bits > 3 {
                planes.next = plane(place, pair, high + 1);
            }
        }
        let mut lane = Lane { x: self.state.x, path: self.state.path };
        let bytes = lane::chunk(&self.symbols, tensor, &mut lane, &mut self.words, planes, is_odd);
        (self.state.x, self.state.path) = (lane.x, lane.path);
        bytes
    }

    /// The indices of the chunk at `row`, with what its bytes do not tell.
    ///
    /// # Safety
    /// As of [`chunk`](Self::chunk), which gave the bytes.
    #[inline(always)]
    pub(crate) unsafe fn careful(&mut self, place: &Place, row: u32, bytes: lane::Bytes) -> [i32; CHUNK] {
        let Place { tensor, .. } = place;
        let mut indices = lane::by_rows(bytes, tensor.low_bits);
        if tensor.low_bits > 4 {
            let pair = row / (2 * CHUNK as u32);
            // SAFETY: the item has a word for each lane and plane.
            let word = |bit: u32| unsafe { plane(place, pair, tensor.high_planes() + 2 + bit) };
            indices = lane::widen(indices, tensor.low_bits, row / CHUNK as u32 % 2 != 0, word);
        }
        loop {
            // SAFETY: after the last patch comes one that is at no row.
            let patch: Patch = unsafe { place.image.read(place.again().patches, self.state.patch) };
            let at = (patch.place / LANES as u32).wrapping_sub(row);
            if at >= CHUNK as u32 {
                break;
            }
            let mine = patch.place % LANES as u32 == place.lane;
            indices = lane::rows!(ROW => if mine && at == ROW as u32 { patch.index } else { indices[ROW] });
            self.state.patch += 1;
        }
        indices
    }

    /// Behind the last row: the lane's error code, or 0.
    #[inline(always)]
    pub(crate) fn finish(&self) -> u32 {
        let (read, end) = self.words.taken();
        lane::end_code(read, end, self.state.x)
    }
}

/// Where in shared memory the lane's words of the first two planes for two chunks come: there is place for those of the next two too.
#[inline(always)]
fn plane_slots(place: &Place, pair: u32) -> [u32; 2] {
    let first = place.ahead + LANES as u32 * RING_BYTES + (pair % 2 * 2 * LANES as u32 + place.lane) * 4;
    [first, first + LANES as u32 * 4]
}

/// Where in shared memory the scales of the rows of two chunks come, likewise.
#[inline(always)]
fn scale_slot(place: &Place, pair: u32) -> u32 {
    place.ahead + LANES as u32 * (RING_BYTES + 16) + pair % 2 * LANES as u32 * 4
}

/// Begins to copy what there is for the rows of two chunks: the lane's words of the first two planes, and the scale of one row.
///
/// # Safety
/// The image has the item, and that the chunks.
#[inline(always)]
unsafe fn ask_for_rows(place: &Place, planes: u32, scales: bool, pair: u32) {
    let Place { image, item, lane, .. } = place;
    // SAFETY: by the caller; scales lie in memory for multiples of 32 rows.
    unsafe {
        let at = |offset: u32, word: u32| image.at(here(offset)).add(4 * word as usize);
        let word = pair * planes * LANES as u32 + lane;
        let slots = plane_slots(place, pair);
        if planes > 0 {
            copy_word_async(slots[0], at(item.planes, word));
        }
        if planes > 1 {
            copy_word_async(slots[1], at(item.planes, word + LANES as u32));
        }
        if scales {
            copy_word_async(
                scale_slot(place, pair) + lane * 4,
                at(item.row_scales, pair * LANES as u32 + lane),
            );
        }
    }
}

const _: () = assert!(lane::PENDING <= 2, "what was asked for two chunks ago must have arrived");

/// A lane's word of a plane for two chunks.
///
/// # Safety
/// The image has the item, and that the chunks and the plane.
#[inline(always)]
unsafe fn plane(place: &Place, pair: u32, number: u32) -> u32 {
    // SAFETY: by the caller.
    unsafe { place.image.read(place.item.planes, place.tensor.plane_word(pair, number, place.lane)) }
}

/// The code of the item's first lane that has one, to all lanes.
#[inline(always)]
pub(crate) fn first_code(place: &Place, code: u32) -> u32 {
    let wrong = ballot(place.lane < place.item.columns_here && code != 0);
    let first = shuffle(code, wrong.trailing_zeros() % LANES as u32);
    if wrong == 0 { 0 } else { first }
}

/// The weights of a chunk's latents.
#[inline(always)]
pub(crate) fn weights<const CAREFUL: bool>(
    place: &Place,
    column_scale: f32,
    row: u32,
    latents: [i32; CHUNK],
) -> [f32; CHUNK] {
    let unit = place.tensor.latent_unit;
    let (scale, unit) = if CAREFUL { (column_scale, unit) } else { (column_scale * unit, 1.0) };
    let scales = place.row_scales(row);
    lane::rows!(ROW => lane::weight::<CAREFUL>(latents[ROW], unit, scales[ROW / 4][ROW % 4], scale))
}

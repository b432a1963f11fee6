//! What the functions for other people's kernels keep in their callers' memory, and give them.

use bytemuck::{Pod, Zeroable};

use crate::layout::{ItemRecord, LaneRecord, TensorRecord};

/// A tensor of an image: what `nwc_open` finds. It may lie in the memory of a thread, or of a block that shares it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tensor {
    /// Its shape, and how it is coded.
    pub record: TensorRecord,
    /// The image.
    pub image: *const u8,
}

/// One thread on its way down its column of an item, from `nwc_begin` to `nwc_end`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Item {
    /// Where in the tensor the item lies; of the same rows and columns for all threads of the warp.
    pub record: ItemRecord,
    /// The scale of this thread's column; 0 beside the matrix.
    pub column_scale: f32,
    /// The row that comes next, from the item's first.
    pub row: u32,
    /// Number of this thread in its warp, and of its column in the item.
    pub lane: u32,
    /// The library's own, as all that follows.
    pub tensor: *const Tensor,
    /// Where the lane begins.
    pub start: LaneRecord,
    /// Where the lane is.
    pub walk: WalkState,
    /// Where it is among its words.
    pub ring_parts: RingParts,
    /// Where in the image the item's record is.
    pub item_record: u32,
    /// Where in shared memory the warp reads ahead.
    pub ahead: u32,
    /// Where the tables are in shared memory.
    pub tables: u32,
}

/// Weights of 16 rows of a column.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Rows {
    /// The first row's weight first.
    pub weight: [f32; 16],
}

/// Weights of 16 rows of a column in 16 bits each, as binary16 or bfloat16.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct Pairs {
    /// Two rows a word, the first one in its low half.
    pub pair: [u32; 8],
}

/// Where a lane is among its words.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct RingParts {
    /// Place of the next word, in bytes.
    pub read: u32,
    /// Place behind what has been asked for.
    pub asked: u32,
    /// Group of the item's words that some lane asks for next.
    pub next: u32,
}

/// What changes from chunk to chunk, besides the ring's.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct WalkState {
    /// rANS states.
    pub x: [u32; 2],
    /// The path of the chunk before.
    pub path: u32,
    /// The first two planes' words for these 32 rows.
    pub planes: [u32; 2],
    /// Number of the item's next patch.
    pub patch: u32,
}

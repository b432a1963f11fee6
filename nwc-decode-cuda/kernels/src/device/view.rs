//! What the functions for other people's kernels keep in their callers' memory, and give them.

use crate::layout::{ColumnRecord, ItemRecord, TensorRecord};

/// A tensor of an image: what `nwc_open` finds. It may lie in the memory of a thread, or of a block that shares it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tensor {
    /// Its shape, and how it is coded.
    pub record: TensorRecord,
    /// The image.
    pub image: *const u8,
    /// Of the image's header.
    pub units: u32,
    /// Of the image's header.
    pub item_records: u32,
}

/// One thread on its way down its column of an item, from `nwc_begin` to `nwc_end`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Item {
    /// Where in the tensor the item lies; of the same rows and columns for all threads of the warp.
    pub record: ItemRecord,
    /// This thread's column; the scale of a thread beside the matrix is 0.
    pub column: ColumnRecord,
    /// The row that comes next, from the item's first.
    pub row: u32,
    /// Number of this thread in its warp, and of its column in the item.
    pub lane: u32,
    /// The library's own, as all that follows.
    pub tensor: *const Tensor,
    /// State of the range decoder.
    pub x: u32,
    /// State of the trellis.
    pub trellis: u32,
    /// Class of the first row's weight.
    pub first_class: i32,
    /// What has been taken from the ring, and asked for.
    pub ring_parts: [u32; 2],
    /// Where the ring is in shared memory.
    pub ring: u32,
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

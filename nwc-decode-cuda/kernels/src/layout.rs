//! The image: a container's coded tensors as kernels read them, in one block of memory without pointers.
//!
//! Offsets count units of 16 bytes from the image's start, so that it can lie anywhere and be 64 GiB long. An image is made on the host from a checked
//! container; kernels trust its records, and nothing in the words that lanes read: whatever those are, no access leaves the image, the tables
//! or the output.

use bytemuck::{Pod, Zeroable};

/// Size of the unit of offsets, and alignment of everything in an image, in bytes.
pub const UNIT: usize = 16;

/// Threads that decode an item side by side, one a column.
pub const LANES: usize = 32;

/// Rows that are decoded at a time.
pub const CHUNK: usize = 16;

/// Bytes of shared memory that a thread needs for the words that it reads ahead.
pub const RING_BYTES: usize = 128;

/// Bytes of shared memory that a warp needs to turn a chunk of 16-bit numbers around.
pub const TILE_BYTES: usize = CHUNK * LANES * 2 * 5 / 4;

/// Bytes of shared memory that a warp of `nwc_decode` needs beside its threads' rings: for a chunk, and the scales of its rows.
pub const DECODE_WARP_BYTES: usize = TILE_BYTES + CHUNK * 4;

/// Bytes of shared memory that a warp of `nwc_gemv` or `nwc_gemm` needs beside its threads' rings: for a chunk, and sums of some chunks for each kept
/// column of the batch.
pub const fn product_warp_bytes(kept: usize) -> usize {
    TILE_BYTES + chunks_together(kept) * CHUNK * kept * 4
}

/// Chunks whose products a block sums up together: many, so that it need not wait often, as far as their sums have room.
pub const fn chunks_together(kept: usize) -> usize {
    if kept == 1 { 16 } else { 4 }
}

/// What kernels find at the start of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// [`Header::MAGIC`].
    pub magic: u32,
    /// Length of the image in units.
    pub units: u32,
    /// Number of tensors.
    pub tensors: u32,
    /// Where the [`TensorRecord`]s are.
    pub tensor_records: u32,
    /// Number of items of all tensors.
    pub items: u32,
    /// Where the [`ItemRecord`]s are.
    pub item_records: u32,
    /// Zero.
    pub spare: [u32; 2],
}

impl Header {
    /// `NWCi`, little-endian.
    pub const MAGIC: u32 = 0x6943_574E;
}

/// How symbols are looked up.
pub mod form {
    /// Two words a slot, of the two unions: frequency << 20 | offset << 8 | index, an index in -127..=127 or [`super::ESCAPE`]. In shared
    /// memory, with a trellis of at most 64 states that is a shift register.
    pub const DIRECT: u32 = 0;
    /// A byte a slot, the symbol, then two words a symbol: `start | frequency << 16` and the index of union 0. In shared memory.
    pub const INDEXED: u32 = 1;
    /// The same, left in global memory for want of space.
    pub const GLOBAL: u32 = 2;
}

/// The index, as a byte, of an escape in a table of form [`form::DIRECT`].
pub const ESCAPE: i8 = -128;

/// The index of an escape in a table of the other forms.
pub const INDEXED_ESCAPE: u32 = 0x8000_0000;

/// A tensor, or a part of one that shares tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TensorRecord {
    /// Output rows of one matrix.
    pub out: u32,
    /// Input columns of one matrix.
    pub input: u32,
    /// Number of matrices.
    pub batch: u32,
    /// 1 if lanes walk along output rows and not down input columns.
    pub transposed: u32,
    /// Its first item.
    pub first_item: u32,
    /// Number of its items.
    pub items: u32,
    /// Items that lie side by side and have the same rows: an item's number modulo this is its place.
    pub items_across: u32,
    /// One of [`form`].
    pub form: u32,
    /// Where its tables are.
    pub tables: u32,
    /// Bytes of its tables, a multiple of [`UNIT`].
    pub table_bytes: u32,
    /// Bits of a slot.
    pub precision: u32,
    /// Number of classes in its tables.
    pub classes: u32,
    /// 2 if tables are split by the parity of the trellis state, else 1.
    pub unions: u32,
    /// 1 with a trellis: an index is then twice the value and the parity of the state.
    pub trellis: u32,
    /// [`form::DIRECT`]: what the next state is combined with if the state is odd (low 16 bits) and if the value is (high 16 bits).
    /// Otherwise where, in bytes, the table of next states begins in the tables.
    pub taps: u32,
    /// 1 for the Hadamard synthesis.
    pub hadamard: u32,
    /// [`form::INDEXED`]: symbols that a table has place for.
    pub symbols: u32,
    /// [`form::INDEXED`]: where, in bytes, the symbols' entries begin in the tables.
    pub entries: u32,
    /// Zero.
    pub spare: [u32; 2],
}

/// What kernels need to know of an item besides where it is.
pub mod flag {
    /// Its rows differ in class, or a weight could overflow the output, or rows are missing in its last chunk: decoded with every check.
    pub const CAREFUL: u32 = 1;
    /// It ends its tile: every lane's state must then be the bottom of its range.
    pub const LAST: u32 = 2;
}

/// Neighbouring rows of up to [`LANES`] neighbouring columns: what a warp decodes.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ItemRecord {
    /// Where its words are: those of the first lane, then those of the second and so on.
    pub words: u32,
    /// Where its [`LaneRecord`]s are: one for each of [`LANES`] lanes, and one whose start is the end of the last lane's words.
    pub lanes: u32,
    /// Where the [`LANES`] [`ColumnRecord`]s of its columns are.
    pub columns: u32,
    /// Where the scales of its rows are: one `f32` a row, the first row's at the offset.
    pub row_scales: u32,
    /// Where the classes of its rows are: one `i32` a row.
    pub row_classes: u32,
    /// First row, in its matrix as coded.
    pub first_row: u32,
    /// Number of rows.
    pub rows: u32,
    /// First column, in its matrix as coded.
    pub first_column: u32,
    /// Number of columns.
    pub columns_here: u32,
    /// Which matrix.
    pub matrix: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// An error code of the decoder if the item is known to be damaged, else 0.
    pub error: u32,
    /// The largest of its rows' scales.
    pub largest_row_scale: f32,
    /// Where a bit for each of its chunks is: 1 if there is an escape in it.
    pub escapes: u32,
    /// Zero.
    pub spare: [u32; 2],
}

/// A lane at an item's first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LaneRecord {
    /// rANS state.
    pub state: u32,
    /// First of its words, among the item's, in the low 24 bits; trellis state in the high 8.
    pub start_and_trellis: u32,
}

impl LaneRecord {
    /// First of the lane's words among the item's.
    #[inline]
    pub const fn start(self) -> u32 {
        self.start_and_trellis & 0xFF_FFFF
    }

    /// Trellis state.
    #[inline]
    pub const fn trellis(self) -> u32 {
        self.start_and_trellis >> 24
    }
}

/// A column of an item.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ColumnRecord {
    /// Its scale.
    pub scale: f32,
    /// Its class, counted from the first that the tables hold.
    pub class: i32,
}

/// What a block of threads decodes: neighbouring items of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockRecord {
    /// Number of the tensor in the image.
    pub tensor: u32,
    /// The first item.
    pub first_item: u32,
    /// Number of items.
    pub items: u32,
    /// Number of the output.
    pub output: u32,
}

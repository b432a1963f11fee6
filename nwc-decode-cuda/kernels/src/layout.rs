//! The image: a container's coded tensors as kernels read them, in one block of memory without pointers.
//!
//! Offsets count units of 16 bytes from the image's start, so that it can lie anywhere and be 64 GiB long. An image is made on the host from a checked
//! container; kernels trust its records, but for lanes', and nothing in words and planes: whatever those are, no access leaves the image, the tables,
//! the warp's shared memory or the output.

use bytemuck::{Pod, Zeroable};

/// Size of the unit of offsets, and alignment of everything in an image, in bytes.
pub const UNIT: usize = 16;

/// Threads that decode an item side by side, one a column.
pub const LANES: usize = 32;

/// Rows that are decoded at a time.
pub const CHUNK: usize = 16;

/// Bytes of words that a lane asks for at a time.
pub const GROUP: usize = 8;

/// Bytes of shared memory that hold the words that a lane reads ahead.
pub const RING_BYTES: usize = 32;

/// Bytes of shared memory that a warp needs for what it reads ahead: its lanes' rings, and twice 32 rows of two planes and of row scales.
pub const AHEAD_BYTES: usize = LANES * (RING_BYTES + 24);

/// Bytes of shared memory that a warp needs to turn a chunk of 16-bit numbers around.
///
/// cbindgen:ignore
pub const TILE_BYTES: usize = CHUNK * LANES * 2 * 5 / 4;

/// Bytes of shared memory that a warp of `nwc_decode` needs beside what it reads ahead: for a chunk.
///
/// cbindgen:ignore
pub const DECODE_WARP_BYTES: usize = TILE_BYTES;

/// Bytes of shared memory that a warp of the products needs beside what it reads ahead: for a chunk, and for the sums of `together` chunks with each of `kept`
/// columns of the batch.
pub const fn product_warp_bytes(kept: usize, together: usize) -> usize {
    TILE_BYTES + sums_bytes(kept, together)
}

/// Bytes of these sums.
pub const fn sums_bytes(kept: usize, together: usize) -> usize {
    together * CHUNK * kept * 4
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
    /// Zero.
    pub spare: [u32; 3],
}

impl Header {
    /// `NWCi`, little-endian.
    pub const MAGIC: u32 = 0x6943_574E;
}

/// A tensor.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
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
    /// Where the [`ItemRecord`]s of its items are.
    pub item_records: u32,
    /// Where the [`LaneRecord`]s of its items are: [`LANES`] of them for each item.
    pub lanes: u32,
    /// Where its tables are: `table_count` of them, one behind the other, of 2^`precision` slots of four bytes.
    ///
    /// A slot is its symbol's frequency, a byte, the offset in the symbol's range, a byte, and the coarse values of its four weights, four bits each: the first
    /// two's above the last two's in the two high bytes.
    pub tables: u32,
    /// Bytes of its tables and its network, a multiple of [`UNIT`].
    pub table_bytes: u32,
    /// Number of its tables.
    pub table_count: u32,
    /// Bits of a slot's number.
    pub precision: u32,
    /// Binary logarithm of the states of the trellis, or 0 if there is none: the two lowest bits of an index follow from the path then.
    pub trellis: u32,
    /// Low bits of an index that symbols do not tell: none, or two and more.
    pub low_bits: u32,
    /// Planes of an item: with a trellis, one for the path and one for each low bit above the second; otherwise one for each low bit.
    pub planes: u32,
    /// How latents come of indices: 0 if they are the same, 1 by the Hadamard transform, 2 by a learned matrix, 3 by one and a hidden layer, 4 by one and two hidden layers.
    pub synthesis: u32,
    /// Length of the image in units.
    pub units: u32,
    /// Where behind the start of its tables its network is, in bytes; with a learned synthesis only.
    pub network: u32,
    /// What a latent counts, a power of two: latents are fixed-point numbers.
    pub latent_unit: f32,
}

/// Chunks that a block of `nwc_restore_residual` restores.
///
/// cbindgen:ignore
pub const RESIDUAL_CHUNKS: usize = 64;

/// Bytes from such a chunk's inputs to the next one's: 16 numbers and 8 to spare, so that rows lie in different banks. The same for hidden units.
///
/// cbindgen:ignore
pub const RESIDUAL_INPUT_STRIDE: u32 = 2 * (CHUNK as u32 + 8);

/// Bytes from such a chunk's output to the next one's.
///
/// cbindgen:ignore
pub const RESIDUAL_OUTPUT_STRIDE: u32 = 4 * (CHUNK as u32 + 1);

/// What `nwc_restore_residual` is to do: a network of the paper's form, and a tensor.
///
/// cbindgen:ignore
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ResidualRecord {
    /// Hidden units, a multiple of 32 of at most 512.
    pub width: u32,
    /// Residual blocks.
    pub blocks: u32,
    /// Number of matrices.
    pub batch: u32,
    /// Output rows of one matrix.
    pub out: u32,
    /// Input columns of one matrix.
    pub input: u32,
    /// The code of the weights' type.
    pub dtype: u32,
}

impl ResidualRecord {
    /// Blocks of up to 16 rows.
    #[inline(always)]
    pub const fn row_blocks(&self) -> u32 {
        self.batch * self.out.div_ceil(CHUNK as u32)
    }

    /// Bytes from a chunk's hidden units to the next one's.
    #[inline(always)]
    pub const fn hidden_stride(&self) -> u32 {
        2 * (self.width + 8)
    }

    /// Where the levels' factors begin among the vectors: behind the first layer's biases, those of each block with gains and offsets, and the last layer's.
    #[inline(always)]
    pub const fn factors(&self) -> u32 {
        (1 + 3 * self.blocks) * self.width + CHUNK as u32
    }

    /// Where in a block's shared memory, behind the inputs, hidden units, moments of each warp, moments of all and outputs begin, and where they end.
    #[inline(always)]
    pub const fn shared(&self) -> [u32; 5] {
        let chunks = RESIDUAL_CHUNKS as u32;
        let hidden = chunks * RESIDUAL_INPUT_STRIDE;
        let partial = hidden + chunks * self.hidden_stride();
        let moments = partial + chunks * 8 * (self.width / LANES as u32);
        let outputs = moments + chunks * 8;
        [hidden, partial, moments, outputs, outputs + chunks * RESIDUAL_OUTPUT_STRIDE]
    }
}

/// How latents come of indices (docs/bitstream.md §9).
pub mod synthesis {
    /// They are the same.
    ///
    /// cbindgen:ignore
    pub const IDENTITY: u32 = 0;
    /// By the Hadamard transform.
    ///
    /// cbindgen:ignore
    pub const HADAMARD: u32 = 1;
    /// By a matrix that was learned.
    ///
    /// cbindgen:ignore
    pub const LINEAR: u32 = 2;
    /// By a matrix and a hidden layer.
    ///
    /// cbindgen:ignore
    pub const LAYER: u32 = 3;
    /// By a matrix and two hidden layers.
    ///
    /// cbindgen:ignore
    pub const LAYERS: u32 = 4;
}

impl TensorRecord {
    /// Number of the plane of the highest of more than two low bits; those of the next lower ones come behind it.
    #[inline(always)]
    pub const fn high_planes(&self) -> u32 {
        if self.trellis == 0 { 2 } else { 1 }
    }

    /// Place of a lane's word of plane `number`, among an item's words of planes, for two chunks.
    #[inline(always)]
    pub const fn plane_word(&self, pair: u32, number: u32, lane: u32) -> u32 {
        (pair * self.planes + number) * LANES as u32 + lane
    }

    /// Where the record of item `number` is.
    #[inline(always)]
    pub const fn item_record(&self, number: u32) -> u32 {
        self.item_records + number * (size_of::<ItemRecord>() / UNIT) as u32
    }

    /// Number of blocks of up to `wide` items that decode it: neighbours in a row of items, so that what they write lies side by side, in blocks about equally
    /// wide.
    #[inline]
    pub const fn blocks(&self, wide: u32) -> u32 {
        if self.items == 0 { 0 } else { self.items / self.items_across * self.items_across.div_ceil(wide) }
    }

    /// Block `number` of these.
    #[inline(always)]
    pub const fn block(self, number: u32, wide: u32, output: u32) -> BlockRecord {
        let in_a_row = self.items_across.div_ceil(wide);
        let width = self.items_across.div_ceil(in_a_row);
        let (row, first) = (number / in_a_row, number % in_a_row * width);
        let left = self.items_across - first;
        let items = if left < width { left } else { width };
        BlockRecord { tensor: self, first_item: row * self.items_across + first, items, output, spare: 0 }
    }
}

/// What kernels need to know of an item besides where it is.
pub mod flag {
    /// A weight could overflow the output, or rows are missing in its last chunk, or indices do not fit a byte: every chunk is decoded with every check.
    pub const CAREFUL: u32 = 1;
    /// The scales of its columns are all 1.
    pub const PLAIN_COLUMNS: u32 = 2;
}

/// Neighbouring rows of up to [`LANES`] neighbouring columns: what a warp decodes.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ItemRecord {
    /// Where its words are: [`GROUP`]s of all lanes, in the order in which lanes ask for them.
    pub words: u32,
    /// Where its planes are: for every 32 rows, for every plane, a word for each of [`LANES`] lanes. Row r of the first 16 has bit 2r + 1, of the others bit 2r.
    pub planes: u32,
    /// Where the scales of its [`LANES`] columns are, one `f32` each.
    pub column_scales: u32,
    /// Where the scales of its rows are: one `f32` a row, the first row's at the offset, and more up to a multiple of 32 rows.
    pub row_scales: u32,
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
    /// A bit for each of its first 32 chunks: 1 if there are patches for it.
    pub first_patched: u32,
    /// Where such bits for all its chunks are.
    pub patched: u32,
    /// Where its [`Patch`]es are, by rows, with [`Patch::END`] behind the last.
    pub patches: u32,
    /// Zero.
    pub spare: u32,
}

/// An index that symbols and planes do not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Patch {
    /// Row of the item times [`LANES`], and the lane.
    pub place: u32,
    /// The index.
    pub index: i32,
}

impl Patch {
    /// What comes after the last.
    pub const END: Self = Self { place: u32::MAX, index: 0 };
}

/// A lane at an item's first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LaneRecord {
    /// The rANS states that take turns.
    pub states: [u32; 2],
    /// Number of its words in the low 16 bits, then 8 bits of the path before the item, the latest lowest, then the number of its table.
    pub rest: u32,
}

impl LaneRecord {
    /// Of its parts.
    #[inline]
    pub const fn new(states: [u32; 2], words: u16, path: u8, table: u8) -> Self {
        Self { states, rest: words as u32 | (path as u32) << 16 | (table as u32) << 24 }
    }

    /// Number of the lane's words.
    #[inline]
    pub const fn words(self) -> u32 {
        self.rest & 0xFFFF
    }

    /// The path's last bits before the item, the latest lowest.
    #[inline]
    pub const fn path(self) -> u32 {
        self.rest >> 16 & 0xFF
    }

    /// Number of the lane's table.
    #[inline]
    pub const fn table(self) -> u32 {
        self.rest >> 24
    }
}

/// What a block of threads decodes: neighbouring items of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockRecord {
    /// The tensor, so that a block need not look for it.
    pub tensor: TensorRecord,
    /// The first item, among the tensor's.
    pub first_item: u32,
    /// Number of items.
    pub items: u32,
    /// Number of the output.
    pub output: u32,
    /// Zero.
    pub spare: u32,
}

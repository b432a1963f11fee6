// The layout of an image, and what the device functions of nwc_decode.cuh keep in their callers' memory.
//
// Offsets count units of 16 bytes from the image's start; all is little-endian. Made by `cargo xtask ptx` from
// nwc-decode-cuda/kernels/src: do not edit.

#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define NWC_ALIGNED(bytes) alignas(bytes)
#else
#define NWC_ALIGNED(bytes) __attribute__((aligned(bytes)))
#endif

// Size of the unit of offsets, and alignment of everything in an image, in bytes.
#define NWC_UNIT 16

// Threads that decode an item side by side, one a column.
#define NWC_LANES 32

// Rows that are decoded at a time.
#define NWC_CHUNK 16

// Bytes of words that a lane asks for at a time.
#define NWC_GROUP 8

// Bytes of shared memory that hold the words that a lane reads ahead.
#define NWC_RING_BYTES 32

// Bytes of shared memory that a warp needs for what it reads ahead: its lanes' rings, and twice 32 rows of two planes and of row scales.
#define NWC_AHEAD_BYTES (NWC_LANES * (NWC_RING_BYTES + 24))

// A weight could overflow the output, or rows are missing in its last chunk, or indices do not fit a byte: every chunk is decoded with every check.
#define NWC_FLAG_CAREFUL 1

// The scales of its columns are all 1.
#define NWC_FLAG_PLAIN_COLUMNS 2

// What kernels find at the start of an image.
typedef struct NwcHeader {
  // NWC_MAGIC.
  uint32_t magic;
  // Length of the image in units.
  uint32_t units;
  // Number of tensors.
  uint32_t tensors;
  // Where the NwcTensorRecords are.
  uint32_t tensor_records;
  // Number of items of all tensors.
  uint32_t items;
  // Zero.
  uint32_t spare[3];
} NwcHeader;
// `NWCi`, little-endian.
#define NWC_MAGIC 1766020942

// A tensor.
typedef struct NwcTensorRecord {
  // Output rows of one matrix.
  uint32_t out;
  // Input columns of one matrix.
  uint32_t input;
  // Number of matrices.
  uint32_t batch;
  // 1 if lanes walk along output rows and not down input columns.
  uint32_t transposed;
  // Its first item.
  uint32_t first_item;
  // Number of its items.
  uint32_t items;
  // Items that lie side by side and have the same rows: an item's number modulo this is its place.
  uint32_t items_across;
  // Where the NwcItemRecords of its items are.
  uint32_t item_records;
  // Where the NwcLaneRecords of its items are: NWC_LANES of them for each item.
  uint32_t lanes;
  // Where its tables are: `table_count` of them, one behind the other, of 2^`precision` slots of four bytes.
  //
  // A slot is its symbol's frequency, a byte, the offset in the symbol's range, a byte, and the coarse values of its four weights, four bits each: the first
  // two's above the last two's in the two high bytes.
  uint32_t tables;
  // Bytes of its tables and its network, a multiple of NWC_UNIT.
  uint32_t table_bytes;
  // Number of its tables.
  uint32_t table_count;
  // Bits of a slot's number.
  uint32_t precision;
  // Binary logarithm of the states of the trellis, or 0 if there is none: the two lowest bits of an index follow from the path then.
  uint32_t trellis;
  // Low bits of an index that symbols do not tell: none, or two and more.
  uint32_t low_bits;
  // Planes of an item: with a trellis, one for the path and one for each low bit above the second; otherwise one for each low bit.
  uint32_t planes;
  // How latents come of indices: 0 if they are the same, 1 by the Hadamard transform, 2 by a learned matrix, 3 by one and a hidden layer, 4 by one and two hidden layers.
  uint32_t synthesis;
  // Length of the image in units.
  uint32_t units;
  // Where behind the start of its tables its network is, in bytes; with a learned synthesis only.
  uint32_t network;
  // What a latent counts, a power of two: latents are fixed-point numbers.
  float latent_unit;
} NwcTensorRecord;

// Neighbouring rows of up to NWC_LANES neighbouring columns: what a warp decodes.
typedef struct NwcItemRecord {
  // Where its words are: NWC_GROUPs of all lanes, in the order in which lanes ask for them.
  uint32_t words;
  // Where its planes are: for every 32 rows, for every plane, a word for each of NWC_LANES lanes. Row r of the first 16 has bit 2r + 1, of the others bit 2r.
  uint32_t planes;
  // Where the scales of its NWC_LANES columns are, one `f32` each.
  uint32_t column_scales;
  // Where the scales of its rows are: one `f32` a row, the first row's at the offset, and more up to a multiple of 32 rows.
  uint32_t row_scales;
  // First row, in its matrix as coded.
  uint32_t first_row;
  // Number of rows.
  uint32_t rows;
  // First column, in its matrix as coded.
  uint32_t first_column;
  // Number of columns.
  uint32_t columns_here;
  // Which matrix.
  uint32_t matrix;
  // NWC_FLAG_* bits.
  uint32_t flags;
  // An error code of the decoder if the item is known to be damaged, else 0.
  uint32_t error;
  // The largest of its rows' scales.
  float largest_row_scale;
  // A bit for each of its first 32 chunks: 1 if there are patches for it.
  uint32_t first_patched;
  // Where such bits for all its chunks are.
  uint32_t patched;
  // Where its NwcPatches are, by rows, with NWC_PATCH_END behind the last.
  uint32_t patches;
  // Zero.
  uint32_t spare;
} NwcItemRecord;

// A lane at an item's first row.
typedef struct NwcLaneRecord {
  // The rANS states that take turns.
  uint32_t states[2];
  // Number of its words in the low 16 bits, then 8 bits of the path before the item, the latest lowest, then the number of its table.
  uint32_t rest;
} NwcLaneRecord;

// An index that symbols and planes do not give.
typedef struct NwcPatch {
  // Row of the item times NWC_LANES, and the lane.
  uint32_t place;
  // The index.
  int32_t index;
} NwcPatch;
// What comes after the last.
#define NWC_PATCH_END (NwcPatch){ .place = UINT32_MAX, .index = 0 }

// What a block of threads decodes: neighbouring items of one tensor.
typedef struct NwcBlockRecord {
  // The tensor, so that a block need not look for it.
  struct NwcTensorRecord tensor;
  // The first item, among the tensor's.
  uint32_t first_item;
  // Number of items.
  uint32_t items;
  // Number of the output.
  uint32_t output;
  // Zero.
  uint32_t spare;
} NwcBlockRecord;

// A tensor of an image: what `nwc_open` finds. It may lie in the memory of a thread, or of a block that shares it.
typedef struct NwcTensor {
  // Its shape, and how it is coded.
  struct NwcTensorRecord record;
  // The image.
  const uint8_t *image;
} NwcTensor;

// What changes from chunk to chunk, besides the ring's.
typedef struct NwcWalkState {
  // rANS states.
  uint32_t x[2];
  // The path of the chunk before.
  uint32_t path;
  // The first two planes' words for these 32 rows.
  uint32_t planes[2];
  // Number of the item's next patch.
  uint32_t patch;
} NwcWalkState;

// Where a lane is among its words.
typedef struct NwcRingParts {
  // Place of the next word, in bytes.
  uint32_t read;
  // Place behind what has been asked for.
  uint32_t asked;
  // Group of the item's words that some lane asks for next.
  uint32_t next;
} NwcRingParts;

// One thread on its way down its column of an item, from `nwc_begin` to `nwc_end`.
typedef struct NwcItem {
  // Where in the tensor the item lies; of the same rows and columns for all threads of the warp.
  struct NwcItemRecord record;
  // The scale of this thread's column; 0 beside the matrix.
  float column_scale;
  // The row that comes next, from the item's first.
  uint32_t row;
  // Number of this thread in its warp, and of its column in the item.
  uint32_t lane;
  // The library's own, as all that follows.
  const struct NwcTensor *tensor;
  // Where the lane begins.
  struct NwcLaneRecord start;
  // Where the lane is.
  struct NwcWalkState walk;
  // Where it is among its words.
  struct NwcRingParts ring_parts;
  // Where in the image the item's record is.
  uint32_t item_record;
  // Where in shared memory the warp reads ahead.
  uint32_t ahead;
  // Where the tables are in shared memory.
  uint32_t tables;
} NwcItem;

// Weights of 16 rows of a column.
typedef struct NWC_ALIGNED(16) NwcRows {
  // The first row's weight first.
  float weight[16];
} NwcRows;

// Weights of 16 rows of a column in 16 bits each, as binary16 or bfloat16.
typedef struct NWC_ALIGNED(16) NwcPairs {
  // Two rows a word, the first one in its low half.
  uint32_t pair[8];
} NwcPairs;

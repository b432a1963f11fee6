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

// Bytes of shared memory that a thread needs for the words that it reads ahead.
#define NWC_RING_BYTES 128

// Bytes of shared memory that a warp needs to turn a chunk of 16-bit numbers around.
#define TILE_BYTES ((((NWC_CHUNK * NWC_LANES) * 2) * 5) / 4)

// Bytes of shared memory that a warp of `nwc_decode` needs beside its threads' rings: for a chunk, and the scales of its rows.
#define DECODE_WARP_BYTES (TILE_BYTES + (NWC_CHUNK * 4))

// The index, as a byte, of an escape in a table of form NWC_FORM_DIRECT.
#define NWC_ESCAPE -128

// The index of an escape in a table of the other forms.
#define NWC_INDEXED_ESCAPE 2147483648

// Two words a slot, of the two unions: frequency << 20 | offset << 8 | index, an index in -127..=127 or NWC_ESCAPE. In shared
// memory, with a trellis of at most 64 states that is a shift register.
#define NWC_FORM_DIRECT 0

// A byte a slot, the symbol, then two words a symbol: `start | frequency << 16` and the index of union 0. In shared memory.
#define NWC_FORM_INDEXED 1

// The same, left in global memory for want of space.
#define NWC_FORM_GLOBAL 2

// Its rows differ in class, or a weight could overflow the output, or rows are missing in its last chunk: decoded with every check.
#define NWC_FLAG_CAREFUL 1

// It ends its tile: every lane's state must then be the bottom of its range.
#define NWC_FLAG_LAST 2

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
  // Where the NwcItemRecords are.
  uint32_t item_records;
  // Zero.
  uint32_t spare[2];
} NwcHeader;
// `NWCi`, little-endian.
#define NWC_MAGIC 1766020942

// A tensor, or a part of one that shares tables.
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
  // One of NWC_FORM_*.
  uint32_t form;
  // Where its tables are.
  uint32_t tables;
  // Bytes of its tables, a multiple of NWC_UNIT.
  uint32_t table_bytes;
  // Bits of a slot.
  uint32_t precision;
  // Number of classes in its tables.
  uint32_t classes;
  // 2 if tables are split by the parity of the trellis state, else 1.
  uint32_t unions;
  // 1 with a trellis: an index is then twice the value and the parity of the state.
  uint32_t trellis;
  // NWC_FORM_DIRECT: what the next state is combined with if the state is odd (low 16 bits) and if the value is (high 16 bits).
  // Otherwise where, in bytes, the table of next states begins in the tables.
  uint32_t taps;
  // 1 for the Hadamard synthesis.
  uint32_t hadamard;
  // NWC_FORM_INDEXED: symbols that a table has place for.
  uint32_t symbols;
  // NWC_FORM_INDEXED: where, in bytes, the symbols' entries begin in the tables.
  uint32_t entries;
  // Zero.
  uint32_t spare[2];
} NwcTensorRecord;

// Neighbouring rows of up to NWC_LANES neighbouring columns: what a warp decodes.
typedef struct NwcItemRecord {
  // Where its words are: those of the first lane, then those of the second and so on.
  uint32_t words;
  // Where its NwcLaneRecords are: one for each of NWC_LANES lanes, and one whose start is the end of the last lane's words.
  uint32_t lanes;
  // Where the NWC_LANES NwcColumnRecords of its columns are.
  uint32_t columns;
  // Where the scales of its rows are: one `f32` a row, the first row's at the offset.
  uint32_t row_scales;
  // Where the classes of its rows are: one `i32` a row.
  uint32_t row_classes;
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
  // Where a bit for each of its chunks is: 1 if there is an escape in it.
  uint32_t escapes;
  // Zero.
  uint32_t spare[2];
} NwcItemRecord;

// A lane at an item's first row.
typedef struct NwcLaneRecord {
  // rANS state.
  uint32_t state;
  // First of its words, among the item's, in the low 24 bits; trellis state in the high 8.
  uint32_t start_and_trellis;
} NwcLaneRecord;

// A column of an item.
typedef struct NwcColumnRecord {
  // Its scale.
  float scale;
  // Its class, counted from the first that the tables hold.
  int32_t class_;
} NwcColumnRecord;

// What a block of threads decodes: neighbouring items of one tensor.
typedef struct NwcBlockRecord {
  // Number of the tensor in the image.
  uint32_t tensor;
  // The first item.
  uint32_t first_item;
  // Number of items.
  uint32_t items;
  // Number of the output.
  uint32_t output;
} NwcBlockRecord;

// A tensor of an image: what `nwc_open` finds. It may lie in the memory of a thread, or of a block that shares it.
typedef struct NwcTensor {
  // Its shape, and how it is coded.
  struct NwcTensorRecord record;
  // The image.
  const uint8_t *image;
  // Of the image's header.
  uint32_t units;
  // Of the image's header.
  uint32_t item_records;
} NwcTensor;

// One thread on its way down its column of an item, from `nwc_begin` to `nwc_end`.
typedef struct NwcItem {
  // Where in the tensor the item lies; of the same rows and columns for all threads of the warp.
  struct NwcItemRecord record;
  // This thread's column; the scale of a thread beside the matrix is 0.
  struct NwcColumnRecord column;
  // The row that comes next, from the item's first.
  uint32_t row;
  // Number of this thread in its warp, and of its column in the item.
  uint32_t lane;
  // The library's own, as all that follows.
  const struct NwcTensor *tensor;
  // State of the range decoder.
  uint32_t x;
  // State of the trellis.
  uint32_t trellis;
  // Class of the first row's weight.
  int32_t first_class;
  // What has been taken from the ring, and asked for.
  uint32_t ring_parts[2];
  // Where the ring is in shared memory.
  uint32_t ring;
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

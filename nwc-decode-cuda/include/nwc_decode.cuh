// The NWC decoder's device functions, for CUDA C++17 kernels. docs/cuda.md says how to link them and shows a whole kernel.
//
// An image (nwc_image.h) has tensors, a tensor has items: up to some hundred rows of 32 neighbouring columns. A warp decodes an item, each of its
// threads one column, 16 rows a call:
//
//     NwcItem item;
//     nwc_begin(&item, &tensor, tables, number, ahead);
//     for (uint32_t row = 0; row < item.record.rows; row += NWC_CHUNK) {
//         NwcPairs weights = nwc_next_f16(&item);
//         ...
//     }
//     uint32_t code = nwc_end(&item);
//
// From nwc_begin to nwc_end all 32 threads of the warp come together, those beside the matrix too. No function waits for other warps: blocks synchronise
// where it is said that the caller does. Errors are the decoder's codes (docs/bitstream.md §12), and 0 is success.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "nwc_image.h"

// ---- On the host ----

// Whether these bytes begin as an image and are as long as it says.
inline bool nwc_is_image(const void* image, size_t bytes) {
    const NwcHeader* header = static_cast<const NwcHeader*>(image);
    return bytes >= sizeof(NwcHeader) && header->magic == NWC_MAGIC && size_t{header->units} * NWC_UNIT == bytes;
}

// A tensor's record, in an image that the caller can read; `number` is below the header's `tensors`.
__host__ __device__ inline const NwcTensorRecord* nwc_tensor_record(const void* image, uint32_t number) {
    const char* bytes = static_cast<const char*>(image);
    size_t offset = size_t{reinterpret_cast<const NwcHeader*>(bytes)->tensor_records} * NWC_UNIT;
    return reinterpret_cast<const NwcTensorRecord*>(bytes + offset) + number;
}

// Bytes of shared memory that a block needs for the tensor's tables. For each of its warps it needs NWC_AHEAD_BYTES more.
__host__ __device__ inline uint32_t nwc_table_bytes(const NwcTensorRecord* record) {
    return record->table_bytes;
}

// ---- On the device ----

// The first multiple of NWC_RING_BYTES in shared memory from `memory` on, for what warps read ahead. A kernel's dynamic shared memory begins at a multiple of 16
// only, whatever its declaration says: take NWC_RING_BYTES more, and pass it through this.
__device__ inline unsigned char* nwc_align(void* memory) {
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(memory));
    return static_cast<unsigned char*>(memory) + (0u - address) % NWC_RING_BYTES;
}

extern "C" {

// Finds a tensor of an image in global memory; 35 if there is none of this number, 2 if this is no image. One thread does it for itself, or one for
// all that see `tensor`, which may lie in shared memory: the caller then synchronises.
__device__ uint32_t nwc_open(NwcTensor* tensor, const void* image, uint32_t number);

// Copies the tensor's tables to `tables`: nwc_table_bytes of shared memory at a multiple of 16. Each of `threads` threads calls it with its number
// among them. Its share is there when it returns; the caller synchronises before any of them begins an item.
__device__ void nwc_stage(const NwcTensor* tensor, void* tables, uint32_t thread, uint32_t threads);

// Goes to the first row of an item of the tensor, below `tensor->record.items`. `ahead` is shared memory of this warp alone until nwc_end,
// NWC_AHEAD_BYTES at a multiple of NWC_RING_BYTES (see nwc_align), or the item has the error 33. `tensor`, `tables` and `ahead` stay where they are until then.
//
// Afterwards `item->record` says where the item is (first_row, rows, first_column, columns_here, matrix), in the matrix as it is coded: if
// `tensor->record.transposed`, its rows are inputs and its columns outputs. Returns, to all threads, the code of an item that is known to be damaged, or 35:
// such an item may be gone through all the same, its weights are 0.
__device__ uint32_t nwc_begin(NwcItem* item, const NwcTensor* tensor, const void* tables, uint32_t number, void* ahead);

// The weights of the next 16 rows of this thread's column, item->record.first_column + item->lane: those that the host decodes, as binary32, binary16 or
// bfloat16. Behind the last row and beside the matrix they are zeros. The results of nwc_next_f16 and nwc_next_bf16 come in registers, those of
// nwc_next_f32 through the thread's stack.
__device__ NwcRows nwc_next_f32(NwcItem* item);
__device__ NwcPairs nwc_next_f16(NwcItem* item);
__device__ NwcPairs nwc_next_bf16(NwcItem* item);

// Leaves an item: `ahead` is free. After its last row, returns to all threads what is wrong with it, or 0; if some rows were not asked for, the code
// means nothing.
__device__ uint32_t nwc_end(const NwcItem* item);

}  // extern "C"

// ---- Tiles for tensor cores ----

// Writes the warp's 16 rows of 32 columns column by column: this thread's 16 rows lie one behind the other from tile + lane * column_bytes on. `tile` and
// column_bytes are multiples of 16; with column_bytes = 16 * an odd number no two threads meet in a bank. The caller synchronises the warp.
__device__ inline void nwc_store_columns(void* tile, uint32_t column_bytes, uint32_t lane, const NwcPairs& rows) {
    uint4* column = reinterpret_cast<uint4*>(static_cast<char*>(tile) + lane * column_bytes);
    column[0] = make_uint4(rows.pair[0], rows.pair[1], rows.pair[2], rows.pair[3]);
    column[1] = make_uint4(rows.pair[4], rows.pair[5], rows.pair[6], rows.pair[7]);
}

// The same row by row: 32 columns of 2 bytes from tile + row * row_bytes on. `tile` and row_bytes are multiples of 2.
__device__ inline void nwc_store_rows(void* tile, uint32_t row_bytes, uint32_t lane, const NwcPairs& rows) {
#pragma unroll
    for (uint32_t row = 0; row < NWC_CHUNK; ++row) {
        char* place = static_cast<char*>(tile) + row * row_bytes + lane * 2;
        *reinterpret_cast<uint16_t*>(place) = static_cast<uint16_t>(rows.pair[row / 2] >> (row % 2 * 16));
    }
}

// Device functions of the NWC decoder, for other people's kernels.
#pragma once

extern "C" {
// The sum of two numbers, wrapping.
__device__ unsigned nwc_probe_add(unsigned a, unsigned b);
// A word of the block's dynamic shared memory.
__device__ unsigned nwc_probe_shared(unsigned index);
}

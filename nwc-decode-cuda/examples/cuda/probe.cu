// A kernel of one's own, with its own dynamic shared memory, that calls functions of the library.
#include <cstdio>

#include "nwc_decode.cuh"

extern __shared__ unsigned mine[];

__global__ void probe(unsigned* out) {
    mine[threadIdx.x] = 100 * threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = nwc_probe_add(nwc_probe_shared(31 - threadIdx.x), threadIdx.x);
}

static bool succeeded(cudaError_t error) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    }
    return error == cudaSuccess;
}

int main() {
    unsigned* device = nullptr;
    unsigned host[32];
    if (!succeeded(cudaMalloc(&device, sizeof host))) {
        return 1;
    }
    probe<<<1, 32, sizeof host>>>(device);
    if (!succeeded(cudaGetLastError()) ||
        !succeeded(cudaMemcpy(host, device, sizeof host, cudaMemcpyDeviceToHost))) {
        return 1;
    }
    for (unsigned i = 0; i < 32; ++i) {
        if (host[i] != 100 * (31 - i) + i) {
            std::fprintf(stderr, "thread %u: %u\n", i, host[i]);
            return 1;
        }
    }
    std::puts("all threads are right");
    return 0;
}

// y = W x by a kernel of one's own, whose weights exist in registers only, from an image that `write-image` wrote:
//
//     custom_gemv IMAGE [TENSOR [CRC]]
//
// TENSOR is its number, 0 if it is not said; CRC is the CRC-32 of its weights in binary32, as `write-image` prints it. Checks the weights and the
// products, prints how long they take, and exits with 1 if something is wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "nwc_decode.cuh"

constexpr unsigned kWarp = 32;
constexpr unsigned kAll = ~0u;
// Bytes of a column's 16 rows in a tile, so that no two threads meet in a bank.
constexpr unsigned kColumnBytes = 48;
constexpr unsigned kTileBytes = kWarp * kColumnBytes;

extern __shared__ __align__(16) unsigned char shared[];

// A block's shared memory: what warps read ahead, aligned, then tiles and tables.
static unsigned shared_bytes(const NwcTensorRecord& record, unsigned threads) {
    return NWC_RING_BYTES + threads / kWarp * (NWC_AHEAD_BYTES + kTileBytes) + nwc_table_bytes(&record);
}

// What all kernels here do: a warp for each item, whose weights `work` asks for.
template <class Work>
__device__ void for_items(const void* image, unsigned number, uint32_t* status, Work work) {
    __shared__ NwcTensor tensor;
    if (threadIdx.x == 0 && nwc_open(&tensor, image, number) != 0) {
        __trap();
    }
    __syncthreads();
    unsigned char* ahead = nwc_align(shared);
    unsigned char* tiles = ahead + blockDim.x / kWarp * NWC_AHEAD_BYTES;
    unsigned char* tables = tiles + blockDim.x / kWarp * kTileBytes;
    nwc_stage(&tensor, tables, threadIdx.x, blockDim.x);
    __syncthreads();
    unsigned warp = threadIdx.x / kWarp;
    unsigned warps = blockDim.x / kWarp;
    for (unsigned i = blockIdx.x * warps + warp; i < tensor.record.items; i += gridDim.x * warps) {
        NwcItem item;
        nwc_begin(&item, &tensor, tables, i, ahead + warp * NWC_AHEAD_BYTES);
        work(tensor.record, item, i, tiles + warp * kTileBytes);
        uint32_t code = nwc_end(&item);
        if (item.lane == 0) {
            status[i] = code;
        }
    }
}

// Where a weight lies in the tensor, [batch, out, in]; `row` and `column` count from the item's.
__device__ size_t place_of(const NwcTensorRecord& tensor, const NwcItemRecord& item, unsigned row, unsigned column) {
    size_t r = item.first_row + row;
    size_t c = item.first_column + column;
    size_t matrix = size_t{item.matrix} * tensor.out * tensor.input;
    return matrix + (tensor.transposed ? c * tensor.input + r : r * tensor.input + c);
}

// The first or second number of 16 bits in a word.
__device__ unsigned short number_of(const NwcPairs& pairs, unsigned row) {
    return static_cast<unsigned short>(pairs.pair[row / 2] >> (row % 2 * 16));
}

__device__ float from_f16(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ float from_bf16(unsigned short bits) {
    return __uint_as_float(unsigned{bits} << 16);
}

// The formats that weights come in: the next 16 rows, and what a weight in binary32 is rounded to.
struct F32 {
    static constexpr const char* name = "f32";
    __device__ static void next(NwcItem* item, float (&weights)[NWC_CHUNK]) {
        NwcRows rows = nwc_next_f32(item);
#pragma unroll
        for (unsigned row = 0; row < NWC_CHUNK; ++row) {
            weights[row] = rows.weight[row];
        }
    }
    __device__ static float round(float weight) { return weight; }
};

struct F16 {
    static constexpr const char* name = "f16";
    __device__ static void next(NwcItem* item, float (&weights)[NWC_CHUNK]) {
        NwcPairs pairs = nwc_next_f16(item);
#pragma unroll
        for (unsigned row = 0; row < NWC_CHUNK; ++row) {
            weights[row] = from_f16(number_of(pairs, row));
        }
    }
    __device__ static float round(float weight) {
        unsigned short bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(fminf(fmaxf(weight, -65504.0f), 65504.0f)));
        return from_f16(bits);
    }
};

struct Bf16 {
    static constexpr const char* name = "bf16";
    __device__ static void next(NwcItem* item, float (&weights)[NWC_CHUNK]) {
        NwcPairs pairs = nwc_next_bf16(item);
#pragma unroll
        for (unsigned row = 0; row < NWC_CHUNK; ++row) {
            weights[row] = from_bf16(number_of(pairs, row));
        }
    }
    __device__ static float round(float weight) {
        float most = __uint_as_float(0x7F7F0000);
        unsigned short bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(fminf(fmaxf(weight, -most), most)));
        return from_bf16(bits);
    }
};

// Decodes to memory.
template <class Format>
__global__ void decode(const void* image, unsigned number, float* out, uint32_t* status) {
    for_items(image, number, status, [=](const NwcTensorRecord& tensor, NwcItem& item, unsigned, void*) {
        for (unsigned first = 0; first < item.record.rows; first += NWC_CHUNK) {
            float weights[NWC_CHUNK];
            Format::next(&item, weights);
#pragma unroll
            for (unsigned row = 0; row < NWC_CHUNK; ++row) {
                if (item.lane < item.record.columns_here && first + row < item.record.rows) {
                    out[place_of(tensor, item.record, first + row, item.lane)] = weights[row];
                }
            }
        }
    });
}

// The same in binary16 through tiles in shared memory, from which each thread reads what others wrote, as for tensor cores.
template <bool ByColumns>
__global__ void decode_tiles(const void* image, unsigned number, float* out, uint32_t* status) {
    for_items(image, number, status, [=](const NwcTensorRecord& tensor, NwcItem& item, unsigned, void* tile) {
        for (unsigned first = 0; first < item.record.rows; first += NWC_CHUNK) {
            NwcPairs weights = nwc_next_f16(&item);
            if constexpr (ByColumns) {
                nwc_store_columns(tile, kColumnBytes, item.lane, weights);
            } else {
                nwc_store_rows(tile, kWarp * 2, item.lane, weights);
            }
            __syncwarp();
            for (unsigned i = item.lane; i < NWC_CHUNK * kWarp; i += kWarp) {
                unsigned row = i % NWC_CHUNK;
                unsigned column = i / NWC_CHUNK;
                unsigned at = ByColumns ? column * kColumnBytes + row * 2 : (row * kWarp + column) * 2;
                if (column < item.record.columns_here && first + row < item.record.rows) {
                    out[place_of(tensor, item.record, first + row, column)] =
                        from_f16(*reinterpret_cast<unsigned short*>(static_cast<char*>(tile) + at));
                }
            }
            __syncwarp();
        }
    });
}

template <class Format>
__global__ void round_all(const float* from, float* to, size_t length) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < length; i += size_t{gridDim.x} * blockDim.x) {
        to[i] = Format::round(from[i]);
    }
}

// Sums over the warp of 16 numbers a thread; the thread gets that of number lane / 2.
__device__ float sum_over_warp(float (&values)[NWC_CHUNK], unsigned lane) {
#pragma unroll
    for (unsigned half = NWC_CHUNK / 2; half > 0; half /= 2) {
        bool upper = lane & (2 * half);
#pragma unroll
        for (unsigned i = 0; i < half; ++i) {
            float given = upper ? values[i] : values[i + half];
            float kept = upper ? values[i + half] : values[i];
            values[i] = kept + __shfl_xor_sync(kAll, given, 2 * half);
        }
    }
    return values[0] + __shfl_xor_sync(kAll, values[0], 1);
}

// Parts of y that are to be added up: as many as there are items for an output.
__host__ __device__ inline unsigned parts_of(const NwcTensorRecord& tensor) {
    return tensor.transposed ? tensor.items / tensor.items_across / tensor.batch : tensor.items_across;
}

// Each item's share of y = W x, into [parts, batch, out]. Every element is written once, so that sums are always the same.
template <class Format>
__global__ void multiply(const void* image, unsigned number, const float* x, float* parts, uint32_t* status) {
    for_items(image, number, status, [=](const NwcTensorRecord& tensor, NwcItem& item, unsigned i, void*) {
        const NwcItemRecord& record = item.record;
        unsigned part = tensor.transposed ? i / tensor.items_across % parts_of(tensor) : i % tensor.items_across;
        float* y = parts + (size_t{part} * tensor.batch + record.matrix) * tensor.out;
        bool inside = item.lane < record.columns_here;
        if (tensor.transposed) {
            // The thread's column is an output, its rows are inputs.
            const float* inputs = x + record.first_row;
            float sum = 0.0f;
            for (unsigned first = 0; first < record.rows; first += NWC_CHUNK) {
                float weights[NWC_CHUNK];
                Format::next(&item, weights);
#pragma unroll
                for (unsigned row = 0; row < NWC_CHUNK; ++row) {
                    sum += weights[row] * (first + row < record.rows ? inputs[first + row] : 0.0f);
                }
            }
            if (inside) {
                y[record.first_column + item.lane] = sum;
            }
        } else {
            // The thread's column is an input, its rows are outputs.
            float input = inside ? x[record.first_column + item.lane] : 0.0f;
            for (unsigned first = 0; first < record.rows; first += NWC_CHUNK) {
                float products[NWC_CHUNK];
                Format::next(&item, products);
#pragma unroll
                for (unsigned row = 0; row < NWC_CHUNK; ++row) {
                    products[row] *= input;
                }
                float sum = sum_over_warp(products, item.lane);
                unsigned row = first + item.lane / 2;
                if (item.lane % 2 == 0 && row < record.rows) {
                    y[record.first_row + row] = sum;
                }
            }
        }
    });
}

__global__ void add_up(const float* parts, unsigned count, unsigned length, float* y) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) {
        float sum = 0.0f;
        for (unsigned part = 0; part < count; ++part) {
            sum += parts[size_t{part} * length + i];
        }
        y[i] = sum;
    }
}

static void must(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
        std::exit(1);
    }
}

// An array in the memory of the device.
template <class T>
class Device {
public:
    explicit Device(size_t length) : length_(length) {
        must(cudaMalloc(&data_, length * sizeof(T)), "take memory on the device");
        // What is not written shows: as floats these are no numbers, as codes no codes.
        must(cudaMemset(data_, 0xFF, length * sizeof(T)), "fill memory on the device");
    }
    explicit Device(const std::vector<T>& from) : Device(from.size()) {
        must(cudaMemcpy(data_, from.data(), length_ * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
    }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    ~Device() { cudaFree(data_); }

    T* get() const { return data_; }
    std::vector<T> read() const {
        std::vector<T> out(length_);
        must(cudaMemcpy(out.data(), data_, length_ * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
        return out;
    }

private:
    T* data_ = nullptr;
    size_t length_;
};

// The median time of 20 runs, in microseconds, after some to warm up.
template <class Run>
static double median_time(Run run) {
    constexpr int warm_up = 3;
    constexpr int runs = 20;
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "make an event");
    must(cudaEventCreate(&end), "make an event");
    std::vector<float> times;
    for (int i = 0; i < warm_up + runs; ++i) {
        must(cudaEventRecord(begin), "record an event");
        run();
        must(cudaGetLastError(), "launch");
        must(cudaEventRecord(end), "record an event");
        must(cudaEventSynchronize(end), "run");
        float milliseconds = 0;
        must(cudaEventElapsedTime(&milliseconds, begin, end), "read a time");
        if (i >= warm_up) {
            times.push_back(milliseconds);
        }
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return (times[runs / 2 - 1] + times[runs / 2]) / 2 * 1e3;
}

static uint32_t crc32(const std::vector<float>& values) {
    uint32_t table[256];
    for (uint32_t i = 0; i < 256; ++i) {
        table[i] = i;
        for (int bit = 0; bit < 8; ++bit) {
            table[i] = (table[i] >> 1) ^ ((table[i] & 1) != 0 ? 0xEDB88320u : 0);
        }
    }
    uint32_t crc = ~0u;
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size() * sizeof(float); ++i) {
        crc = (crc >> 8) ^ table[(crc ^ bytes[i]) & 0xFF];
    }
    return ~crc;
}

static size_t differences(const std::vector<float>& a, const std::vector<float>& b) {
    size_t count = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        count += std::memcmp(&a[i], &b[i], sizeof a[i]) != 0;
    }
    return count;
}

// A tensor, and whether all that was tried with it was right.
class Trial {
public:
    Trial(const std::vector<char>& image, unsigned number)
        : record_(*nwc_tensor_record(image.data(), number)), number_(number), image_(image), status_(record_.items) {
        int device = 0;
        int most_shared = 0;
        must(cudaGetDevice(&device), "find a device");
        must(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "ask the device");
        must(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "ask the device");
        while (threads_ >= kWarp && shared_bytes(record_, threads_) + sizeof(NwcTensor) > unsigned(most_shared)) {
            threads_ /= 2;
        }
        if (threads_ < kWarp) {
            std::fprintf(stderr, "the tables do not fit into a block's shared memory\n");
            std::exit(1);
        }
        uint32_t seed = 1;
        x_.resize(record_.input);
        for (float& value : x_) {
            seed = seed * 1664525u + 1013904223u;
            value = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31f;
        }
    }

    // `crc` may be null.
    bool run(const char* crc) {
        std::vector<float> weights = decoded<F32>();
        uint32_t found = crc32(weights);
        std::printf("weights: CRC-32 %08x", found);
        if (crc != nullptr) {
            good_ = found == std::strtoul(crc, nullptr, 16) && good_;
            std::printf(", expected %s", crc);
        }
        std::printf("\n");
        try_tiles<true>("tiles by columns", weights);
        try_tiles<false>("tiles by rows", weights);
        try_product<F32>(weights);
        try_product<F16>(weights);
        try_product<Bf16>(weights);
        return good_;
    }

private:
    size_t elements() const { return size_t{record_.batch} * record_.out * record_.input; }
    unsigned shared() const { return shared_bytes(record_, threads_); }
    double speed(double microseconds) const { return double(elements()) / microseconds * 1e-3; }

    // Blocks that fill the device, or fewer if the items are.
    template <class Kernel>
    unsigned prepare(Kernel kernel) const {
        int blocks = 0;
        must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared())), "reserve memory");
        must(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, int(threads_), shared()), "ask the device");
        unsigned warps = threads_ / kWarp;
        return std::max(1u, std::min((record_.items + warps - 1) / warps, unsigned(blocks * multiprocessors_)));
    }

    void check_status(const char* what) {
        std::vector<uint32_t> status = status_.read();
        for (size_t i = 0; i < status.size(); ++i) {
            if (status[i] != 0) {
                std::printf("%s: item %zu has error %u\n", what, i, status[i]);
                good_ = false;
                return;
            }
        }
    }

    template <class Format>
    std::vector<float> decoded() {
        Device<float> out(elements());
        unsigned blocks = prepare(decode<Format>);
        double time = median_time([&] {
            decode<Format><<<blocks, threads_, shared()>>>(image_.get(), number_, out.get(), status_.get());
        });
        check_status("decode");
        std::printf("decode %s: %.1f us, %.1f Gweights/s\n", Format::name, time, speed(time));
        return out.read();
    }

    template <class Format>
    static std::vector<float> rounded(const std::vector<float>& weights) {
        Device<float> from(weights);
        Device<float> to(weights.size());
        round_all<Format><<<1024, 256>>>(from.get(), to.get(), weights.size());
        must(cudaGetLastError(), "launch");
        return to.read();
    }

    template <bool ByColumns>
    void try_tiles(const char* what, const std::vector<float>& weights) {
        Device<float> out(elements());
        unsigned blocks = prepare(decode_tiles<ByColumns>);
        decode_tiles<ByColumns><<<blocks, threads_, shared()>>>(image_.get(), number_, out.get(), status_.get());
        must(cudaGetLastError(), "launch");
        check_status(what);
        size_t different = differences(rounded<F16>(weights), out.read());
        std::printf("%s: %zu weights differ\n", what, different);
        good_ = different == 0 && good_;
    }

    template <class Format>
    void try_product(const std::vector<float>& weights) {
        std::vector<float> found = decoded<Format>();
        size_t different = differences(rounded<Format>(weights), found);
        unsigned length = record_.batch * record_.out;
        unsigned count = parts_of(record_);
        Device<float> x(x_);
        Device<float> parts(size_t{count} * length);
        Device<float> y(length);
        unsigned blocks = prepare(multiply<Format>);
        double time = median_time([&] {
            multiply<Format>
                <<<blocks, threads_, shared()>>>(image_.get(), number_, x.get(), parts.get(), status_.get());
            add_up<<<(length + 255) / 256, 256>>>(parts.get(), count, length, y.get());
        });
        check_status("product");
        double error = relative_error(found, y.read());
        std::printf("product %s: %zu weights differ, relative error %.1e, %.1f us, %.1f Gweights/s\n", Format::name,
                    different, error, time, speed(time));
        // So that what is no number is wrong too.
        good_ = different == 0 && error < 1e-5 && good_;
    }

    double relative_error(const std::vector<float>& weights, const std::vector<float>& y) const {
        double wrong = 0;
        double whole = 0;
        for (size_t o = 0; o < y.size(); ++o) {
            double sum = 0;
            for (size_t i = 0; i < x_.size(); ++i) {
                sum += double(weights[o * x_.size() + i]) * x_[i];
            }
            wrong += (y[o] - sum) * (y[o] - sum);
            whole += sum * sum;
        }
        return wrong == 0 ? 0 : std::sqrt(wrong / whole);
    }

    NwcTensorRecord record_;
    unsigned number_;
    Device<char> image_;
    Device<uint32_t> status_;
    unsigned threads_ = 8 * kWarp;
    int multiprocessors_ = 0;
    std::vector<float> x_;
    bool good_ = true;
};

int main(int argc, char** argv) {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "usage: custom_gemv IMAGE [TENSOR [CRC]]\n");
        return 1;
    }
    std::ifstream file(argv[1], std::ios::binary | std::ios::ate);
    std::vector<char> image(file ? static_cast<size_t>(file.tellg()) : 0);
    file.seekg(0);
    if (!file.read(image.data(), static_cast<std::streamsize>(image.size())) ||
        !nwc_is_image(image.data(), image.size())) {
        std::fprintf(stderr, "%s: not an image\n", argv[1]);
        return 1;
    }
    unsigned number = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : 0;
    unsigned tensors = reinterpret_cast<const NwcHeader*>(image.data())->tensors;
    if (number >= tensors) {
        std::fprintf(stderr, "the image has %u tensors\n", tensors);
        return 1;
    }
    bool good = Trial(image, number).run(argc > 3 ? argv[3] : nullptr);
    std::puts(good ? "all is right" : "SOMETHING IS WRONG");
    return good ? 0 : 1;
}

// Encoding rows into the bytes that are stored, sent and loaded alike.
#include "codec.cuh"

// A warp per row of `dim` values; row i goes to slot (first + i) % ring of `out`.
GLOBAL encode_kv(const float* __restrict__ x, uint8_t* __restrict__ out, unsigned rows, unsigned dim, unsigned rotary, unsigned first,
                 unsigned ring) {
    const unsigned row = blockIdx.x * (blockDim.x / LANES) + warp_of_thread();
    if (row >= rows) return;
    const unsigned body = dim - rotary, lane = lane_of_thread();
    const float* values = x + size_t(row) * dim;
    uint8_t* bytes = out + size_t((first + row) % ring) * (body + body / 64 + 2 * rotary);
    for (unsigned block = 0; block < body / 64; block++) {
        const float a = values[64 * block + lane], b = values[64 * block + LANES + lane];
        const int e = exponent_of(max_of_lanes(fmaxf(fabsf(a), fabsf(b))), 448.0f, 1e-4f);
        const float inverse = power_of_two(-e);
        bytes[64 * block + lane] = e4m3_code(a * inverse);
        bytes[64 * block + LANES + lane] = e4m3_code(b * inverse);
        if (lane == 0) bytes[body + block] = uint8_t(e + 127);
    }
    uint8_t* halves = bytes + body + body / 64;
    for (unsigned i = lane; i < rotary; i += LANES) {
        const uint16_t half = float_to_half(values[body + i]);
        halves[2 * i] = uint8_t(half);
        halves[2 * i + 1] = uint8_t(half >> 8);
    }
}
KERNEL(encode_kv)

// The Walsh-Hadamard transform of a warp's row in shared memory, with factor n^-1/2.
DEVICE void hadamard(float* row, unsigned dim) {
    for (unsigned step = 1; step < dim; step *= 2) {
        for (unsigned pair = lane_of_thread(); pair < dim / 2; pair += LANES) {
            const unsigned low = pair / step * 2 * step + pair % step;
            const float a = row[low], b = row[low + step];
            row[low] = a + b;
            row[low + step] = a - b;
        }
        __syncwarp();
    }
    const float factor = 1.0f / sqrtf(float(dim));
    for (unsigned i = lane_of_thread(); i < dim; i += LANES) row[i] = row[i] * factor;
    __syncwarp();
}

constexpr unsigned INDEX_MOST = 256;  // widest indexer row
constexpr unsigned INDEX_WARPS = 4;

// A warp per indexer row of `dim` values; `dim / 2` bytes of codes and `dim / 32` exponents, at row `first + i` of `out`.
GLOBAL encode_indexer(const float* __restrict__ x, uint8_t* __restrict__ out, unsigned rows, unsigned dim, unsigned first) {
    SHARED(float, all, [INDEX_WARPS][INDEX_MOST]);
    const unsigned row = blockIdx.x * INDEX_WARPS + warp_of_thread(), lane = lane_of_thread();
    if (row >= rows) return;
    float* values = all[warp_of_thread()];
    for (unsigned i = lane; i < dim; i += LANES) values[i] = x[size_t(row) * dim + i];
    __syncwarp();
    hadamard(values, dim);
    uint8_t* bytes = out + size_t(first + row) * (dim / 2 + dim / 32);
    for (unsigned block = 0; block < dim / 32; block++) {
        const float value = values[32 * block + lane];
        const int e = exponent_of(max_of_lanes(fabsf(value)), 6.0f, 7.052966e-38f);
        const unsigned code = e2m1_code(value * power_of_two(-e)), next = __shfl_down_sync(ALL, code, 1);
        if (lane % 2 == 0) bytes[16 * block + lane / 2] = uint8_t(code | next << 4);
        if (lane == 0) bytes[dim / 2 + block] = uint8_t(e + 127);
    }
}
KERNEL(encode_indexer)

// An indexer query rounded as rows are: twice the value of every code, and a quarter of every scale. A warp per head of `dim` values, which are rotated already.
GLOBAL index_queries(const float* __restrict__ x, int8_t* __restrict__ codes, float* __restrict__ scales, unsigned heads, unsigned dim) {
    SHARED(float, all, [INDEX_WARPS][INDEX_MOST]);
    const unsigned head = blockIdx.x * INDEX_WARPS + warp_of_thread(), lane = lane_of_thread();
    if (head >= heads) return;
    float* values = all[warp_of_thread()];
    for (unsigned i = lane; i < dim; i += LANES) values[i] = x[size_t(head) * dim + i];
    __syncwarp();
    hadamard(values, dim);
    for (unsigned block = 0; block < dim / 32; block++) {
        const float value = values[32 * block + lane];
        const int e = exponent_of(max_of_lanes(fabsf(value)), 6.0f, 7.052966e-38f);
        codes[size_t(head) * dim + 32 * block + lane] = int8_t(e2m1_twice(e2m1_code(value * power_of_two(-e))));
        if (lane == 0) scales[size_t(head) * (dim / 32) + block] = stored_power(uint8_t(e + 127)) * 0.25f;
    }
}
KERNEL(index_queries)

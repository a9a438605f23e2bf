// From token ids to residual streams, and from logits to a token.
#include "base.cuh"

// The tokens' rows of the table, copied to every stream. Bytes per value: 4 (f32), 2 (f16), or 1: 8-bit blocks with their scales in `heads`. A thread per value.
GLOBAL embed(const uint8_t* __restrict__ heads, const uint8_t* __restrict__ table, const unsigned* __restrict__ tokens,
             float* __restrict__ out, unsigned count, unsigned width, unsigned streams, unsigned bytes) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned token = i / width, d = i % width;
    const size_t at = size_t(tokens[token]) * width + d;
    float value;
    if (bytes == 4) {
        value = reinterpret_cast<const float*>(table)[at];
    } else if (bytes == 2) {
        value = half_to_float(reinterpret_cast<const uint16_t*>(table)[at]);
    } else {
        value = half_to_float(reinterpret_cast<const uint16_t*>(heads)[at / 32]) * float(int8_t(table[at]));
    }
    for (unsigned stream = 0; stream < streams; stream++) out[(size_t(token) * streams + stream) * width + d] = value;
}
KERNEL(embed)

// The first of the largest logits of each row; what is no number is never chosen. A block of 256 threads per row.
GLOBAL argmax(const float* __restrict__ logits, unsigned* __restrict__ out, unsigned width) {
    SHARED(float, best_of_warp, [8]);
    SHARED(unsigned, at_of_warp, [8]);
    const float* row = logits + size_t(blockIdx.x) * width;
    float best = -INFINITY;
    unsigned at = 0xffffffffu;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        if (row[i] > best) {
            best = row[i];
            at = i;
        }
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        const float other = __shfl_xor_sync(ALL, best, half);
        const unsigned where = __shfl_xor_sync(ALL, at, half);
        if (other > best || (other == best && where < at)) {
            best = other;
            at = where;
        }
    }
    if (lane_of_thread() == 0) {
        best_of_warp[warp_of_thread()] = best;
        at_of_warp[warp_of_thread()] = at;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned warp = 1; warp < blockDim.x / LANES; warp++) {
        if (best_of_warp[warp] > best || (best_of_warp[warp] == best && at_of_warp[warp] < at)) {
            best = best_of_warp[warp];
            at = at_of_warp[warp];
        }
    }
    out[blockIdx.x] = at == 0xffffffffu ? 0 : at;
}
KERNEL(argmax)

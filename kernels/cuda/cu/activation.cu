// Activations as signed bytes, in the blocks that a weight format takes: `kernels/core/src/activation.rs`.
#include "base.cuh"

// Nearest code, ties to even, -127 to 127.
DEVICE int8_t code_of(float x) {
    constexpr float round = 12582912.0f;  // 1.5 * 2^23: the addition rounds
    const float rounded = bounded(x, -127.0f, 127.0f) + round - round;
    return rounded == rounded ? int8_t(int(rounded)) : int8_t(0);
}

// Blocks of 32: scale amax / 127. One warp per block of values; `blocks` of them in all.
GLOBAL quantize_q8(const float* __restrict__ x, int8_t* __restrict__ codes, float* __restrict__ scales, unsigned blocks) {
    const unsigned block = blockIdx.x * (blockDim.x / LANES) + warp_of_thread();
    if (block >= blocks) return;
    const size_t at = size_t(block) * 32 + lane_of_thread();
    const float value = x[at];
    const float scale = max_of_lanes(fabsf(value)) / 127.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    codes[at] = code_of(value * inverse);
    if (lane_of_thread() == 0) scales[block] = scale;
}
KERNEL(quantize_q8)

// Blocks of 256: the first value of largest magnitude becomes -127, its sign kept in the scale. One warp per block.
GLOBAL quantize_q8_k(const float* __restrict__ x, int8_t* __restrict__ codes, float* __restrict__ scales, unsigned blocks) {
    const unsigned block = blockIdx.x * (blockDim.x / LANES) + warp_of_thread();
    if (block >= blocks) return;
    const float* values = x + size_t(block) * 256;
    float most = 0.0f;
    int where = 256;
    for (int i = lane_of_thread(); i < 256; i += LANES) {
        if (fabsf(values[i]) > fabsf(most)) {
            most = values[i];
            where = i;
        }
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        const float other = __shfl_xor_sync(ALL, most, half);
        const int at = __shfl_xor_sync(ALL, where, half);
        const bool larger = fabsf(other) > fabsf(most), equal = fabsf(other) == fabsf(most);
        if (larger || (equal && at < where)) {
            most = other;
            where = at;
        }
    }
    const float inverse = most == 0.0f ? 0.0f : -127.0f / most;
    for (int i = lane_of_thread(); i < 256; i += LANES) codes[size_t(block) * 256 + i] = code_of(values[i] * inverse);
    if (lane_of_thread() == 0) scales[block] = most == 0.0f ? 0.0f : 1.0f / inverse;
}
KERNEL(quantize_q8_k)

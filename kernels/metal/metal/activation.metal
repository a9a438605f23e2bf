// Activations as signed bytes, in the blocks that a weight format takes: `kernels/core/src/activation.rs`.

// Nearest code, ties to even, -127 to 127.
DEVICE char code_of(float x) {
    constexpr float rounds = 12582912.0f;  // 1.5 * 2^23: the addition rounds
    const float rounded = bounded(x, -127.0f, 127.0f) + rounds - rounds;
    return rounded == rounded ? char(int(rounded)) : char(0);
}

struct Blocks {
    uint blocks;
};

// Blocks of 32: scale amax / 127. One SIMD group per block of values; `blocks` of them in all.
kernel void quantize_q8(device const float* x [[buffer(0)]], device char* codes [[buffer(1)]], device float* scales [[buffer(2)]],
                        constant Blocks& c [[buffer(3)]], PLACE) {
    const uint block = group.x * (threads.x / LANES) + simd;
    if (block >= c.blocks) return;
    const ulong at = ulong(block) * 32 + lane;
    const float value = x[at];
    const float scale = max_of_lanes(fabs(value)) / 127.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    codes[at] = code_of(value * inverse);
    if (lane == 0) scales[block] = scale;
}

// Blocks of 256: the first value of largest magnitude becomes -127, its sign kept in the scale. One SIMD group per block.
kernel void quantize_q8_k(device const float* x [[buffer(0)]], device char* codes [[buffer(1)]], device float* scales [[buffer(2)]],
                          constant Blocks& c [[buffer(3)]], PLACE) {
    const uint block = group.x * (threads.x / LANES) + simd;
    if (block >= c.blocks) return;
    device const float* values = x + ulong(block) * 256;
    // The magnitude apart from the value: of `fabs(values[i]) > fabs(most)` with `most` from 0, clang 19 at -O2 drops the second fabs.
    float most = 0.0f, magnitude = 0.0f;
    uint where = 256;
    for (uint i = lane; i < 256; i += LANES) {
        if (fabs(values[i]) > magnitude) {
            most = values[i];
            magnitude = fabs(most);
            where = i;
        }
    }
    for (ushort step = LANES / 2; step > 0; step /= 2) {
        const float other = simd_shuffle_xor(most, step), of_other = simd_shuffle_xor(magnitude, step);
        const uint at = simd_shuffle_xor(where, step);
        if (of_other > magnitude || (of_other == magnitude && at < where)) {
            most = other;
            magnitude = of_other;
            where = at;
        }
    }
    const float inverse = most == 0.0f ? 0.0f : -127.0f / most;
    for (uint i = lane; i < 256; i += LANES) codes[ulong(block) * 256 + i] = code_of(values[i] * inverse);
    if (lane == 0) scales[block] = most == 0.0f ? 0.0f : 1.0f / inverse;
}

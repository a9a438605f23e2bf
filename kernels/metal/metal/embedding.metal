// From token ids to residual streams, and from logits to a token.

struct Embed {
    uint count, width, streams, bytes;
};

// The tokens' rows of the table, copied to every stream. Bytes per value: 4 (f32), 2 (f16), or 1: 8-bit blocks of 32 behind their scale. A thread per
// value.
kernel void embed(device const uchar* table [[buffer(0)]], device const uint* tokens [[buffer(1)]], device float* out [[buffer(2)]],
                  constant Embed& c [[buffer(3)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i >= c.count) return;
    const uint token = i / c.width, d = i % c.width;
    const ulong at = ulong(tokens[token]) * c.width + d;
    float value;
    if (c.bytes == 4) {
        value = reinterpret_cast<device const float*>(table)[at];
    } else if (c.bytes == 2) {
        value = half_to_float(reinterpret_cast<device const ushort*>(table)[at]);
    } else {
        device const uchar* block = table + at / 32 * Q8_0::BYTES;
        value = Q8_0::scales(block).d * float(char(block[2 + at % 32]));
    }
    for (uint stream = 0; stream < c.streams; stream++) out[(ulong(token) * c.streams + stream) * c.width + d] = value;
}

struct Argmax {
    uint width;
};

constant constexpr uint ARGMAX_SIMDS = 8;

// The first of the largest logits of each row; what is no number is never chosen. A group of 256 threads per row.
kernel void argmax(device const float* logits [[buffer(0)]], device uint* out [[buffer(1)]], constant Argmax& c [[buffer(2)]], PLACE) {
    SHARED(float, best_of_simd, [ARGMAX_SIMDS]);
    SHARED(uint, at_of_simd, [ARGMAX_SIMDS]);
    device const float* row = logits + ulong(group.x) * c.width;
    float best = -INFINITY;
    uint at = 0xffffffffu;
    for (uint i = thread_index; i < c.width; i += threads.x) {
        if (row[i] > best) {
            best = row[i];
            at = i;
        }
    }
    for (ushort step = LANES / 2; step > 0; step /= 2) {
        const float other = simd_shuffle_xor(best, step);
        const uint where = simd_shuffle_xor(at, step);
        if (other > best || (other == best && where < at)) {
            best = other;
            at = where;
        }
    }
    if (lane == 0) {
        best_of_simd[simd] = best;
        at_of_simd[simd] = at;
    }
    threads_meet();
    if (thread_index != 0) return;
    for (uint other = 1; other < ARGMAX_SIMDS; other++) {
        if (best_of_simd[other] > best || (best_of_simd[other] == best && at_of_simd[other] < at)) {
            best = best_of_simd[other];
            at = at_of_simd[other];
        }
    }
    out[group.x] = at == 0xffffffffu ? 0 : at;
}

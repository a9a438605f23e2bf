// Root-mean-square normalisation and rotations: `kernels/core/src/ops/norm.rs`, `kernels/core/src/ops/rope.rs`.

// 1 / sqrt(mean(x^2) + eps) by one SIMD group, known to all its lanes. Element i is added to lane i % 16 in f64, where squares are exact; then one tree.
DEVICE float simd_rms_scale(device const float* x, uint width, float eps, uint lane) {
    constexpr uint SQUARES = 16;
    ulong sum = 0;
    if (lane < SQUARES) {
        for (uint i = lane; i < width; i += SQUARES) sum = f64_add(sum, f64_square(x[i]));
    }
    for (ushort step = SQUARES / 2; step > 0; step /= 2) {
        // 64 bits in two halves: shuffles take 32.
        const uint low = simd_shuffle_down(uint(sum), step), high = simd_shuffle_down(uint(sum >> 32), step);
        if (lane < step) sum = f64_add(sum, ulong(high) << 32 | low);
    }
    const float scale = f64_inverse_root(f64_add(f64_divide(sum, width), f64_of(eps)));
    return simd_broadcast(scale, 0);
}

struct Norm {
    uint width;
    float eps;
};

// y = x / rms(x) * weight, a group per row; in place when y is x. The first SIMD group measures, all write.
kernel void rms_norm(device const float* x [[buffer(0)]], device const float* weight [[buffer(1)]], device float* y [[buffer(2)]],
                     constant Norm& c [[buffer(3)]], PLACE) {
    SHARED(float, scale, [1]);
    device const float* row = x + ulong(group.x) * c.width;
    device float* out = y + ulong(group.x) * c.width;
    if (simd == 0) {
        const float measured = simd_rms_scale(row, c.width, c.eps, lane);
        if (lane == 0) scale[0] = measured;
    }
    threads_meet();
    for (uint i = thread_index; i < c.width; i += threads.x) out[i] = row[i] * scale[0] * weight[i];
}

struct Heads {
    uint count, heads, dim, rotary;
    float eps;
};

// Every query head x / rms(x) without a weight, then rotated: a SIMD group per head. `rotations` is [tokens][rotary].
kernel void norm_rotate_heads(device float* x [[buffer(0)]], device const float* rotations [[buffer(1)]], constant Heads& c [[buffer(2)]], PLACE) {
    const uint head = group.x * (threads.x / LANES) + simd;
    if (head >= c.count) return;
    device float* values = x + ulong(head) * c.dim;
    device const float* rotation = rotations + ulong(head / c.heads) * c.rotary;
    const float scale = simd_rms_scale(values, c.dim, c.eps, lane);
    simdgroup_barrier(mem_flags::mem_device);  // everyone has read what is written below
    for (uint i = lane; i < c.dim - c.rotary; i += LANES) values[i] = values[i] * scale;
    device float* tail = values + (c.dim - c.rotary);
    for (uint i = 2 * lane; i < c.rotary; i += 2 * LANES) {
        const float a = tail[i] * scale, b = tail[i + 1] * scale, cosine = rotation[i], sine = rotation[i + 1];
        tail[i] = fma(a, cosine, -(b * sine));
        tail[i + 1] = fma(a, sine, b * cosine);
    }
}

struct Rotate {
    uint pairs, per, dim, rotary;
    float direction;
};

// Rotates the last `rotary` values of each row, or with `direction` -1 undoes it; `per` rows share a rotation. A thread per pair.
kernel void rotate_rows(device float* x [[buffer(0)]], device const float* rotations [[buffer(1)]], constant Rotate& c [[buffer(2)]], PLACE) {
    const uint pair = group.x * threads.x + thread_index;
    if (pair >= c.pairs) return;
    const uint of_row = c.rotary / 2, row = pair / of_row, i = pair % of_row * 2;
    device float* at = x + ulong(row) * c.dim + (c.dim - c.rotary) + i;
    device const float* rotation = rotations + ulong(row / c.per) * c.rotary + i;
    const float a = at[0], b = at[1], cosine = rotation[0], sine = rotation[1] * c.direction;
    at[0] = fma(a, cosine, -(b * sine));
    at[1] = fma(a, sine, b * cosine);
}

#include "norm.cuh"

// y = x / rms(x) * weight, a block per row; in place when y is x. The first warp measures, all write.
GLOBAL rms_norm(const float* x, const float* __restrict__ weight, float* y, unsigned width, float eps) {
    SHARED(float, scale, [1]);
    const float* row = x + size_t(blockIdx.x) * width;
    float* out = y + size_t(blockIdx.x) * width;
    if (warp_of_thread() == 0) {
        const float measured = warp_rms_scale(row, width, eps);
        if (lane_of_thread() == 0) scale[0] = measured;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) out[i] = row[i] * scale[0] * weight[i];
}
KERNEL(rms_norm)

// Every query head x / rms(x) without a weight, then rotated: a warp per head. `rotations` is [tokens][rotary].
GLOBAL norm_rotate_heads(float* __restrict__ x, const float* __restrict__ rotations, unsigned count, unsigned heads, unsigned dim,
                         unsigned rotary, float eps) {
    const unsigned head = blockIdx.x * (blockDim.x / LANES) + warp_of_thread();
    if (head >= count) return;
    float* values = x + size_t(head) * dim;
    const float* rotation = rotations + size_t(head / heads) * rotary;
    const float scale = warp_rms_scale(values, dim, eps);
    __syncwarp();  // everyone has read what is written below
    for (unsigned i = lane_of_thread(); i < dim - rotary; i += LANES) values[i] = values[i] * scale;
    float* tail = values + (dim - rotary);
    for (unsigned i = 2 * lane_of_thread(); i < rotary; i += 2 * LANES) {
        const float a = tail[i] * scale, b = tail[i + 1] * scale, cosine = rotation[i], sine = rotation[i + 1];
        tail[i] = fmaf(a, cosine, -(b * sine));
        tail[i + 1] = fmaf(a, sine, b * cosine);
    }
}
KERNEL(norm_rotate_heads)

// Rotates the last `rotary` values of each row, or with `direction` -1 undoes it; `per` rows share a rotation. A thread per pair.
GLOBAL rotate_rows(float* __restrict__ x, const float* __restrict__ rotations, unsigned pairs, unsigned per, unsigned dim,
                   unsigned rotary, float direction) {
    const unsigned pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    const unsigned of_row = rotary / 2, row = pair / of_row, i = pair % of_row * 2;
    float* at = x + size_t(row) * dim + (dim - rotary) + i;
    const float* rotation = rotations + size_t(row / per) * rotary + i;
    const float a = at[0], b = at[1], cosine = rotation[0], sine = rotation[1] * direction;
    at[0] = fmaf(a, cosine, -(b * sine));
    at[1] = fmaf(a, sine, b * cosine);
}
KERNEL(rotate_rows)

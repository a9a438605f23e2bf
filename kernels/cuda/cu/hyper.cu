// Hyper-connections: several residual streams, mixed before and after every block: `kernels/core/src/ops/hyper.rs`.
#include "math.cuh"
#include "norm.cuh"

constexpr unsigned MOST_STREAMS = 8;

// Rows and columns of the combination in turn, so that it becomes near doubly stochastic: lane i has row or column i.
DEVICE void sinkhorn(float* combine, unsigned n, unsigned iterations, float eps) {
    const unsigned lane = lane_of_thread();
    for (unsigned round = 0; round < iterations; round++) {
        if (lane < n && round > 0) {
            float total = -0.0f;
            for (unsigned j = 0; j < n; j++) total += combine[lane * n + j];
            const float share = 1.0f / (total + eps);
            for (unsigned j = 0; j < n; j++) combine[lane * n + j] = combine[lane * n + j] * share;
        }
        __syncwarp();
        if (lane < n) {
            float total = eps;
            for (unsigned i = 0; i < n; i++) total += combine[i * n + lane];
            const float share = 1.0f / total;
            for (unsigned i = 0; i < n; i++) combine[i * n + lane] = combine[i * n + lane] * share;
        }
        __syncwarp();
    }
}

// Turns what a connection's matrix gives for a token's streams into its mix, in place: a warp per token. `raw` is [tokens][(2 + n) * n].
GLOBAL hyper_mix(float* __restrict__ raw, const float* __restrict__ streams, const float* __restrict__ scale,
                 const float* __restrict__ base, unsigned n, unsigned width, unsigned iterations, float eps, float rms_eps) {
    SHARED(float, combine, [MOST_STREAMS * MOST_STREAMS]);
    const unsigned token = blockIdx.x, lane = lane_of_thread();
    float* mix = raw + size_t(token) * (2 + n) * n;
    const float norm = warp_rms_scale(streams + size_t(token) * n * width, n * width, rms_eps);
    if (lane < n) {
        mix[lane] = sigmoid(fmaf(mix[lane] * norm, scale[0], base[lane])) + eps;
        mix[n + lane] = 2.0f * sigmoid(fmaf(mix[n + lane] * norm, scale[1], base[n + lane]));
        float* row = combine + lane * n;
        float most = -INFINITY, total = -0.0f;
        for (unsigned j = 0; j < n; j++) {
            row[j] = fmaf(mix[2 * n + lane * n + j] * norm, scale[2], base[2 * n + lane * n + j]);
            most = fmaxf(most, row[j]);
        }
        for (unsigned j = 0; j < n; j++) {
            row[j] = exp_fixed(row[j] - most);
            total += row[j];
        }
        const float share = 1.0f / total;
        for (unsigned j = 0; j < n; j++) row[j] = fmaf(row[j], share, eps);
    }
    __syncwarp();
    sinkhorn(combine, n, iterations, eps);
    for (unsigned i = lane; i < n * n; i += LANES) mix[2 * n + i] = combine[i];
}
KERNEL(hyper_mix)

// The head's weights of the streams, in place: a warp per token. `raw` is [tokens][n].
GLOBAL head_mix(float* __restrict__ raw, const float* __restrict__ streams, const float* __restrict__ scale, const float* __restrict__ base,
                unsigned n, unsigned width, float eps, float rms_eps) {
    const unsigned token = blockIdx.x, lane = lane_of_thread();
    const float norm = warp_rms_scale(streams + size_t(token) * n * width, n * width, rms_eps);
    float* mix = raw + size_t(token) * n;
    if (lane < n) mix[lane] = sigmoid(fmaf(mix[lane] * norm, scale[0], base[lane])) + eps;
}
KERNEL(head_mix)

// A block's input: the weighted sum of the streams, ascending. `mix` has `stride` numbers per token, the weights first. A thread per value.
GLOBAL gather_streams(const float* __restrict__ mix, const float* __restrict__ streams, float* __restrict__ out, unsigned count, unsigned n,
                      unsigned width, unsigned stride) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned token = i / width, d = i % width;
    float sum = 0.0f;
    for (unsigned j = 0; j < n; j++) sum = fmaf(mix[size_t(token) * stride + j], streams[(size_t(token) * n + j) * width + d], sum);
    out[i] = sum;
}
KERNEL(gather_streams)

// The streams after a block: its output by the mix's second part, the old streams by its third, sources ascending. A thread per value of a stream.
GLOBAL scatter_streams(const float* __restrict__ mix, const float* __restrict__ block, float* __restrict__ streams, unsigned count,
                       unsigned n, unsigned width) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const unsigned token = i / width, d = i % width;
    const float* post = mix + size_t(token) * (2 + n) * n + n;
    const float* combine = post + n;
    float* at = streams + size_t(token) * n * width + d;
    float old[MOST_STREAMS];
#pragma unroll
    for (unsigned j = 0; j < MOST_STREAMS; j++) old[j] = j < n ? at[size_t(j) * width] : 0.0f;
    for (unsigned j = 0; j < n; j++) {
        float sum = post[j] * block[i];
#pragma unroll
        for (unsigned source = 0; source < MOST_STREAMS; source++)
            if (source < n) sum = fmaf(combine[source * n + j], old[source], sum);
        at[size_t(j) * width] = sum;
    }
}
KERNEL(scatter_streams)

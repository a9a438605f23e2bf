// Hyper-connections: several residual streams, mixed before and after every block: `kernels/core/src/ops/hyper.rs`.

constant constexpr uint MOST_STREAMS = 8;

// Rows and columns of the combination in turn, so that it becomes near doubly stochastic: lane i has row or column i.
DEVICE void sinkhorn(threadgroup float* combine, uint n, uint iterations, float eps, uint lane) {
    for (uint turn = 0; turn < iterations; turn++) {
        if (lane < n && turn > 0) {
            float total = -0.0f;
            for (uint j = 0; j < n; j++) total += combine[lane * n + j];
            const float share = 1.0f / (total + eps);
            for (uint j = 0; j < n; j++) combine[lane * n + j] = combine[lane * n + j] * share;
        }
        lanes_meet();
        if (lane < n) {
            float total = eps;
            for (uint i = 0; i < n; i++) total += combine[i * n + lane];
            const float share = 1.0f / total;
            for (uint i = 0; i < n; i++) combine[i * n + lane] = combine[i * n + lane] * share;
        }
        lanes_meet();
    }
}

struct Mix {
    uint n, width, iterations;
    float eps, rms_eps;
};

// Turns what a connection's matrix gives for a token's streams into its mix, in place: a SIMD group per token. `raw` is [tokens][(2 + n) * n].
kernel void hyper_mix(device float* raw [[buffer(0)]], device const float* streams [[buffer(1)]], device const float* scale [[buffer(2)]],
                      device const float* base [[buffer(3)]], constant Mix& c [[buffer(4)]], PLACE) {
    SHARED(float, combine, [MOST_STREAMS * MOST_STREAMS]);
    const uint token = group.x, n = c.n;
    device float* mix = raw + ulong(token) * (2 + n) * n;
    const float norm = simd_rms_scale(streams + ulong(token) * n * c.width, n * c.width, c.rms_eps, lane);
    if (lane < n) {
        mix[lane] = sigmoid(fma(mix[lane] * norm, scale[0], base[lane])) + c.eps;
        mix[n + lane] = 2.0f * sigmoid(fma(mix[n + lane] * norm, scale[1], base[n + lane]));
        threadgroup float* row = combine + lane * n;
        float most = -INFINITY, total = -0.0f;
        for (uint j = 0; j < n; j++) {
            row[j] = fma(mix[2 * n + lane * n + j] * norm, scale[2], base[2 * n + lane * n + j]);
            most = fmax(most, row[j]);
        }
        for (uint j = 0; j < n; j++) {
            row[j] = exp_fixed(row[j] - most);
            total += row[j];
        }
        const float share = 1.0f / total;
        for (uint j = 0; j < n; j++) row[j] = fma(row[j], share, c.eps);
    }
    lanes_meet();
    sinkhorn(combine, n, c.iterations, c.eps, lane);
    for (uint i = lane; i < n * n; i += LANES) mix[2 * n + i] = combine[i];
}

struct HeadMix {
    uint n, width;
    float eps, rms_eps;
};

// The head's weights of the streams, in place: a SIMD group per token. `raw` is [tokens][n].
kernel void head_mix(device float* raw [[buffer(0)]], device const float* streams [[buffer(1)]], device const float* scale [[buffer(2)]],
                     device const float* base [[buffer(3)]], constant HeadMix& c [[buffer(4)]], PLACE) {
    const uint token = group.x, n = c.n;
    const float norm = simd_rms_scale(streams + ulong(token) * n * c.width, n * c.width, c.rms_eps, lane);
    device float* mix = raw + ulong(token) * n;
    if (lane < n) mix[lane] = sigmoid(fma(mix[lane] * norm, scale[0], base[lane])) + c.eps;
}

struct Gather {
    uint count, n, width, stride;
};

// A block's input: the weighted sum of the streams, ascending. `mix` has `stride` numbers per token, the weights first. A thread per value.
kernel void gather_streams(device const float* mix [[buffer(0)]], device const float* streams [[buffer(1)]], device float* out [[buffer(2)]],
                           constant Gather& c [[buffer(3)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i >= c.count) return;
    const uint token = i / c.width, d = i % c.width;
    float sum = 0.0f;
    for (uint j = 0; j < c.n; j++) sum = fma(mix[ulong(token) * c.stride + j], streams[(ulong(token) * c.n + j) * c.width + d], sum);
    out[i] = sum;
}

struct Scatter {
    uint count, n, width;
};

// The streams after a block: its output by the mix's second part, the old streams by its third, sources ascending. A thread per value of a stream.
kernel void scatter_streams(device const float* mix [[buffer(0)]], device const float* block [[buffer(1)]], device float* streams [[buffer(2)]],
                            constant Scatter& c [[buffer(3)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i >= c.count) return;
    const uint token = i / c.width, d = i % c.width, n = c.n;
    device const float* post = mix + ulong(token) * (2 + n) * n + n;
    device const float* combine = post + n;
    device float* at = streams + ulong(token) * n * c.width + d;
    float old[MOST_STREAMS];
    for (uint j = 0; j < MOST_STREAMS; j++) old[j] = j < n ? at[ulong(j) * c.width] : 0.0f;
    for (uint j = 0; j < n; j++) {
        float sum = post[j] * block[i];
        for (uint source = 0; source < MOST_STREAMS; source++)
            if (source < n) sum = fma(combine[source * n + j], old[source], sum);
        at[ulong(j) * c.width] = sum;
    }
}

// Attention of a token's query heads over its compressed rows and its window, with a sink: `kernels/core/src/ops/attention.rs`.
#include "codec.cuh"

constexpr unsigned TILE = 8;           // rows decoded at a time
constexpr unsigned DIM_PARTS = 16;     // values of a head per lane: a head of at most 512

// Where a token's rows lie. Compressed rows come first, ascending, then window rows, ascending.
struct Visible {
    const uint8_t* compressed;
    const unsigned* picks;  // null: all of the first `far`
    unsigned far;
    const uint8_t* window;
    unsigned first, ring, near;  // slot of the first window row, slots, number of rows
    unsigned bytes;
    DEVICE const uint8_t* row(const Visible& v, unsigned i) {
        if (i < v.far) return v.compressed + size_t(v.picks ? v.picks[i] : i) * v.bytes;
        return v.window + size_t((v.first + (i - v.far)) % v.ring) * v.bytes;
    }
};

// Decodes rows from..from + TILE of the token into shared memory, by all threads.
DEVICE void load_tile(const Visible& visible, unsigned from, unsigned rows, unsigned dim, unsigned rotary, float* tile) {
    for (unsigned i = threadIdx.x; i < TILE * dim; i += blockDim.x) {
        const unsigned row = i / dim;
        if (from + row < rows) tile[i] = kv_value(Visible::row(visible, from + row), i % dim, dim, rotary);
    }
}

// A block per (heads, token), a warp per head; the heads of a block share the decoded rows. Dynamic shared memory: TILE * dim values, then `room` weights per warp.
// `picks` is [tokens][k] with `counts`, or null: then a token sees the first `seen` compressed rows. `positions` are those of the tokens.
GLOBAL attend(const float* __restrict__ queries, const uint8_t* __restrict__ window, const uint8_t* __restrict__ compressed,
              const unsigned* __restrict__ picks, const unsigned* __restrict__ counts, const unsigned* __restrict__ seen,
              const unsigned* __restrict__ positions, const float* __restrict__ sinks, float* __restrict__ out, unsigned heads, unsigned dim,
              unsigned rotary, unsigned reach, unsigned ring, unsigned k, unsigned room, float scale) {
    DYNAMIC_SHARED(float, tile);
    const unsigned token = blockIdx.y, head = blockIdx.x * (blockDim.x / LANES) + warp_of_thread(), lane = lane_of_thread();
    const unsigned position = positions[token], near = position + 1 < reach ? position + 1 : reach, body = dim - rotary;
    Visible visible = {compressed, picks ? picks + size_t(token) * k : nullptr, picks ? counts[token] : seen[token],
                       window,     (position + 1 - near) % ring,                ring,
                       near,       body + body / 64 + 2 * rotary};
    const unsigned rows = visible.far + near;
    float* weights = tile + TILE * dim + size_t(warp_of_thread()) * room;
    const bool active = head < heads;
    const size_t at = (size_t(token) * heads + (active ? head : 0)) * dim;
    float query[DIM_PARTS], sum[DIM_PARTS];
#pragma unroll
    for (unsigned part = 0; part < DIM_PARTS; part++) {
        const unsigned i = part * LANES + lane;
        query[part] = i < dim ? queries[at + i] : 0.0f;
        sum[part] = 0.0f;
    }
    for (unsigned from = 0; from < rows; from += TILE) {
        __syncthreads();
        load_tile(visible, from, rows, dim, rotary, tile);
        __syncthreads();
        for (unsigned row = 0; row < TILE && from + row < rows; row++) {
            float dot = 0.0f;
#pragma unroll
            for (unsigned part = 0; part < DIM_PARTS; part++) {
                const unsigned i = part * LANES + lane;
                if (i < dim) dot = fmaf(query[part], tile[row * dim + i], dot);
            }
            dot = fold_lanes(dot);
            if (lane == 0) weights[from + row] = dot * scale;
        }
    }
    __syncwarp();
    const float sink = active ? sinks[head] : 0.0f;
    float most = sink;
    for (unsigned i = lane; i < rows; i += LANES) most = fmaxf(most, weights[i]);
    most = max_of_lanes(most);
    float total = 0.0f;
    for (unsigned i = lane; i < rows; i += LANES) {
        weights[i] = exp_fixed(weights[i] - most);
        total += weights[i];
    }
    const float share = 1.0f / (exp_fixed(sink - most) + __shfl_sync(ALL, fold_lanes(total), 0));
    for (unsigned i = lane; i < rows; i += LANES) weights[i] = weights[i] * share;
    for (unsigned from = 0; from < rows; from += TILE) {
        __syncthreads();
        load_tile(visible, from, rows, dim, rotary, tile);
        __syncthreads();
        for (unsigned row = 0; row < TILE && from + row < rows; row++) {
            const float weight = weights[from + row];
#pragma unroll
            for (unsigned part = 0; part < DIM_PARTS; part++) {
                const unsigned i = part * LANES + lane;
                if (i < dim) sum[part] = fmaf(weight, tile[row * dim + i], sum[part]);
            }
        }
    }
#pragma unroll
    for (unsigned part = 0; part < DIM_PARTS; part++) {
        const unsigned i = part * LANES + lane;
        if (active && i < dim) out[at + i] = sum[part];
    }
}
KERNEL(attend)

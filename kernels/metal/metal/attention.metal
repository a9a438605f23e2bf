// Attention of a token's query heads over its compressed rows and its window, with a sink: `kernels/core/src/ops/attention.rs`.

constant constexpr uint TILE = 8;        // rows decoded at a time
constant constexpr uint DIM_PARTS = 16;  // values of a head per lane: a head of at most 512
constant constexpr uint ATTEND_SIMDS = 8;

struct Attend {
    uint heads, dim, rotary, reach, ring, k, picked, room;
    float scale;
};

// Where a token's rows lie. Compressed rows come first, ascending, then window rows, ascending.
struct Visible {
    device const uchar* compressed;
    device const uint* picks;
    uint picked, far;  // without `picked` all of the first `far`
    device const uchar* window;
    uint first, ring, near;  // slot of the first window row, slots, number of rows
    uint bytes;
    device const uchar* row(uint i) const {
        if (i < far) return compressed + ulong(picked ? picks[i] : i) * bytes;
        return window + ulong((first + (i - far)) % ring) * bytes;
    }
};

// Decodes rows from..from + TILE of the token into threadgroup memory, by all threads.
DEVICE void load_tile(thread const Visible& visible, uint from, uint rows, constant Attend& c, threadgroup float* tile, uint thread_index, uint threads) {
    for (uint i = thread_index; i < TILE * c.dim; i += threads) {
        const uint row = i / c.dim;
        if (from + row < rows) tile[i] = kv_value(visible.row(from + row), i % c.dim, c.dim, c.rotary);
    }
}

// A group per (heads, token), a SIMD group per head; the heads of a group share the decoded rows. `picks` is [tokens][k] with `counts` where `picked`;
// otherwise `counts` says how many of the first compressed rows a token sees. `positions` are those of the tokens. `weights` is scratch, [tokens][heads][room]: a
// token may see more rows than threadgroup memory holds.
kernel void attend(device const float* queries [[buffer(0)]], device const uchar* window [[buffer(1)]], device const uchar* compressed [[buffer(2)]],
                   device const uint* picks [[buffer(3)]], device const uint* counts [[buffer(4)]], device const uint* positions [[buffer(5)]],
                   device const float* sinks [[buffer(6)]], device float* weights [[buffer(7)]], device float* out [[buffer(8)]],
                   constant Attend& c [[buffer(9)]], threadgroup float* tile [[threadgroup(0)]], PLACE) {
    const uint token = group.y, head = group.x * ATTEND_SIMDS + simd, dim = c.dim;
    const uint position = positions[token], near = position + 1 < c.reach ? position + 1 : c.reach, body = dim - c.rotary;
    Visible visible;
    visible.compressed = compressed;
    visible.picks = picks + ulong(token) * c.k;
    visible.picked = c.picked;
    visible.far = counts[token];
    visible.window = window;
    visible.first = (position + 1 - near) % c.ring;
    visible.ring = c.ring;
    visible.near = near;
    visible.bytes = body + body / 64 + 2 * c.rotary;
    const uint rows = visible.far + near;
    const bool active = head < c.heads;
    const ulong number = ulong(token) * c.heads + (active ? head : 0), at = number * dim;
    device float* of_head = weights + number * c.room;
    float query[DIM_PARTS], sum[DIM_PARTS];
    for (uint part = 0; part < DIM_PARTS; part++) {
        const uint i = part * LANES + lane;
        query[part] = i < dim ? queries[at + i] : 0.0f;
        sum[part] = 0.0f;
    }
    for (uint from = 0; from < rows; from += TILE) {
        threads_meet();
        load_tile(visible, from, rows, c, tile, thread_index, threads.x);
        threads_meet();
        for (uint row = 0; row < TILE && from + row < rows; row++) {
            float dot = 0.0f;
            for (uint part = 0; part < DIM_PARTS; part++) {
                const uint i = part * LANES + lane;
                if (i < dim) dot = fma(query[part], tile[row * dim + i], dot);
            }
            dot = fold_lanes(dot);
            if (active && lane == 0) of_head[from + row] = dot * c.scale;
        }
    }
    simdgroup_barrier(mem_flags::mem_device);
    if (active) {
        const float sink = sinks[head];
        float most = sink;
        for (uint i = lane; i < rows; i += LANES) most = fmax(most, of_head[i]);
        most = max_of_lanes(most);
        float total = 0.0f;
        for (uint i = lane; i < rows; i += LANES) {
            const float weight = exp_fixed(of_head[i] - most);
            of_head[i] = weight;
            total += weight;
        }
        const float share = 1.0f / (exp_fixed(sink - most) + simd_broadcast(fold_lanes(total), 0));
        for (uint i = lane; i < rows; i += LANES) of_head[i] = of_head[i] * share;
    }
    simdgroup_barrier(mem_flags::mem_device);
    for (uint from = 0; from < rows; from += TILE) {
        threads_meet();
        load_tile(visible, from, rows, c, tile, thread_index, threads.x);
        threads_meet();
        for (uint row = 0; active && row < TILE && from + row < rows; row++) {
            const float weight = of_head[from + row];
            for (uint part = 0; part < DIM_PARTS; part++) {
                const uint i = part * LANES + lane;
                if (i < dim) sum[part] = fma(weight, tile[row * dim + i], sum[part]);
            }
        }
    }
    for (uint part = 0; part < DIM_PARTS; part++) {
        const uint i = part * LANES + lane;
        if (active && i < dim) out[at + i] = sum[part];
    }
}

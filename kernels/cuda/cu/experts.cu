// The chosen experts over their tokens: gate, up and SwiGLU in one kernel, down in another.
//
// Choices come in groups of one expert: `order[starts[g]]..order[starts[g + 1]]` are the choices of expert g; with `order` null group g is choice g
// alone, and `experts[g]` its expert (decoding: a few choices, hardly two of one expert). A warp per ROWS rows, grid (rows, groups).
#include "math.cuh"
#include "mma.cuh"

constexpr int EXPERT_WARPS = 4;

struct Group {
    unsigned expert, from, to;
    const unsigned* order;
    DEVICE Group of(const unsigned* experts, const unsigned* order, const unsigned* starts, unsigned group) {
        if (order == nullptr) return {experts[group], group, group + 1, nullptr};
        return {group, starts[group], starts[group + 1], order};
    }
    DEVICE unsigned choice(const Group& group, unsigned i) { return group.order == nullptr ? i : group.order[i]; }
};

// silu(min(gate, clamp)) * clamp(up, -clamp, clamp) * weight.
DEVICE float swiglu_of(float gate, float up, float bound, float weight) {
    return silu(fminf(gate, bound)) * bounded(up, -bound, bound) * weight;
}

template <class F, int ROWS, int TOKENS>
DEVICE void gate_up(Weights gate, Weights up, const int8_t* codes, const float* scales, const unsigned* experts, const unsigned* order,
                    const unsigned* starts, const float* weights, float* out, unsigned rows, unsigned cols, unsigned used, float bound) {
    SHARED(Part, parts, [EXPERT_WARPS][ROWS * TOKENS * STEP_BLOCKS<F>]);
    const unsigned row = (blockIdx.x * EXPERT_WARPS + warp_of_thread()) * ROWS;
    if (row >= rows) return;
    const Group group = Group::of(experts, order, starts, blockIdx.y);
    const int blocks = cols / F::BLOCK, rows_here = rows - row < ROWS ? rows - row : ROWS;
    const size_t first = size_t(group.expert) * rows + row;
    const int lane = lane_of_thread(), r = lane / TOKENS, t = lane % TOKENS;
    for (unsigned from = group.from; from < group.to; from += TOKENS) {
        const int here = group.to - from < TOKENS ? group.to - from : TOKENS;
        unsigned tokens[TOKENS];
#pragma unroll
        for (int i = 0; i < TOKENS; i++) tokens[i] = i < here ? Group::choice(group, from + i) / used : 0;
        Part* mine = parts[warp_of_thread()];
        const float g = warp_dots<F, ROWS, TOKENS>(gate, first, rows_here, codes, scales, tokens, here, blocks, mine);
        const float u = warp_dots<F, ROWS, TOKENS>(up, first, rows_here, codes, scales, tokens, here, blocks, mine);
        if (r < rows_here && t < here) {
            const unsigned choice = Group::choice(group, from + t);
            out[size_t(choice) * rows + row + r] = swiglu_of(g, u, bound, weights[choice]);
        }
    }
}

template <class F, int ROWS, int TOKENS>
DEVICE void down(Weights down, const int8_t* codes, const float* scales, const unsigned* experts, const unsigned* order,
                 const unsigned* starts, float* out, unsigned rows, unsigned cols) {
    SHARED(Part, parts, [EXPERT_WARPS][ROWS * TOKENS * STEP_BLOCKS<F>]);
    const unsigned row = (blockIdx.x * EXPERT_WARPS + warp_of_thread()) * ROWS;
    if (row >= rows) return;
    const Group group = Group::of(experts, order, starts, blockIdx.y);
    const int blocks = cols / F::BLOCK, rows_here = rows - row < ROWS ? rows - row : ROWS;
    const size_t first = size_t(group.expert) * rows + row;
    const int lane = lane_of_thread(), r = lane / TOKENS, t = lane % TOKENS;
    for (unsigned from = group.from; from < group.to; from += TOKENS) {
        const int here = group.to - from < TOKENS ? group.to - from : TOKENS;
        unsigned choices[TOKENS];
#pragma unroll
        for (int i = 0; i < TOKENS; i++) choices[i] = i < here ? Group::choice(group, from + i) : 0;
        const float dot =
            warp_dots<F, ROWS, TOKENS>(down, first, rows_here, codes, scales, choices, here, blocks, parts[warp_of_thread()]);
        if (r < rows_here && t < here) out[size_t(Group::choice(group, from + t)) * rows + row + r] = dot;
    }
}

// The same on tensor cores, always in groups: a warp per 16 rows, EXPERT_TILES * 8 choices at a time.
constexpr int EXPERT_TILES = 2;

template <class F>
DEVICE void gate_up_tiles(Weights gate, Weights up, const int8_t* codes, const float* scales, const unsigned* order, const unsigned* starts,
                          const float* weights, float* out, unsigned rows, unsigned cols, unsigned used, float bound) {
    const unsigned row = (blockIdx.x * EXPERT_WARPS + warp_of_thread()) * TILE_ROWS, expert = blockIdx.y, to = starts[expert + 1];
    if (row >= rows) return;
    const int blocks = cols / F::BLOCK, rows_here = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
    const size_t first = size_t(expert) * rows + row;
    const TileRows of_gate = TileRows::of<F>(gate, first, rows_here, blocks), of_up = TileRows::of<F>(up, first, rows_here, blocks);
    for (unsigned from = starts[expert]; from < to; from += EXPERT_TILES * TILE_TOKENS) {
        const auto input = [=](int i) { return order[from + i < to ? from + i : to - 1] / used; };
        float g[EXPERT_TILES][4], u[EXPERT_TILES][4];
        tile_dots<F, EXPERT_TILES>(g, of_gate, codes, scales, input, blocks);
        tile_dots<F, EXPERT_TILES>(u, of_up, codes, scales, input, blocks);
        for (int n = 0; n < EXPERT_TILES; n++) {
            for (int i = 0; i < 4; i++) {
                const unsigned r = tile_row(i), at = from + tile_token(n, i);
                if (row + r >= rows || at >= to) continue;
                const unsigned choice = order[at];
                out[size_t(choice) * rows + row + r] = swiglu_of(g[n][i], u[n][i], bound, weights[choice]);
            }
        }
    }
}

template <class F>
DEVICE void down_tiles(Weights down, const int8_t* codes, const float* scales, const unsigned* order, const unsigned* starts, float* out,
                       unsigned rows, unsigned cols) {
    const unsigned row = (blockIdx.x * EXPERT_WARPS + warp_of_thread()) * TILE_ROWS, expert = blockIdx.y, to = starts[expert + 1];
    if (row >= rows) return;
    const int blocks = cols / F::BLOCK, rows_here = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
    const TileRows of_down = TileRows::of<F>(down, size_t(expert) * rows + row, rows_here, blocks);
    for (unsigned from = starts[expert]; from < to; from += EXPERT_TILES * TILE_TOKENS) {
        const auto input = [=](int i) { return order[from + i < to ? from + i : to - 1]; };
        float sums[EXPERT_TILES][4];
        tile_dots<F, EXPERT_TILES>(sums, of_down, codes, scales, input, blocks);
        for (int n = 0; n < EXPERT_TILES; n++) {
            for (int i = 0; i < 4; i++) {
                const unsigned r = tile_row(i), at = from + tile_token(n, i);
                if (row + r < rows && at < to) out[size_t(order[at]) * rows + row + r] = sums[n][i];
            }
        }
    }
}

#define EXPERT_TILES_OF(suffix, F)                                                                                                    \
    GLOBAL __launch_bounds__(EXPERT_WARPS * LANES)                                                                                    \
        gate_up_##suffix(const uint8_t* __restrict__ gate_heads, const uint8_t* __restrict__ gate_body,                               \
                         const uint8_t* __restrict__ up_heads, const uint8_t* __restrict__ up_body, const int8_t* __restrict__ codes, \
                         const float* __restrict__ scales, const unsigned* __restrict__ order, const unsigned* __restrict__ starts,   \
                         const float* __restrict__ weights, float* __restrict__ out, unsigned rows, unsigned cols, unsigned used,     \
                         float bound) {                                                                                               \
        gate_up_tiles<F>({gate_heads, gate_body}, {up_heads, up_body}, codes, scales, order, starts, weights, out, rows, cols, used,  \
                         bound);                                                                                                      \
    }                                                                                                                                 \
    KERNEL(gate_up_##suffix)                                                                                                          \
    GLOBAL __launch_bounds__(EXPERT_WARPS * LANES)                                                                                    \
        down_##suffix(const uint8_t* __restrict__ heads, const uint8_t* __restrict__ body, const int8_t* __restrict__ codes,          \
                      const float* __restrict__ scales, const unsigned* __restrict__ order, const unsigned* __restrict__ starts,      \
                      float* __restrict__ out, unsigned rows, unsigned cols) {                                                        \
        down_tiles<F>({heads, body}, codes, scales, order, starts, out, rows, cols);                                                  \
    }                                                                                                                                 \
    KERNEL(down_##suffix)
EXPERT_TILES_OF(q8_0_tiles, Q8_0)
EXPERT_TILES_OF(q2_k_tiles, Q2_K)
EXPERT_TILES_OF(q4_k_tiles, Q4_K)
EXPERT_TILES_OF(iq2_xxs_tiles, IQ2_XXS)
EXPERT_TILES_OF(mxfp4_tiles, MXFP4)

#define EXPERTS(suffix, F, ROWS, TOKENS)                                                                                              \
    GLOBAL __launch_bounds__(EXPERT_WARPS * LANES)                                                                                    \
        gate_up_##suffix(const uint8_t* __restrict__ gate_heads, const uint8_t* __restrict__ gate_body,                               \
                         const uint8_t* __restrict__ up_heads, const uint8_t* __restrict__ up_body, const int8_t* __restrict__ codes, \
                         const float* __restrict__ scales, const unsigned* __restrict__ experts, const unsigned* __restrict__ order,  \
                         const unsigned* __restrict__ starts, const float* __restrict__ weights, float* __restrict__ out,             \
                         unsigned rows, unsigned cols, unsigned used, float bound) {                                                  \
        gate_up<F, ROWS, TOKENS>({gate_heads, gate_body}, {up_heads, up_body}, codes, scales, experts, order, starts, weights, out,   \
                                 rows, cols, used, bound);                                                                            \
    }                                                                                                                                 \
    KERNEL(gate_up_##suffix)                                                                                                          \
    GLOBAL __launch_bounds__(EXPERT_WARPS * LANES)                                                                                    \
        down_##suffix(const uint8_t* __restrict__ heads, const uint8_t* __restrict__ body, const int8_t* __restrict__ codes,          \
                      const float* __restrict__ scales, const unsigned* __restrict__ experts, const unsigned* __restrict__ order,     \
                      const unsigned* __restrict__ starts, float* __restrict__ out, unsigned rows, unsigned cols) {                   \
        down<F, ROWS, TOKENS>({heads, body}, codes, scales, experts, order, starts, out, rows, cols);                                 \
    }                                                                                                                                 \
    KERNEL(down_##suffix)
EXPERTS(q8_0_one, Q8_0, 4, 1)
EXPERTS(q2_k_one, Q2_K, 4, 1)
EXPERTS(q4_k_one, Q4_K, 4, 1)
EXPERTS(iq2_xxs_one, IQ2_XXS, 4, 1)
EXPERTS(mxfp4_one, MXFP4, 4, 1)
EXPERTS(q8_0_many, Q8_0, 1, 8)
EXPERTS(q2_k_many, Q2_K, 1, 8)
EXPERTS(q4_k_many, Q4_K, 1, 8)
EXPERTS(iq2_xxs_many, IQ2_XXS, 1, 8)
EXPERTS(mxfp4_many, MXFP4, 1, 8)

// The shared expert's activation, in place of `gate`. A thread per value.
GLOBAL swiglu(float* __restrict__ gate, const float* __restrict__ up, unsigned count, float bound) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) gate[i] = swiglu_of(gate[i], up[i], bound, 1.0f);
}
KERNEL(swiglu)

// shared += the routed experts' outputs, ascending: `parts` is [tokens][used][width]. A thread per value.
GLOBAL combine_experts(float* __restrict__ shared, const float* __restrict__ parts, unsigned count, unsigned used, unsigned width) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const size_t token = i / width, d = i % width;
    float sum = 0.0f;
    for (unsigned slot = 0; slot < used; slot++) sum += parts[(token * used + slot) * width + d];
    shared[i] = shared[i] + sum;
}
KERNEL(combine_experts)

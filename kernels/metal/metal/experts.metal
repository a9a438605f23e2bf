// The chosen experts over their tokens: gate, up and SwiGLU in one kernel, down in another.
//
// Choices come in groups of one expert: `order[starts[g]]..order[starts[g + 1]]` are the choices of expert g; without `grouped` group g is choice g
// alone, `experts[g]` its expert, and the two lists are not read (decoding: a few choices, hardly two of one expert). A SIMD group per ROWS rows, grid
// (rows, groups).

constant constexpr uint EXPERT_SIMDS = 4;

struct Chosen {
    uint rows, cols, used, grouped;
    float bound;
};

struct Choices {
    uint expert, from, to;
    device const uint* order;
    uint grouped;
    static Choices of(device const uint* experts, device const uint* order, device const uint* starts, uint grouped, uint group) {
        if (!grouped) return {experts[group], group, group + 1, order, 0};
        return {group, starts[group], starts[group + 1], order, 1};
    }
    uint at(uint i) const { return grouped ? order[i] : i; }
};

// silu(min(gate, clamp)) * clamp(up, -clamp, clamp) * weight.
DEVICE float swiglu_of(float gate, float up, float bound, float weight) {
    return silu(fmin(gate, bound)) * bounded(up, -bound, bound) * weight;
}

template <class F, uint ROWS, uint TOKENS>
static inline void gate_and_up(device const uchar* gate, device const uchar* up, device const char* codes, device const float* scales,
                               Choices choices, device const float* weights, device float* out, constant Chosen& c, threadgroup Part* parts,
                               uint2 group, uint lane, uint simd) {
    const uint row = (group.x * EXPERT_SIMDS + simd) * ROWS;
    if (row >= c.rows) return;
    const uint blocks = c.cols / F::BLOCK, rows_here = min(c.rows - row, ROWS);
    const ulong first = ulong(choices.expert) * c.rows + row;
    const uint r = lane / TOKENS, t = lane % TOKENS;
    threadgroup Part* mine = parts + simd * ROWS * TOKENS * STEP_BLOCKS(F);
    for (uint from = choices.from; from < choices.to; from += TOKENS) {
        const uint here = min(choices.to - from, TOKENS);
        uint tokens[TOKENS];
        for (uint i = 0; i < TOKENS; i++) tokens[i] = i < here ? choices.at(from + i) / c.used : 0;
        const float g = simd_dots<F, ROWS, TOKENS>(gate, first, rows_here, codes, scales, tokens, here, blocks, mine, lane);
        const float u = simd_dots<F, ROWS, TOKENS>(up, first, rows_here, codes, scales, tokens, here, blocks, mine, lane);
        if (r < rows_here && t < here) {
            const uint choice = choices.at(from + t);
            out[ulong(choice) * c.rows + row + r] = swiglu_of(g, u, c.bound, weights[choice]);
        }
    }
}

template <class F, uint ROWS, uint TOKENS>
static inline void last_product(device const uchar* down, device const char* codes, device const float* scales, Choices choices, device float* out,
                                constant Chosen& c, threadgroup Part* parts, uint2 group, uint lane, uint simd) {
    const uint row = (group.x * EXPERT_SIMDS + simd) * ROWS;
    if (row >= c.rows) return;
    const uint blocks = c.cols / F::BLOCK, rows_here = min(c.rows - row, ROWS);
    const ulong first = ulong(choices.expert) * c.rows + row;
    const uint r = lane / TOKENS, t = lane % TOKENS;
    threadgroup Part* mine = parts + simd * ROWS * TOKENS * STEP_BLOCKS(F);
    for (uint from = choices.from; from < choices.to; from += TOKENS) {
        const uint here = min(choices.to - from, TOKENS);
        uint inputs[TOKENS];
        for (uint i = 0; i < TOKENS; i++) inputs[i] = i < here ? choices.at(from + i) : 0;
        const float dot = simd_dots<F, ROWS, TOKENS>(down, first, rows_here, codes, scales, inputs, here, blocks, mine, lane);
        if (r < rows_here && t < here) out[ulong(choices.at(from + t)) * c.rows + row + r] = dot;
    }
}

// The same by `simdgroup_matrix`, always in groups: a threadgroup per TILE_ROWS rows, TILE_TOKENS choices at a time.
template <class F>
static inline void gate_and_up_by_tiles(device const uchar* gate, device const uchar* up, device const char* codes, device const float* scales,
                                        Choices choices, device const float* weights, device float* out, constant Chosen& c,
                                        threadgroup Tiles<F>& tiles, uint2 group, uint thread_index, uint lane, uint simd) {
    const uint row = group.x * TILE_ROWS, r = tile_row(lane, simd);
    const ulong first = ulong(choices.expert) * c.rows + row;
    const TileOperands of_gate = {gate, first, c.rows - row, codes, scales, c.cols / F::BLOCK};
    const TileOperands of_up = {up, first, c.rows - row, codes, scales, c.cols / F::BLOCK};
    for (uint from = choices.from; from < choices.to; from += TILE_TOKENS) {
        const uint here = min(choices.to - from, TILE_TOKENS);
        // Those of the choices before are still read.
        threads_meet();
        if (thread_index < TILE_TOKENS) tiles.inputs[thread_index] = choices.at(from + min(thread_index, here - 1)) / c.used;
        const TileValues<float> g = tile_dots<F>(tiles, of_gate, here, thread_index, lane, simd);
        const TileValues<float> u = tile_dots<F>(tiles, of_up, here, thread_index, lane, simd);
        UNROLL for (uint n = 0; n < TOKEN_SIDES; n++)
            UNROLL for (uint i = 0; i < 4; i++) {
                const uint t = tile_token(n, i, lane);
                if (row + r >= c.rows || t >= here) continue;
                const uint choice = choices.at(from + t);
                out[ulong(choice) * c.rows + row + r] = swiglu_of(g.at[n][i], u.at[n][i], c.bound, weights[choice]);
            }
    }
}

template <class F>
static inline void last_product_by_tiles(device const uchar* down, device const char* codes, device const float* scales, Choices choices,
                                         device float* out, constant Chosen& c, threadgroup Tiles<F>& tiles, uint2 group, uint thread_index,
                                         uint lane, uint simd) {
    const uint row = group.x * TILE_ROWS, r = tile_row(lane, simd);
    const TileOperands operands = {down, ulong(choices.expert) * c.rows + row, c.rows - row, codes, scales, c.cols / F::BLOCK};
    for (uint from = choices.from; from < choices.to; from += TILE_TOKENS) {
        const uint here = min(choices.to - from, TILE_TOKENS);
        threads_meet();
        if (thread_index < TILE_TOKENS) tiles.inputs[thread_index] = choices.at(from + min(thread_index, here - 1));
        const TileValues<float> dots = tile_dots<F>(tiles, operands, here, thread_index, lane, simd);
        UNROLL for (uint n = 0; n < TOKEN_SIDES; n++)
            UNROLL for (uint i = 0; i < 4; i++) {
                const uint t = tile_token(n, i, lane);
                if (row + r < c.rows && t < here) out[ulong(choices.at(from + t)) * c.rows + row + r] = dots.at[n][i];
            }
    }
}

#define EXPERTS(suffix, F, ROWS, TOKENS)                                                                                              \
    kernel void gate_up_##suffix(device const uchar* gate [[buffer(0)]], device const uchar* up [[buffer(1)]],                        \
                                 device const char* codes [[buffer(2)]], device const float* scales [[buffer(3)]],                    \
                                 device const uint* experts [[buffer(4)]], device const uint* order [[buffer(5)]],                    \
                                 device const uint* starts [[buffer(6)]], device const float* weights [[buffer(7)]],                  \
                                 device float* out [[buffer(8)]], constant Chosen& c [[buffer(9)]], PLACE) {                          \
        SHARED(Part, parts, [EXPERT_SIMDS * ROWS * TOKENS * STEP_BLOCKS(F)]);                                                         \
        const Choices choices = Choices::of(experts, order, starts, c.grouped, group.y);                                              \
        gate_and_up<F, ROWS, TOKENS>(gate, up, codes, scales, choices, weights, out, c, parts, group, lane, simd);                    \
    }                                                                                                                                 \
    kernel void down_##suffix(device const uchar* down [[buffer(0)]], device const char* codes [[buffer(1)]],                         \
                              device const float* scales [[buffer(2)]], device const uint* experts [[buffer(3)]],                     \
                              device const uint* order [[buffer(4)]], device const uint* starts [[buffer(5)]],                        \
                              device float* out [[buffer(6)]], constant Chosen& c [[buffer(7)]], PLACE) {                             \
        SHARED(Part, parts, [EXPERT_SIMDS * ROWS * TOKENS * STEP_BLOCKS(F)]);                                                         \
        const Choices choices = Choices::of(experts, order, starts, c.grouped, group.y);                                              \
        last_product<F, ROWS, TOKENS>(down, codes, scales, choices, out, c, parts, group, lane, simd);                                \
    }
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

#define EXPERTS_BY_TILES(suffix, F)                                                                                            \
    kernel void gate_up_##suffix(device const uchar* gate [[buffer(0)]], device const uchar* up [[buffer(1)]],                 \
                                 device const char* codes [[buffer(2)]], device const float* scales [[buffer(3)]],             \
                                 device const uint* experts [[buffer(4)]], device const uint* order [[buffer(5)]],             \
                                 device const uint* starts [[buffer(6)]], device const float* weights [[buffer(7)]],           \
                                 device float* out [[buffer(8)]], constant Chosen& c [[buffer(9)]], PLACE) {                   \
        SHARED(Tiles<F>, tiles, [1]);                                                                                          \
        const Choices choices = Choices::of(experts, order, starts, c.grouped, group.y);                                       \
        gate_and_up_by_tiles<F>(gate, up, codes, scales, choices, weights, out, c, tiles[0], group, thread_index, lane, simd); \
    }                                                                                                                          \
    kernel void down_##suffix(device const uchar* down [[buffer(0)]], device const char* codes [[buffer(1)]],                  \
                              device const float* scales [[buffer(2)]], device const uint* experts [[buffer(3)]],              \
                              device const uint* order [[buffer(4)]], device const uint* starts [[buffer(5)]],                 \
                              device float* out [[buffer(6)]], constant Chosen& c [[buffer(7)]], PLACE) {                      \
        SHARED(Tiles<F>, tiles, [1]);                                                                                          \
        const Choices choices = Choices::of(experts, order, starts, c.grouped, group.y);                                       \
        last_product_by_tiles<F>(down, codes, scales, choices, out, c, tiles[0], group, thread_index, lane, simd);             \
    }
EXPERTS_BY_TILES(q8_0_tiles, Q8_0)
EXPERTS_BY_TILES(q2_k_tiles, Q2_K)
EXPERTS_BY_TILES(q4_k_tiles, Q4_K)
EXPERTS_BY_TILES(iq2_xxs_tiles, IQ2_XXS)
EXPERTS_BY_TILES(mxfp4_tiles, MXFP4)

struct Swiglu {
    uint count;
    float bound;
};

// The shared expert's activation, in place of `gate`. A thread per value.
kernel void swiglu(device float* gate [[buffer(0)]], device const float* up [[buffer(1)]], constant Swiglu& c [[buffer(2)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i < c.count) gate[i] = swiglu_of(gate[i], up[i], c.bound, 1.0f);
}

struct Combine {
    uint count, used, width;
};

// shared += the routed experts' outputs, ascending: `parts` is [tokens][used][width]. A thread per value.
kernel void combine_experts(device float* shared [[buffer(0)]], device const float* parts [[buffer(1)]], constant Combine& c [[buffer(2)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i >= c.count) return;
    const ulong token = i / c.width, d = i % c.width;
    float sum = 0.0f;
    for (uint slot = 0; slot < c.used; slot++) sum += parts[(token * c.used + slot) * c.width + d];
    shared[i] = shared[i] + sum;
}

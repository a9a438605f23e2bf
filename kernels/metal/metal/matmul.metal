// y[token][row] = weights[row] . x[token]: quantised weights with 8-bit activations, and f32/f16 weights with f32 activations.

constant constexpr uint MATMUL_SIMDS = 4;

struct Product {
    uint rows, cols, tokens;
};

// A SIMD group per ROWS rows and TOKENS tokens; grid (rows, tokens).
template <class F, uint ROWS, uint TOKENS>
static inline void product(device const uchar* weights, device const char* codes, device const float* scales, device float* y, constant Product& c,
                           threadgroup Part* parts, uint2 group, uint lane, uint simd) {
    const uint row = (group.x * MATMUL_SIMDS + simd) * ROWS, token = group.y * TOKENS;
    if (row >= c.rows) return;
    const uint blocks = c.cols / F::BLOCK;
    const uint rows_here = min(c.rows - row, ROWS), tokens_here = min(c.tokens - token, TOKENS);
    uint inputs[TOKENS];
    for (uint t = 0; t < TOKENS; t++) inputs[t] = token + t;
    const float dot = simd_dots<F, ROWS, TOKENS>(weights, row, rows_here, codes, scales, inputs, tokens_here, blocks,
                                                 parts + simd * ROWS * TOKENS * STEP_BLOCKS(F), lane);
    const uint r = lane / TOKENS, t = lane % TOKENS;
    if (r < rows_here && t < tokens_here) y[ulong(token + t) * c.rows + row + r] = dot;
}

#define MATMUL(name, F, ROWS, TOKENS)                                                                                            \
    kernel void name(device const uchar* weights [[buffer(0)]], device const char* codes [[buffer(1)]],                           \
                     device const float* scales [[buffer(2)]], device float* y [[buffer(3)]], constant Product& c [[buffer(4)]], PLACE) { \
        SHARED(Part, parts, [MATMUL_SIMDS * ROWS * TOKENS * STEP_BLOCKS(F)]);                                                     \
        product<F, ROWS, TOKENS>(weights, codes, scales, y, c, parts, group, lane, simd);                                         \
    }
MATMUL(matvec_q8_0, Q8_0, 4, 1)
MATMUL(matvec_q2_k, Q2_K, 4, 1)
MATMUL(matvec_q4_k, Q4_K, 4, 1)
MATMUL(matvec_iq2_xxs, IQ2_XXS, 4, 1)
MATMUL(matvec_mxfp4, MXFP4, 4, 1)
MATMUL(matmul_q8_0, Q8_0, 1, 8)
MATMUL(matmul_q2_k, Q2_K, 1, 8)
MATMUL(matmul_q4_k, Q4_K, 1, 8)
MATMUL(matmul_iq2_xxs, IQ2_XXS, 1, 8)
MATMUL(matmul_mxfp4, MXFP4, 1, 8)

// The same for many tokens by `simdgroup_matrix`: a threadgroup per tile; grid (rows, tokens).
template <class F>
static inline void product_by_tiles(device const uchar* weights, device const char* codes, device const float* scales, device float* y, constant Product& c,
                                    threadgroup Tiles<F>& tiles, uint2 group, uint thread_index, uint lane, uint simd) {
    const uint row = group.x * TILE_ROWS, token = group.y * TILE_TOKENS, tokens_here = min(c.tokens - token, TILE_TOKENS);
    if (thread_index < TILE_TOKENS) tiles.inputs[thread_index] = token + min(thread_index, tokens_here - 1);
    const TileOperands operands = {weights, row, c.rows - row, codes, scales, c.cols / F::BLOCK};
    const TileValues<float> dots = tile_dots<F>(tiles, operands, tokens_here, thread_index, lane, simd);
    const uint r = tile_row(lane, simd);
    UNROLL for (uint n = 0; n < TOKEN_SIDES; n++)
        UNROLL for (uint i = 0; i < 4; i++) {
            const uint t = tile_token(n, i, lane);
            if (row + r < c.rows && t < tokens_here) y[ulong(token + t) * c.rows + row + r] = dots.at[n][i];
        }
}

#define MATMUL_TILES(name, F)                                                                                                    \
    kernel void name(device const uchar* weights [[buffer(0)]], device const char* codes [[buffer(1)]],                           \
                     device const float* scales [[buffer(2)]], device float* y [[buffer(3)]], constant Product& c [[buffer(4)]], PLACE) { \
        SHARED(Tiles<F>, tiles, [1]);                                                                                             \
        product_by_tiles<F>(weights, codes, scales, y, c, tiles[0], group, thread_index, lane, simd);                             \
    }
MATMUL_TILES(tiles_q8_0, Q8_0)
MATMUL_TILES(tiles_q2_k, Q2_K)
MATMUL_TILES(tiles_q4_k, Q4_K)
MATMUL_TILES(tiles_iq2_xxs, IQ2_XXS)
MATMUL_TILES(tiles_mxfp4, MXFP4)

struct F32 {
    enum { BYTES = 4 };
    static float load(device const uchar* row, uint i) { return reinterpret_cast<device const float*>(row)[i]; }
};
struct F16 {
    enum { BYTES = 2 };
    static float load(device const uchar* row, uint i) { return half_to_float(reinterpret_cast<device const ushort*>(row)[i]); }
};

// A SIMD group per row and TOKENS tokens: lane i has the products i, i + 32, ... in ascending order, then one tree over the lanes.
template <class F, uint TOKENS>
static inline void product_of_floats(device const uchar* weights, device const float* x, device float* y, constant Product& c, uint2 group, uint lane,
                                     uint simd) {
    const uint row = group.x * MATMUL_SIMDS + simd, token = group.y * TOKENS;
    if (row >= c.rows) return;
    const uint tokens_here = min(c.tokens - token, TOKENS);
    device const uchar* of_row = weights + ulong(row) * c.cols * F::BYTES;
    float sums[TOKENS] = {};
    for (uint i = lane; i < c.cols; i += LANES) {
        const float w = F::load(of_row, i);
        for (uint t = 0; t < tokens_here; t++) sums[t] = fma(w, x[ulong(token + t) * c.cols + i], sums[t]);
    }
    for (uint t = 0; t < TOKENS; t++) {
        const float sum = fold_lanes(sums[t]);
        if (lane == 0 && t < tokens_here) y[ulong(token + t) * c.rows + row] = sum;
    }
}

#define MATMUL_FLOATS(name, F, TOKENS)                                                                                        \
    kernel void name(device const uchar* weights [[buffer(0)]], device const float* x [[buffer(1)]], device float* y [[buffer(2)]], \
                     constant Product& c [[buffer(3)]], PLACE) {                                                              \
        product_of_floats<F, TOKENS>(weights, x, y, c, group, lane, simd);                                                    \
    }
MATMUL_FLOATS(matvec_f32, F32, 1)
MATMUL_FLOATS(matvec_f16, F16, 1)
MATMUL_FLOATS(matmul_f32, F32, 4)
MATMUL_FLOATS(matmul_f16, F16, 4)

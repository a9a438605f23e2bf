// y[token][row] = weights[row] . x[token]: quantised weights with 8-bit activations, and f32/f16 weights with f32 activations.
#include "mma.cuh"

constexpr int MATMUL_WARPS = 4;

// A warp per ROWS rows and TOKENS tokens; grid (rows, tokens).
template <class F, int ROWS, int TOKENS>
DEVICE void matmul_quantized(Weights weights, const int8_t* codes, const float* scales, float* y, unsigned rows, unsigned cols,
                             unsigned tokens) {
    SHARED(Part, parts, [MATMUL_WARPS][ROWS * TOKENS * STEP_BLOCKS<F>]);
    const unsigned row = (blockIdx.x * MATMUL_WARPS + warp_of_thread()) * ROWS, token = blockIdx.y * TOKENS;
    if (row >= rows) return;
    const int blocks = cols / F::BLOCK;
    const int rows_here = rows - row < ROWS ? rows - row : ROWS, tokens_here = tokens - token < TOKENS ? tokens - token : TOKENS;
    unsigned inputs[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++) inputs[t] = token + t;
    const float dot =
        warp_dots<F, ROWS, TOKENS>(weights, row, rows_here, codes, scales, inputs, tokens_here, blocks, parts[warp_of_thread()]);
    const int lane = lane_of_thread(), r = lane / TOKENS, t = lane % TOKENS;
    if (r < rows_here && t < tokens_here) y[size_t(token + t) * rows + row + r] = dot;
}

#define MATMUL(name, F, ROWS, TOKENS)                                                                                                \
    GLOBAL __launch_bounds__(MATMUL_WARPS * LANES)                                                                                   \
        name(const uint8_t* __restrict__ heads, const uint8_t* __restrict__ body, const int8_t* __restrict__ codes,                  \
             const float* __restrict__ scales, float* __restrict__ y, unsigned rows, unsigned cols, unsigned tokens) {               \
        matmul_quantized<F, ROWS, TOKENS>({heads, body}, codes, scales, y, rows, cols, tokens);                                      \
    }                                                                                                                                \
    KERNEL(name)
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

// On tensor cores: a warp per 16 rows and MMA_TILES * 8 tokens; grid (rows, tokens).
constexpr int MMA_TILES = 4;

template <class F>
DEVICE void matmul_tiles(Weights weights, const int8_t* codes, const float* scales, float* y, unsigned rows, unsigned cols, unsigned tokens) {
    const unsigned row = (blockIdx.x * MATMUL_WARPS + warp_of_thread()) * TILE_ROWS, token = blockIdx.y * MMA_TILES * TILE_TOKENS;
    if (row >= rows) return;
    const int blocks = cols / F::BLOCK, rows_here = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
    const auto input = [=](int i) { return token + i < tokens ? token + i : tokens - 1; };
    float sums[MMA_TILES][4];
    tile_dots<F, MMA_TILES>(sums, TileRows::of<F>(weights, row, rows_here, blocks), codes, scales, input, blocks);
    for (int n = 0; n < MMA_TILES; n++) {
        for (int i = 0; i < 4; i++) {
            const unsigned r = tile_row(i), t = token + tile_token(n, i);
            if (row + r < rows && t < tokens) y[size_t(t) * rows + row + r] = sums[n][i];
        }
    }
}

#define MATMUL_TILES(name, F)                                                                                                        \
    GLOBAL __launch_bounds__(MATMUL_WARPS * LANES)                                                                                   \
        name(const uint8_t* __restrict__ heads, const uint8_t* __restrict__ body, const int8_t* __restrict__ codes,                  \
             const float* __restrict__ scales, float* __restrict__ y, unsigned rows, unsigned cols, unsigned tokens) {               \
        matmul_tiles<F>({heads, body}, codes, scales, y, rows, cols, tokens);                                                        \
    }                                                                                                                                \
    KERNEL(name)
MATMUL_TILES(tiles_q8_0, Q8_0)
MATMUL_TILES(tiles_q2_k, Q2_K)
MATMUL_TILES(tiles_q4_k, Q4_K)
MATMUL_TILES(tiles_iq2_xxs, IQ2_XXS)
MATMUL_TILES(tiles_mxfp4, MXFP4)

struct F32 {
    DEVICE float load(const uint8_t* row, unsigned i) { return reinterpret_cast<const float*>(row)[i]; }
    static constexpr size_t BYTES = 4;
};
struct F16 {
    DEVICE float load(const uint8_t* row, unsigned i) { return half_to_float(reinterpret_cast<const uint16_t*>(row)[i]); }
    static constexpr size_t BYTES = 2;
};

// A warp per row and TOKENS tokens: lane i has the products i, i + 32, ... in ascending order, then one tree over the lanes.
template <class F, int TOKENS>
DEVICE void matmul_floats(const uint8_t* weights, const float* x, float* y, unsigned rows, unsigned cols, unsigned tokens) {
    const unsigned row = blockIdx.x * MATMUL_WARPS + warp_of_thread(), token = blockIdx.y * TOKENS;
    if (row >= rows) return;
    const int tokens_here = tokens - token < TOKENS ? tokens - token : TOKENS;
    const uint8_t* of_row = weights + size_t(row) * cols * F::BYTES;
    float sums[TOKENS] = {};
    for (unsigned i = lane_of_thread(); i < cols; i += LANES) {
        const float w = F::load(of_row, i);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            if (t < tokens_here) sums[t] = fmaf(w, x[size_t(token + t) * cols + i], sums[t]);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float sum = fold_lanes(sums[t]);
        if (lane_of_thread() == 0 && t < tokens_here) y[size_t(token + t) * rows + row] = sum;
    }
}

#define MATMUL_FLOATS(name, F, TOKENS)                                                                                               \
    GLOBAL __launch_bounds__(MATMUL_WARPS * LANES)                                                                                   \
        name(const uint8_t* __restrict__ weights, const float* __restrict__ x, float* __restrict__ y, unsigned rows, unsigned cols,  \
             unsigned tokens) {                                                                                                      \
        matmul_floats<F, TOKENS>(weights, x, y, rows, cols, tokens);                                                                 \
    }                                                                                                                                \
    KERNEL(name)
MATMUL_FLOATS(matvec_f32, F32, 1)
MATMUL_FLOATS(matvec_f16, F16, 1)
MATMUL_FLOATS(matmul_f32, F32, 4)
MATMUL_FLOATS(matmul_f16, F16, 4)

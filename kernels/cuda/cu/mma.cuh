// Tiles of products on the tensor cores: 16 rows of weights by 8 tokens, sums of bytes as exact integers, so that a tile has the bits that
// `warp_dots` gives, whatever order the hardware adds in.
#pragma once
#include "quantized.cuh"

constexpr int TILE_ROWS = 16, TILE_TOKENS = 8;

// c += a . b for a [16][32] and b [32][8] of signed bytes, spread over a warp as PTX has it (ISA, "Matrix Fragments for mma.m16n8k32"): with
// g = lane / 4 and t = lane % 4 a lane holds of a the words t and t + 4 of row g (0 and 2) and of row g + 8 (1 and 3), of b the words t and t + 4 of
// token g, of c the tokens 2t and 2t + 1 of row g (0, 1) and of row g + 8 (2, 3).
DEVICE void mma_bytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    simt::mma_m16n8k32(c, a, b);
#endif
}

// The rows of weights of one lane in a tile: g and g + 8.
struct TileRows {
    const uint8_t* heads[2];
    const uint8_t* body[2];
    // Rows beyond the matrix read the last one; nobody stores what they give.
    template <class F>
    DEVICE TileRows of(Weights weights, size_t first_row, int rows_here, int blocks) {
        TileRows rows;
        for (int half = 0; half < 2; half++) {
            const int row = lane_of_thread() / 4 + 8 * half;
            const size_t at = (first_row + (row < rows_here ? row : rows_here - 1)) * size_t(blocks);
            rows.heads[half] = weights.heads + at * F::HEAD;
            rows.body[half] = weights.body + at * F::BODY;
        }
        return rows;
    }
};

// sums[n][i]: the dots of the tile's rows with TILES * 8 tokens, as `c` lies in a warp. `input(i)` is the row of `codes` and `scales` that column i
// reads, for any i. Blocks are added ascending as in `warp_dots`.
template <class F, int TILES, class Input>
DEVICE void tile_dots(float (&sums)[TILES][4], TileRows rows, const int8_t* codes, const float* scales, Input input, int blocks) {
    constexpr int PIECES = F::BLOCK / 32;
    const int g = lane_of_thread() / 4, t = lane_of_thread() % 4;
    for (int n = 0; n < TILES; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    for (int block = 0; block < blocks; block++) {
        int dots[TILES][4] = {}, minimums[TILES][4] = {};
#pragma unroll 1
        for (int piece = 0; piece < PIECES; piece++) {
            unsigned a[4], least[4];
            int step[2];
            for (int half = 0; half < 2; half++) {
                const uint8_t* body = rows.body[half] + size_t(block) * F::BODY;
                for (int k = 0; k < 2; k++) {
                    unsigned word = F::word(body, piece, t + 4 * k);
                    // Where steps are small they go into the codes, and a block is one sum.
                    if (F::SMALL) word *= unsigned(F::step(body, piece, k));
                    a[2 * k + half] = word;
                    if (F::MINIMUMS) least[2 * k + half] = unsigned(F::minimum(body, piece, k)) * 0x01010101u;
                }
                step[half] = F::SMALL ? 1 : F::step(body, piece, 0);
            }
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                const int8_t* of_token = codes + (size_t(input(8 * n + g)) * blocks + block) * F::BLOCK + 32 * piece;
                const unsigned b[2] = {reinterpret_cast<const unsigned*>(of_token)[t], reinterpret_cast<const unsigned*>(of_token)[t + 4]};
                if (F::SMALL) {
                    mma_bytes(dots[n], a, b);
                } else {
                    int part[4] = {};
                    mma_bytes(part, a, b);
                    for (int i = 0; i < 4; i++) dots[n][i] += step[i / 2] * part[i];
                }
                // The minimum of a group times the sum of its activations is a product with the minimum in every place.
                if (F::MINIMUMS) mma_bytes(minimums[n], least, b);
            }
        }
        const Scales of_row[2] = {F::scales(rows.heads[0] + size_t(block) * F::HEAD), F::scales(rows.heads[1] + size_t(block) * F::HEAD)};
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            for (int i = 0; i < 4; i++) {
                const float scale = scales[size_t(input(8 * n + 2 * t + i % 2)) * blocks + block];
                const Part part = part_of<F>(of_row[i / 2], scale, {dots[n][i], minimums[n][i]});
                sums[n][i] = fmaf(part.factor, part.dot, sums[n][i]);
                if (F::MINIMUMS) sums[n][i] = fmaf(part.negative, part.minimums, sums[n][i]);
            }
        }
    }
}

// Row and token of sums[n][i] within the tile.
DEVICE int tile_row(int i) { return lane_of_thread() / 4 + 8 * (i / 2); }
DEVICE int tile_token(int n, int i) { return 8 * n + 2 * (lane_of_thread() % 4) + i % 2; }

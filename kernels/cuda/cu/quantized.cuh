// Dots of quantised rows with 8-bit activations: each block an exact integer, blocks added in ascending order with one fused
// multiply-add (`kernels/core/src/matmul.rs`). Lanes share the integers; the additions of one dot stay with one lane.
#pragma once
#include "formats.cuh"

// A quantised matrix on the device.
struct Weights {
    const uint8_t* heads;
    const uint8_t* body;
};

// A block's part of a dot: sum = fma(factor, dot, sum), then fma(negative, minimums, sum).
struct Part {
    float factor, dot;
    float negative, minimums;
};

// Blocks of a warp's 32 pieces.
template <class F>
constexpr int STEP_BLOCKS = LANES * 32 / F::BLOCK;

template <class F>
DEVICE Part part_of(Scales scales, float activation_scale, int2 dot) {
    Part part;
    part.factor = scales.d * activation_scale;
    part.dot = float(dot.x);
    // Where there is no minimum, -0 * 0 is added, which leaves every sum as it is.
    const bool minimums = F::MINIMUMS && scales.dmin != 0.0f;
    part.negative = minimums ? -(scales.dmin * activation_scale) : -0.0f;
    part.minimums = minimums ? float(dot.y) : 0.0f;
    return part;
}

// The dots of ROWS rows with TOKENS activations by one warp: lane `row * TOKENS + token` returns its dot, the others nothing of use.
// Rows from `rows_here` on and tokens from `tokens_here` on are not read; `inputs` are the tokens' rows of `codes` and `scales`. `parts` is ROWS * TOKENS * STEP_BLOCKS<F> of this warp's shared memory.
template <class F, int ROWS, int TOKENS>
DEVICE float warp_dots(Weights weights, size_t first_row, int rows_here, const int8_t* codes, const float* scales, const unsigned* inputs,
                       int tokens_here, int blocks, Part* parts) {
    constexpr int PIECES = F::BLOCK / 32, STEP = STEP_BLOCKS<F>;
    const int lane = lane_of_thread(), mine = lane / PIECES, piece = lane % PIECES;
    float sum = 0.0f;
    for (int from = 0; from < blocks; from += STEP) {
        const int block = from + mine;
        for (int row = 0; row < rows_here; row++) {
            const size_t at = (first_row + row) * blocks + block;
            Piece w = {};
            Scales of_block = {};
            if (block < blocks) {
                w = piece_of<F>(weights.body + at * F::BODY, piece);
                of_block = F::scales(weights.heads + at * F::HEAD);
            }
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                if (token >= tokens_here) break;
                int2 dot = {0, 0};
                const size_t input = size_t(inputs[token]) * blocks + block;
                if (block < blocks) dot = piece_dot<F>(w, codes + input * F::BLOCK + piece * 32);
                for (int half = 1; half < PIECES; half *= 2) {
                    dot.x += __shfl_xor_sync(ALL, dot.x, half);
                    if (F::MINIMUMS) dot.y += __shfl_xor_sync(ALL, dot.y, half);
                }
                if (piece == 0 && block < blocks) {
                    parts[(row * TOKENS + token) * STEP + mine] = part_of<F>(of_block, scales[input], dot);
                }
            }
        }
        __syncwarp();
        if (lane / TOKENS < rows_here && lane % TOKENS < tokens_here) {
            const Part* of_lane = parts + lane * STEP;
            const int here = blocks - from < STEP ? blocks - from : STEP;
            for (int i = 0; i < here; i++) {
                sum = fmaf(of_lane[i].factor, of_lane[i].dot, sum);
                if (F::MINIMUMS) sum = fmaf(of_lane[i].negative, of_lane[i].minimums, sum);
            }
        }
        __syncwarp();
    }
    return sum;
}

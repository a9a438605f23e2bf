// Dots of quantised rows with 8-bit activations: each block an exact integer, blocks added in ascending order with one fused multiply-add
// (`kernels/core/src/matmul.rs`). Lanes share the integers; the additions of one dot stay with one lane.

// A block's part of a dot: sum = fma(factor, dot, sum), then fma(negative, minimums, sum).
struct Part {
    float factor, dot;
    float negative, minimums;
};

// What a SIMD group's lanes take at a time: 32 pieces of 32 values.
#define STEP_BLOCKS(F) (32 * 32 / F::BLOCK)

template <class F>
static inline Part part_of(Scales scales, float activation_scale, int2 dot) {
    Part part;
    part.factor = scales.d * activation_scale;
    part.dot = float(dot.x);
    // Where there is no minimum, -0 * 0 is added, which leaves every sum as it is.
    const bool minimums = F::MINIMUMS && scales.dmin != 0.0f;
    part.negative = minimums ? -(scales.dmin * activation_scale) : -0.0f;
    part.minimums = minimums ? float(dot.y) : 0.0f;
    return part;
}

// Member by member: a structure's own assignment knows no address spaces in C++, where the emulator compiles this.
DEVICE void put(threadgroup Part& at, Part part) {
    at.factor = part.factor;
    at.dot = part.dot;
    at.negative = part.negative;
    at.minimums = part.minimums;
}

// The dots of ROWS rows with TOKENS activations by one SIMD group: lane `row * TOKENS + token` returns its dot, the others nothing of use.
// Rows from `rows_here` on and tokens from `tokens_here` on are not read; `inputs` are the tokens' rows of `codes` and `scales`. `parts` is
// ROWS * TOKENS * STEP_BLOCKS(F) of this group's memory.
template <class F, uint ROWS, uint TOKENS>
static inline float simd_dots(device const uchar* weights, ulong first_row, uint rows_here, device const char* codes, device const float* scales,
                              thread const uint* inputs, uint tokens_here, uint blocks, threadgroup Part* parts, uint lane) {
    constexpr uint PIECES = F::BLOCK / 32, STEP = STEP_BLOCKS(F);
    const uint mine = lane / PIECES, piece = lane % PIECES;
    float sum = 0.0f;
    for (uint from = 0; from < blocks; from += STEP) {
        const uint block = from + mine;
        for (uint row = 0; row < rows_here; row++) {
            Piece w = {};
            Scales of_block = {};
            if (block < blocks) {
                device const uchar* at = weights + ((first_row + row) * blocks + block) * F::BYTES;
                w = piece_of<F>(at, piece);
                of_block = F::scales(at);
            }
            for (uint token = 0; token < tokens_here; token++) {
                int2 dot = {0, 0};
                const ulong input = ulong(inputs[token]) * blocks + block;
                if (block < blocks) dot = piece_dot<F>(w, codes + input * F::BLOCK + piece * 32);
                for (ushort step = 1; step < PIECES; step *= 2) {
                    dot.x += simd_shuffle_xor(dot.x, step);
                    if (F::MINIMUMS) dot.y += simd_shuffle_xor(dot.y, step);
                }
                if (piece == 0 && block < blocks) put(parts[(row * TOKENS + token) * STEP + mine], part_of<F>(of_block, scales[input], dot));
            }
        }
        lanes_meet();
        if (lane / TOKENS < rows_here && lane % TOKENS < tokens_here) {
            threadgroup const Part* of_lane = parts + lane * STEP;
            const uint here = blocks - from < STEP ? blocks - from : STEP;
            for (uint i = 0; i < here; i++) {
                sum = fma(of_lane[i].factor, of_lane[i].dot, sum);
                if (F::MINIMUMS) sum = fma(of_lane[i].negative, of_lane[i].minimums, sum);
            }
        }
        lanes_meet();
    }
    return sum;
}

// Tiles of products by `simdgroup_matrix`: 64 rows of weights by 32 tokens for a threadgroup of four SIMD groups, with the bits that `simd_dots` gives.
//
// Weights times their steps and activations are integers that half has, and float has every sum of so few of their products, so that these sums are exact in
// whatever order the hardware adds. They are then integers again: a block's sum is one, rounded once, as in the scalar reference.

constant constexpr uint TILE_SIMDS = 4, TILE_ROWS = 64, TILE_TOKENS = 32;
// Rows of a SIMD group, and how many 8x8 matrices that and the tokens are.
constant constexpr uint SIMD_ROWS = TILE_ROWS / TILE_SIMDS, ROW_SIDES = SIMD_ROWS / 8, TOKEN_SIDES = TILE_TOKENS / 8;

// Integers that half and float have without a gap, and the largest activation.
#define HALF_WHOLE 2048
#define FLOAT_WHOLE 16777216
#define LARGEST_CODE 127

// Pieces of 32 values whose products are added in float: a block where that is exact, else the largest power of two (Q4_K 4, IQ2_XXS 2).
template <class F>
struct Exact {
    enum { PIECES = F::BLOCK / 32, MOST = FLOAT_WHOLE / (32 * F::LARGEST * LARGEST_CODE) };
    enum { TOGETHER = MOST >= PIECES ? PIECES : MOST >= 4 ? 4 : 2 };
    static_assert(int(F::LARGEST) <= HALF_WHOLE, "a weight times its step is exact in half");
    static_assert(32 * TOGETHER * F::LARGEST * LARGEST_CODE <= FLOAT_WHOLE, "sums of products are exact in float");
    // A minimum, below 64, meets the sum of its 16 activations.
    static_assert(16 * LARGEST_CODE <= HALF_WHOLE, "sums of a group's activations are exact in half");
    static_assert(16 * 63 * 16 * LARGEST_CODE <= FLOAT_WHOLE, "a block's sum of minimums is exact in float");
};

// What a threadgroup shares. Lines of values lie as 8x8 matrices, one after the other.
template <class F>
struct Tiles {
    half weights[TILE_ROWS * 32], codes[TILE_TOKENS * 32];
    // Minimums and the sums of activations that they meet, for the 16 groups of a block.
    half minimums[F::MINIMUMS ? TILE_ROWS * 16 : 1], sums[F::MINIMUMS ? TILE_TOKENS * 16 : 1];
    float products[TILE_SIMDS][8 * SIMD_ROWS];
    // The row of activations that each token reads.
    uint inputs[TILE_TOKENS];
};

// Where value `at` of a line lies among lines of LENGTH values.
template <uint LENGTH>
static inline uint within(uint line, uint at) {
    return (line / 8 * (LENGTH / 8) + at / 8) * 64 + line % 8 * 8 + at % 8;
}

struct TileOperands {
    device const uchar* weights;
    ulong first_row;
    uint rows_here;
    device const char* codes;
    device const float* scales;
    uint blocks;
    // Rows beyond the matrix are the last one again; nobody stores what they give.
    ulong block_of(uint row, uint block) const { return (first_row + min(row, rows_here - 1)) * blocks + block; }
};

// A thread's 16 weights of the tile: one group of one row.
template <class F>
static inline void fill_weights(threadgroup Tiles<F>& tiles, thread const TileOperands& operands, uint block, uint piece, uint thread_index) {
    const uint row = thread_index / 2, group = thread_index % 2;
    device const uchar* at = operands.weights + operands.block_of(row, block) * F::BYTES;
    const int step = F::step(at, piece, group);
    for (uint word = 0; word < 4; word++) {
        const char4 codes = as_type<char4>(F::word(at, piece, 4 * group + word));
        for (uint i = 0; i < 4; i++) tiles.weights[within<32>(row, 16 * group + 4 * word + i)] = half(int(codes[i]) * step);
    }
    if (F::MINIMUMS) tiles.minimums[within<16>(row, 2 * piece + group)] = half(F::minimum(at, piece, group));
}

// A thread's 8 activations of the tile.
template <class F>
static inline void fill_codes(threadgroup Tiles<F>& tiles, thread const TileOperands& operands, uint block, uint piece, uint thread_index) {
    const uint token = thread_index / 4, part = thread_index % 4;
    const ulong of_token = ulong(tiles.inputs[token]) * operands.blocks + block;
    device const char* codes = operands.codes + of_token * F::BLOCK + 32 * piece + 8 * part;
    int sum = 0;
    for (uint word = 0; word < 2; word++) {
        const char4 four = as_type<char4>(reinterpret_cast<device const uint*>(codes)[word]);
        for (uint i = 0; i < 4; i++) {
            tiles.codes[within<32>(token, 8 * part + 4 * word + i)] = half(int(four[i]));
            sum += four[i];
        }
    }
    if (F::MINIMUMS) {
        sum += simd_shuffle_xor(sum, ushort(1));
        if (part % 2 == 0) tiles.sums[within<16>(token, 2 * piece + part / 2)] = half(sum);
    }
}

// Sums of products of tokens (down) with a SIMD group's rows (across).
struct TileProducts {
    simdgroup_float8x8 at[TOKEN_SIDES][ROW_SIDES];
};

DEVICE TileProducts no_products() {
    TileProducts none;
    UNROLL for (uint n = 0; n < TOKEN_SIDES; n++)
        UNROLL for (uint m = 0; m < ROW_SIDES; m++) none.at[n][m] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    return none;
}

// Adds the products of lines of LENGTH values; the tokens' first `sides` matrices only.
template <uint LENGTH>
static inline void multiply(thread TileProducts& products, threadgroup const half* tokens, threadgroup const half* rows, uint sides) {
    for (uint k = 0; k < LENGTH / 8; k++) {
        simdgroup_half8x8 of_rows[ROW_SIDES];
        UNROLL for (uint m = 0; m < ROW_SIDES; m++) simdgroup_load(of_rows[m], rows + (m * LENGTH / 8 + k) * 64, 8, ulong2(0), true);
        UNROLL for (uint n = 0; n < TOKEN_SIDES; n++) {
            if (n >= sides) continue;
            simdgroup_half8x8 of_tokens;
            simdgroup_load(of_tokens, tokens + (n * LENGTH / 8 + k) * 64, 8);
            UNROLL for (uint m = 0; m < ROW_SIDES; m++) simdgroup_multiply_accumulate(products.at[n][m], of_tokens, of_rows[m], products.at[n][m]);
        }
    }
}

// A lane has four results of each eight tokens, all of one row.
DEVICE uint tile_row(uint lane, uint simd) { return simd * SIMD_ROWS + lane % SIMD_ROWS; }
DEVICE uint tile_token(uint n, uint i, uint lane) { return 8 * n + 2 * i + lane / SIMD_ROWS; }

// Those four of `products.at[n]`, through memory: which values of a matrix a lane holds is not said.
DEVICE float4 of_lane(thread const TileProducts& products, uint n, threadgroup float* memory, uint lane) {
    UNROLL for (uint m = 0; m < ROW_SIDES; m++) simdgroup_store(products.at[n][m], memory + 8 * m, SIMD_ROWS);
    lanes_meet();
    float4 values;
    UNROLL for (uint i = 0; i < 4; i++) values[i] = memory[LANES * i + lane];
    lanes_meet();
    return values;
}

// A lane's results, by eight tokens and within them.
template <class T>
struct TileValues {
    T at[TOKEN_SIDES][4];
};

// The exact integers of one block, and in `products` those of its minimums.
template <class F>
static inline TileValues<int> block_dots(threadgroup Tiles<F>& tiles, thread const TileOperands& operands, thread TileProducts& products, uint block,
                                         uint sides, uint thread_index, uint lane, uint simd) {
    TileValues<int> dots = {};
    for (uint piece = 0; piece < Exact<F>::PIECES; piece++) {
        threads_meet();
        fill_weights<F>(tiles, operands, block, piece, thread_index);
        fill_codes<F>(tiles, operands, block, piece, thread_index);
        threads_meet();
        multiply<32>(products, tiles.codes, tiles.weights + simd * SIMD_ROWS * 32, sides);
        if ((piece + 1) % Exact<F>::TOGETHER != 0) continue;
        UNROLL for (uint n = 0; n < TOKEN_SIDES; n++) {
            if (n >= sides) continue;
            const float4 sums = of_lane(products, n, tiles.products[simd], lane);
            UNROLL for (uint i = 0; i < 4; i++) dots.at[n][i] += int(sums[i]);
        }
        products = no_products();
    }
    if (F::MINIMUMS) multiply<16>(products, tiles.sums, tiles.minimums + simd * SIMD_ROWS * 16, sides);
    return dots;
}

// The dots of a tile's rows with its tokens, of which there are `tokens_here`; `tiles.inputs` names what each reads, those beyond too. Blocks are added ascending.
// All threads of the group call it.
template <class F>
static inline TileValues<float> tile_dots(threadgroup Tiles<F>& tiles, TileOperands operands, uint tokens_here, uint thread_index, uint lane, uint simd) {
    const uint sides = (tokens_here + 7) / 8;
    TileValues<float> sums = {};
    for (uint block = 0; block < operands.blocks; block++) {
        TileProducts products = no_products();
        const TileValues<int> dots = block_dots<F>(tiles, operands, products, block, sides, thread_index, lane, simd);
        const Scales of_row = F::scales(operands.weights + operands.block_of(tile_row(lane, simd), block) * F::BYTES);
        UNROLL for (uint n = 0; n < TOKEN_SIDES; n++) {
            if (n >= sides) continue;
            float4 minimums = 0.0f;
            if (F::MINIMUMS) minimums = of_lane(products, n, tiles.products[simd], lane);
            UNROLL for (uint i = 0; i < 4; i++) {
                const float scale = operands.scales[ulong(tiles.inputs[tile_token(n, i, lane)]) * operands.blocks + block];
                const int2 dot = {dots.at[n][i], int(minimums[i])};
                const Part part = part_of<F>(of_row, scale, dot);
                sums.at[n][i] = fma(part.factor, part.dot, sums.at[n][i]);
                if (F::MINIMUMS) sums.at[n][i] = fma(part.negative, part.minimums, sums.at[n][i]);
            }
        }
    }
    return sums;
}

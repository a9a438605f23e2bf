// Quantised weights as integers, 32 at a time: `kernels/core/src/block.rs` for one lane.
//
// On the device a matrix lies in two arrays: `heads` with each block's scales (what is 2 or 4 bytes and would break the alignment), `body` with the rest. `split_blocks`
// makes them from the file's bytes.
#pragma once
#include "base.cuh"
#include "grid.cuh"

// A format has for a block: `scales`, and for each piece of 32 weights `word` i with the codes 4i to 4i + 3, `step` and `minimum` of a group of 16.
// SMALL: a code times its step fits a signed byte.

// 32 weights: `codes` four to a word, in groups of 16 with a step each, and the groups' minimums.
struct Piece {
    unsigned codes[8];
    int step[2];
    int minimum[2];
};

struct Scales {
    float d;
    float dmin;  // 0 for formats without minimums
};

struct Q8_0 {
    static constexpr int BLOCK = 32, HEAD = 2, BODY = 32;
    static constexpr bool SMALL = true;
    static constexpr bool MINIMUMS = false;
    DEVICE Scales scales(const uint8_t* head) { return {half_to_float(load_u16(head)), 0.0f}; }
    DEVICE unsigned word(const uint8_t* body, int, int i) { return load_u32(body + 4 * i); }
    DEVICE int step(const uint8_t*, int, int) { return 1; }
    DEVICE int minimum(const uint8_t*, int, int) { return 0; }
};

// Body: 16 bytes of scale and minimum nibbles, 64 bytes of codes. 128 values share 32 bytes, two bits each.
struct Q2_K {
    static constexpr int BLOCK = 256, HEAD = 4, BODY = 80;
    static constexpr bool SMALL = true;
    static constexpr bool MINIMUMS = true;
    DEVICE Scales scales(const uint8_t* head) { return {half_to_float(load_u16(head)), half_to_float(load_u16(head + 2))}; }
    DEVICE unsigned word(const uint8_t* body, int part, int i) {
        return load_u32(body + 16 + (part >> 2) * 32 + 4 * i) >> (2 * (part & 3)) & 0x03030303u;
    }
    DEVICE int step(const uint8_t* body, int part, int group) { return body[2 * part + group] & 15; }
    DEVICE int minimum(const uint8_t* body, int part, int group) { return body[2 * part + group] >> 4; }
};

// Body: 12 bytes of packed six-bit scales and minimums, 128 bytes of codes. 64 values share 32 bytes, low nibbles first.
struct Q4_K {
    static constexpr int BLOCK = 256, HEAD = 4, BODY = 140;
    static constexpr bool SMALL = false;
    static constexpr bool MINIMUMS = true;
    DEVICE Scales scales(const uint8_t* head) { return Q2_K::scales(head); }
    DEVICE unsigned word(const uint8_t* body, int part, int i) {
        return load_u32(body + 12 + (part >> 1) * 32 + 4 * i) >> (4 * (part & 1)) & 0x0f0f0f0fu;
    }
    DEVICE int step(const uint8_t* body, int part, int) {
        return part < 4 ? body[part] & 63 : (body[part + 4] & 15) | (body[part - 4] >> 6 << 4);
    }
    DEVICE int minimum(const uint8_t* body, int part, int) {
        return part < 4 ? body[part + 4] & 63 : (body[part + 4] >> 4) | (body[part] >> 6 << 4);
    }
};

// Body: 8 bytes per 32 values: four grid indices, then 28 bits of signs and 4 of scale. The step is an odd integer; an eighth completes it.
struct IQ2_XXS {
    static constexpr int BLOCK = 256, HEAD = 2, BODY = 64;
    static constexpr bool SMALL = false;
    static constexpr bool MINIMUMS = false;
    DEVICE Scales scales(const uint8_t* head) { return {half_to_float(load_u16(head)) * 0.125f, 0.0f}; }
    // The byte 0xff where a sign bit of the nibble is set.
    DEVICE unsigned negative(unsigned nibble) { return (((nibble * 0x00204081u) & 0x01010101u) * 0xffu); }
    DEVICE unsigned word(const uint8_t* body, int part, int i) {
        const unsigned indices = load_u32(body + 8 * part), tail = load_u32(body + 8 * part + 4);
        const int k = i / 2;
        const uint2 magnitudes = IQ2_GRID[indices >> (8 * k) & 255];
        // The eighth sign is the parity of the seven that are stored.
        const unsigned seven = tail >> (7 * k) & 127, signs = seven | (unsigned(__popc(seven)) & 1) << 7;
        const unsigned minus = negative(i % 2 == 0 ? signs & 15 : signs >> 4);
        // Two's complement per byte: magnitudes are 8, 25 or 43, so that no byte carries into the next.
        return ((i % 2 == 0 ? magnitudes.x : magnitudes.y) ^ minus) + (minus & 0x01010101u);
    }
    DEVICE int step(const uint8_t* body, int part, int) { return int(load_u32(body + 8 * part + 4) >> 28) * 2 + 1; }
    DEVICE int minimum(const uint8_t*, int, int) { return 0; }
};

// Body: 16 bytes of codes, values 0 to 15 in the low nibbles. Codes are doubled to integers, which the halved power of two makes good.
struct MXFP4 {
    static constexpr int BLOCK = 32, HEAD = 1, BODY = 16;
    static constexpr bool SMALL = true;
    static constexpr bool MINIMUMS = false;
    DEVICE Scales scales(const uint8_t* head) {
        const unsigned e = head[0];
        return {__uint_as_float(e == 0 ? 1u << 21 : e == 1 ? 1u << 22 : (e - 1) << 23), 0.0f};
    }
    // Twice the values of four codes, which lie in the low nibbles of the bytes.
    DEVICE unsigned doubled(unsigned codes) {
        unsigned selector = codes & 0x07070707u;
        selector = (selector | selector >> 4) & 0x00ff00ffu;
        selector = (selector | selector >> 8) & 0xffffu;
        const unsigned magnitudes = __byte_perm(0x03020100u, 0x0c080604u, selector);
        // Minus zero is zero: its complement would carry into the next byte.
        const unsigned some = (codes | codes >> 1 | codes >> 2) & 0x01010101u, minus = codes >> 3 & some;
        return (magnitudes ^ minus * 0xffu) + minus;
    }
    DEVICE unsigned word(const uint8_t* body, int, int i) {
        return doubled(load_u32(body + 4 * (i & 3)) >> (i & 4) & 0x0f0f0f0fu);
    }
    DEVICE int step(const uint8_t*, int, int) { return 1; }
    DEVICE int minimum(const uint8_t*, int, int) { return 0; }
};

template <class F>
DEVICE Piece piece_of(const uint8_t* body, int part) {
    Piece p;
#pragma unroll
    for (int i = 0; i < 8; i++) p.codes[i] = F::word(body, part, i);
    for (int group = 0; group < 2; group++) {
        p.step[group] = F::step(body, part, group);
        p.minimum[group] = F::minimum(body, part, group);
    }
    return p;
}

// The exact integers of 32 products: codes times steps, and activations times minimums.
template <class F>
DEVICE int2 piece_dot(const Piece& w, const int8_t* activations) {
    int2 result = {0, 0};
    for (int group = 0; group < 2; group++) {
        int dot = 0, sum = 0;
        for (int i = 4 * group; i < 4 * group + 4; i++) {
            const int x = reinterpret_cast<const int*>(activations)[i];
            dot = __dp4a(int(w.codes[i]), x, dot);
            if (F::MINIMUMS) sum = __dp4a(0x01010101, x, sum);
        }
        result.x += w.step[group] * dot;
        if (F::MINIMUMS) result.y += w.minimum[group] * sum;
    }
    return result;
}

// Separates the bytes of blocks as they lie in the file: `head` bytes from offset `at` to `heads`, the others to `body`. One thread per byte.
GLOBAL split_blocks(const uint8_t* __restrict__ blocks, uint8_t* __restrict__ heads, uint8_t* __restrict__ body, uint64_t bytes,
                    unsigned block, unsigned at, unsigned head) {
    const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= bytes) return;
    const uint64_t number = i / block;
    const unsigned within = unsigned(i % block);
    if (within >= at && within < at + head) {
        heads[number * head + (within - at)] = blocks[i];
    } else {
        body[number * (block - head) + (within < at ? within : within - head)] = blocks[i];
    }
}
KERNEL(split_blocks)

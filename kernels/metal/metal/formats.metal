// Quantised weights as integers, 32 at a time: `kernels/core/src/block.rs` for one lane.
//
// A matrix lies as in the file, which is mapped and not copied: blocks of 17 to 144 bytes, so that words come from halves or bytes.

// A format has for a block: `scales`, and for each piece of 32 weights `word` i with the codes 4i to 4i + 3, `step` and `minimum` of a group of 16.
// LARGEST: a code times its step is no larger.

// 32 weights: `codes` four to a word, in groups of 16 with a step each, and the groups' minimums.
struct Piece {
    uint codes[8];
    int step[2];
    int minimum[2];
};

struct Scales {
    float d;
    float dmin;  // 0 for formats without minimums
};

DEVICE ushort load_u16(device const uchar* at) {  // 2-aligned
    return *reinterpret_cast<device const ushort*>(at);
}
DEVICE uint load_u32(device const uchar* at) {  // 2-aligned
    device const ushort* parts = reinterpret_cast<device const ushort*>(at);
    return uint(parts[0]) | uint(parts[1]) << 16;
}

struct Q8_0 {
    enum { BLOCK = 32, BYTES = 34, MINIMUMS = 0, LARGEST = 128 };
    static Scales scales(device const uchar* block) { return {half_to_float(load_u16(block)), 0.0f}; }
    static uint word(device const uchar* block, uint, uint i) { return load_u32(block + 2 + 4 * i); }
    static int step(device const uchar*, uint, uint) { return 1; }
    static int minimum(device const uchar*, uint, uint) { return 0; }
};

// 16 bytes of scale and minimum nibbles, 64 bytes of codes, two halves. 128 values share 32 bytes, two bits each.
struct Q2_K {
    enum { BLOCK = 256, BYTES = 84, MINIMUMS = 1, LARGEST = 3 * 15 };
    static Scales scales(device const uchar* block) { return {half_to_float(load_u16(block + 80)), half_to_float(load_u16(block + 82))}; }
    static uint word(device const uchar* block, uint part, uint i) {
        return load_u32(block + 16 + (part >> 2) * 32 + 4 * i) >> (2 * (part & 3)) & 0x03030303u;
    }
    static int step(device const uchar* block, uint part, uint group) { return block[2 * part + group] & 15; }
    static int minimum(device const uchar* block, uint part, uint group) { return block[2 * part + group] >> 4; }
};

// Two halves, 12 bytes of packed six-bit scales and minimums, 128 bytes of codes. 64 values share 32 bytes, low nibbles first.
struct Q4_K {
    enum { BLOCK = 256, BYTES = 144, MINIMUMS = 1, LARGEST = 15 * 63 };
    static Scales scales(device const uchar* block) { return {half_to_float(load_u16(block)), half_to_float(load_u16(block + 2))}; }
    static uint word(device const uchar* block, uint part, uint i) {
        return load_u32(block + 16 + (part >> 1) * 32 + 4 * i) >> (4 * (part & 1)) & 0x0f0f0f0fu;
    }
    static int step(device const uchar* block, uint part, uint) {
        device const uchar* packed = block + 4;
        return part < 4 ? packed[part] & 63 : (packed[part + 4] & 15) | (packed[part - 4] >> 6 << 4);
    }
    static int minimum(device const uchar* block, uint part, uint) {
        device const uchar* packed = block + 4;
        return part < 4 ? packed[part + 4] & 63 : (packed[part + 4] >> 4) | (packed[part] >> 6 << 4);
    }
};

// A half, then 8 bytes per 32 values: four grid indices, 28 bits of signs and 4 of scale. The step is an odd integer; an eighth completes it.
struct IQ2_XXS {
    enum { BLOCK = 256, BYTES = 66, MINIMUMS = 0, LARGEST = 43 * 31 };
    static Scales scales(device const uchar* block) { return {half_to_float(load_u16(block)) * 0.125f, 0.0f}; }
    // The byte 0xff where a sign bit of the nibble is set.
    static uint negative(uint nibble) { return ((nibble * 0x00204081u) & 0x01010101u) * 0xffu; }
    static uint word(device const uchar* block, uint part, uint i) {
        const uint tail = load_u32(block + 2 + 8 * part + 4), k = i / 2;
        const uint2 magnitudes = IQ2_GRID[block[2 + 8 * part + k]];
        // The eighth sign is the parity of the seven that are stored.
        const uint seven = tail >> (7 * k) & 127, signs = seven | (popcount(seven) & 1) << 7;
        const uint minus = negative(i % 2 == 0 ? signs & 15 : signs >> 4);
        // Two's complement per byte: magnitudes are 8, 25 or 43, so that no byte carries into the next.
        return ((i % 2 == 0 ? magnitudes.x : magnitudes.y) ^ minus) + (minus & 0x01010101u);
    }
    static int step(device const uchar* block, uint part, uint) { return (block[2 + 8 * part + 7] >> 4) * 2 + 1; }
    static int minimum(device const uchar*, uint, uint) { return 0; }
};

// An exponent, then 16 bytes of codes, values 0 to 15 in the low nibbles. Codes are doubled to integers, which the halved power of two makes good.
struct MXFP4 {
    enum { BLOCK = 32, BYTES = 17, MINIMUMS = 0, LARGEST = 12 };
    static Scales scales(device const uchar* block) {
        const uint e = block[0];
        return {as_type<float>(e == 0 ? 1u << 21 : e == 1 ? 1u << 22 : (e - 1) << 23), 0.0f};
    }
    static uint word(device const uchar* block, uint, uint i) {
        uint codes = 0;
        for (uint k = 0; k < 4; k++) {
            const uint code = block[1 + 4 * (i & 3) + k] >> (i & 4) & 15;
            codes |= uint(e2m1_twice(code) & 0xff) << (8 * k);
        }
        return codes;
    }
    static int step(device const uchar*, uint, uint) { return 1; }
    static int minimum(device const uchar*, uint, uint) { return 0; }
};

template <class F>
static inline Piece piece_of(device const uchar* block, uint part) {
    Piece p;
    for (uint i = 0; i < 8; i++) p.codes[i] = F::word(block, part, i);
    for (uint group = 0; group < 2; group++) {
        p.step[group] = F::step(block, part, group);
        p.minimum[group] = F::minimum(block, part, group);
    }
    return p;
}

// The sum of four products of signed bytes, added to `sum`.
DEVICE int dot_of_bytes(uint a, uint b, int sum) {
    const char4 left = as_type<char4>(a), right = as_type<char4>(b);
    return sum + int(left.x) * int(right.x) + int(left.y) * int(right.y) + int(left.z) * int(right.z) + int(left.w) * int(right.w);
}

// The exact integers of 32 products: codes times steps, and activations times minimums.
template <class F>
static inline int2 piece_dot(thread const Piece& w, device const char* activations) {
    int2 result = {0, 0};
    for (uint part = 0; part < 2; part++) {
        int dot = 0, sum = 0;
        for (uint i = 4 * part; i < 4 * part + 4; i++) {
            const uint x = reinterpret_cast<device const uint*>(activations)[i];
            dot = dot_of_bytes(w.codes[i], x, dot);
            if (F::MINIMUMS) sum = dot_of_bytes(0x01010101u, x, sum);
        }
        result.x += w.step[part] * dot;
        if (F::MINIMUMS) result.y += w.minimum[part] * sum;
    }
    return result;
}

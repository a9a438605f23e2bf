// The small number formats of a KV row: `kernels/core/src/codec`.
#pragma once
#include "base.cuh"
#include "math.cuh"

// 2^e, also where the result is subnormal.
DEVICE float power_of_two(int e) { return e >= -126 ? two_to(e) : __int_as_float(1 << (e + 149)); }
// The power that a stored exponent stands for.
DEVICE float stored_power(uint8_t byte) { return __uint_as_float(unsigned(byte) << 23); }

// ceil(log2(max(amax, floor) / most)), exactly.
DEVICE int exponent_of(float amax, float most, float floor) {
    const unsigned bits = __float_as_uint(fmaxf(amax, floor) / most);
    const int e = int(bits >> 23) - 127 + ((bits & 0x7fffff) != 0);
    return e < -126 ? -126 : (e > 127 ? 127 : e);
}

// Nearest E4M3 code, ties to even; magnitudes above 448 become 448.
DEVICE uint8_t e4m3_code(float x) {
    constexpr float round = 12582912.0f;
    const unsigned sign = __float_as_uint(x) >> 24 & 0x80;
    const float magnitude = fminf(fabsf(x), 448.0f);
    int e = int(__float_as_uint(magnitude) >> 23) - 127;
    if (e < -6) e = -6;
    const unsigned steps = __float_as_uint(fmaf(magnitude, two_to(3 - e), round)) - __float_as_uint(round);
    return uint8_t(sign | ((unsigned(e + 6) << 3) + steps));
}

DEVICE float e4m3_value(uint8_t code) {
    const unsigned sign = unsigned(code & 0x80) << 24, magnitude = code & 0x7f, normal = (magnitude << 20) + (120u << 23);
    // A subnormal code counts in steps of 2^-9: read one exponent higher, its leading one is 2^-6 too much.
    const float small = __uint_as_float(normal + (1u << 23)) - 0.015625f;
    return __uint_as_float((magnitude < 8 ? __float_as_uint(small) : normal) | sign);
}

// Nearest E2M1 code, ties to the even code; magnitudes above 6 become 6.
DEVICE unsigned e2m1_code(float x) {
    const float m = fabsf(x);
    const unsigned code = (m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) + (m >= 3.5f) + (m > 5.0f);
    return code | (__float_as_uint(x) >> 31) << 3;
}

// Twice the value of an E2M1 code: an integer.
DEVICE int e2m1_twice(unsigned code) {
    const int magnitude = int(0x0c08060403020100ul >> (8 * (code & 7)) & 0xff);
    return (code & 8) ? -magnitude : magnitude;
}

// Value `i` of an encoded KV row of `dim` values, the last `rotary` of them halves.
DEVICE float kv_value(GIVEN uint8_t* row, unsigned i, unsigned dim, unsigned rotary) {
    const unsigned body = dim - rotary;
    if (i < body) return e4m3_value(row[i]) * stored_power(row[body + i / 64]);
    GIVEN uint8_t* bytes = row + body + body / 64 + 2 * (i - body);
    return half_to_float(uint16_t(bytes[0] | bytes[1] << 8));
}

// Scalar functions with the bits of `kernels/core/src/math.rs`: the same f32 operations in the same order.
#pragma once
#include "base.cuh"

// 2^n for a normal result; anything for other n.
DEVICE float two_to(int n) { return __int_as_float(int(unsigned(n + 127) << 23)); }

// e^x: x = n ln 2 + r, a polynomial for e^r, and 2^n in two factors, since n reaches past both ends of the exponent.
DEVICE float exp_fixed(float x) {
    constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds, ties to even
    x = bounded(x, -104.0f, 89.0f);
    const float rounded = fmaf(x, 1.44269504088896340736f, round);
    const int n = int(__float_as_uint(rounded) - __float_as_uint(round));
    const float multiple = rounded - round;
    const float r = fmaf(-multiple, -2.1219444e-4f, fmaf(-multiple, 0.693359375f, x));
    float series = 1.9875691e-4f;
    series = fmaf(series, r, 1.3981999e-3f);
    series = fmaf(series, r, 8.333452e-3f);
    series = fmaf(series, r, 4.1665796e-2f);
    series = fmaf(series, r, 1.6666665e-1f);
    series = fmaf(series, r, 0.5f);
    const float fraction = fmaf(series, r * r, r) + 1.0f;
    const int part = n >> 1;
    return fraction * two_to(part) * two_to(n - part);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp_fixed(-x)); }
DEVICE float silu(float x) { return x * sigmoid(x); }

// ln(1 + x) for x >= 0, by the steps of the `libm` crate's `log1pf`: 1 + x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), and what
// the addition of 1 lost as a correction.
DEVICE float log1p_of_positive(float x) {
    constexpr unsigned root_half = 0x3f3504f3u;  // sqrt(1/2)
    const unsigned bits = __float_as_uint(x);
    if (bits < 0x33800000u || bits >= 0x7f800000u) return x;  // below 2^-24, or infinite
    float f = x, correction = 0.0f;
    int k = 0;
    if (bits >= 0x3ed413d0u) {  // sqrt(2) - 1
        const float sum = 1.0f + x;
        const unsigned shifted = __float_as_uint(sum) + (0x3f800000u - root_half);
        k = int(shifted >> 23) - 127;
        if (k < 25) correction = (k >= 2 ? 1.0f - (sum - x) : x - (sum - 1.0f)) / sum;
        f = __uint_as_float((shifted & 0x007fffffu) + root_half) - 1.0f;
    }
    const float s = f / (2.0f + f), z = s * s, w = z * z;
    const float odd = w * (0.40000972152f + w * 0.24279078841f);
    const float even = z * (0.66666662693f + w * 0.28498786688f);
    const float r = even + odd, half_square = 0.5f * f * f, exponent = float(k);
    return s * (half_square + r) + (exponent * 9.0580006145e-06f + correction) - half_square + f + exponent * 6.9313812256e-01f;
}

// ln(1 + e^x); linear above 20.
DEVICE float softplus(float x) { return x > 20.0f ? x : log1p_of_positive(exp_fixed(x)); }

// f64 arithmetic by integers, for numbers that are not negative: the reference adds squares in f64, which the device does not have. Each operation
// rounds to nearest, ties to even, so that a root mean square has the reference's bits. A number is its IEEE bits; NaN and infinity pass through.

constant constexpr ulong F64_HIDDEN = 1ul << 52;
constant constexpr ulong F64_INFINITY = 2047ul << 52;

DEVICE int f64_exponent(ulong x) { return x >> 52 == 0 ? 1 : int(x >> 52); }
DEVICE ulong f64_significand(ulong x) { return (x & (F64_HIDDEN - 1)) | (x >> 52 == 0 ? 0 : F64_HIDDEN); }

// The number nearest to bits * 2^power, where the lowest bit also stands for all that was cut off below it. Bits have at least 55 places unless they
// are exact, and the result is no subnormal.
DEVICE ulong f64_round(ulong bits, int power) {
    if (bits == 0) return 0;
    const int shift = int(clz(bits));
    bits <<= shift;
    ulong significand = bits >> 11;
    const ulong rest = bits & 2047;
    significand += rest > 1024 || (rest == 1024 && (significand & 1) != 0);
    // The leading one is the exponent's last step, and a carry out of the significand raises it by itself.
    return (ulong(power - shift + 1085) << 52) + significand;
}

// x as f64; x is not negative.
DEVICE ulong f64_of(float x) {
    const uint bits = as_type<uint>(x);
    if (bits >= 0x7f800000u) return F64_INFINITY | ulong(bits & 0x7fffff) << 29;
    const uint exponent = bits >> 23;
    const uint significand = exponent == 0 ? bits : (bits & 0x7fffff) | 0x800000;
    return f64_round(significand, int(exponent == 0 ? 1 : exponent) - 150);
}

// x * x, which is exact.
DEVICE ulong f64_square(float x) {
    const uint bits = as_type<uint>(x) & 0x7fffffffu;
    if (bits >= 0x7f800000u) return F64_INFINITY | ulong(bits & 0x7fffff) << 29;
    const uint exponent = bits >> 23;
    const ulong significand = exponent == 0 ? bits : (bits & 0x7fffff) | 0x800000;
    return f64_round(significand * significand, 2 * (int(exponent == 0 ? 1 : exponent) - 150));
}

DEVICE ulong f64_add(ulong a, ulong b) {
    const ulong large = a > b ? a : b, small = a > b ? b : a;
    if (large >= F64_INFINITY) return large;
    const int exponent = f64_exponent(large), distance = exponent - f64_exponent(small);
    // Three more places: two that decide the rounding, and one for whatever lies below.
    const ulong wide = f64_significand(small) << 3;
    const ulong aligned = distance > 60 ? wide != 0 : (wide >> distance) | ((wide & ((1ul << distance) - 1)) != 0);
    ulong sum = (f64_significand(large) << 3) + aligned;
    int carry = 0;
    if (sum >> 56 != 0) {
        sum = (sum >> 1) | (sum & 1);
        carry = 1;
    }
    const ulong rest = sum & 7;
    ulong significand = sum >> 3;
    significand += rest > 4 || (rest == 4 && (significand & 1) != 0);
    return (ulong(exponent + carry - 1) << 52) + significand;
}

// a / count.
DEVICE ulong f64_divide(ulong a, uint count) {
    if (a >= F64_INFINITY || a == 0) return a;
    const int scale = int(clz(count));
    const ulong divisor = ulong(count) << scale, dividend = f64_significand(a) << int(clz(f64_significand(a)) - 1);
    const int power = f64_exponent(a) - 1075 - int(clz(f64_significand(a)) - 1);
    const ulong high = dividend / divisor, left = dividend % divisor;
    const ulong low = (left << 32) / divisor, rest = (left << 32) % divisor;
    return f64_round(high << 32 | low | (rest != 0), power - 32 + scale);
}

// 1 / sqrt(a), each of the two rounded, as f32.
DEVICE float f64_inverse_root(ulong a) {
    if (a > F64_INFINITY) return NAN;
    if (a == F64_INFINITY) return 0.0f;
    if (a == 0) return INFINITY;
    // An even power and a significand in the upper two of 64 bits: two of them make one of the root.
    ulong rest_of = f64_significand(a);
    const int lead = int(clz(rest_of));
    int power = f64_exponent(a) - 1075 - lead;
    rest_of <<= lead;
    if ((power & 1) != 0) {
        rest_of >>= 1;  // 53 bits in 64: nothing is lost
        power += 1;
    }
    ulong root = 0, rest = 0;
    for (int place = 0; place < 58; place++) {
        rest = rest << 2 | rest_of >> 62;
        rest_of <<= 2;
        const ulong trial = root << 2 | 1;
        root <<= 1;
        if (rest >= trial) {
            rest -= trial;
            root |= 1;
        }
    }
    // 64 bits are 32 places; the 26 after them are binary ones.
    const ulong rounded = f64_round(root << 1 | (rest != 0), power / 2 - 27);
    // Long division of 2^52 by the significand.
    const ulong divisor = f64_significand(rounded);
    ulong quotient = 0, left = F64_HIDDEN;
    for (int place = 0; place < 58; place++) {
        quotient <<= 1;
        if (left >= divisor) {
            left -= divisor;
            quotient |= 1;
        }
        left <<= 1;
    }
    const ulong inverse = f64_round(quotient << 1 | (left != 0), -52 - 57 - 1 - (f64_exponent(rounded) - 1075));
    // To f32: 29 places fewer, more where the result is subnormal.
    const int exponent = f64_exponent(inverse) - 1023 + 127;
    if (exponent >= 255) return INFINITY;
    const int drop = exponent >= 1 ? 29 : (exponent < -24 ? 54 : 30 - exponent);
    const ulong significand = f64_significand(inverse), cut = significand & ((1ul << drop) - 1), middle = 1ul << (drop - 1);
    uint bits = uint(significand >> drop);
    bits += cut > middle || (cut == middle && (bits & 1) != 0);
    return as_type<float>(exponent >= 1 ? (uint(exponent - 1) << 23) + bits : bits);
}

// Encoding rows into the bytes that are stored, sent and loaded alike.

struct KvRows {
    uint rows, dim, rotary, first, ring;
};

// A SIMD group per row of `dim` values; row i goes to slot (first + i) % ring of `out`.
kernel void encode_kv(device const float* x [[buffer(0)]], device uchar* out [[buffer(1)]], constant KvRows& c [[buffer(2)]], PLACE) {
    const uint row = group.x * (threads.x / LANES) + simd;
    if (row >= c.rows) return;
    const uint body = c.dim - c.rotary;
    device const float* values = x + ulong(row) * c.dim;
    device uchar* bytes = out + ulong((c.first + row) % c.ring) * (body + body / 64 + 2 * c.rotary);
    for (uint block = 0; block < body / 64; block++) {
        const float a = values[64 * block + lane], b = values[64 * block + LANES + lane];
        const int e = exponent_of(max_of_lanes(fmax(fabs(a), fabs(b))), 448.0f, 1e-4f);
        const float inverse = power_of_two(-e);
        bytes[64 * block + lane] = e4m3_code(a * inverse);
        bytes[64 * block + LANES + lane] = e4m3_code(b * inverse);
        if (lane == 0) bytes[body + block] = uchar(e + 127);
    }
    device uchar* halves = bytes + body + body / 64;
    for (uint i = lane; i < c.rotary; i += LANES) {
        const ushort bits = float_to_half(values[body + i]);
        halves[2 * i] = uchar(bits);
        halves[2 * i + 1] = uchar(bits >> 8);
    }
}

// The Walsh-Hadamard transform of a SIMD group's row, with factor n^-1/2.
DEVICE void hadamard(threadgroup float* row, uint dim, uint lane) {
    for (uint step = 1; step < dim; step *= 2) {
        for (uint pair = lane; pair < dim / 2; pair += LANES) {
            const uint low = pair / step * 2 * step + pair % step;
            const float a = row[low], b = row[low + step];
            row[low] = a + b;
            row[low + step] = a - b;
        }
        lanes_meet();
    }
    const float factor = 1.0f / sqrt(float(dim));
    for (uint i = lane; i < dim; i += LANES) row[i] = row[i] * factor;
    lanes_meet();
}

constant constexpr uint INDEX_MOST = 256;  // widest indexer row
constant constexpr uint INDEX_SIMDS = 4;

struct IndexRows {
    uint rows, dim, first;
};

// A SIMD group per indexer row of `dim` values; `dim / 2` bytes of codes and `dim / 32` exponents, at row `first + i` of `out`.
kernel void encode_indexer(device const float* x [[buffer(0)]], device uchar* out [[buffer(1)]], constant IndexRows& c [[buffer(2)]], PLACE) {
    SHARED(float, all, [INDEX_SIMDS * INDEX_MOST]);
    const uint row = group.x * INDEX_SIMDS + simd;
    if (row >= c.rows) return;
    threadgroup float* values = all + simd * INDEX_MOST;
    for (uint i = lane; i < c.dim; i += LANES) values[i] = x[ulong(row) * c.dim + i];
    lanes_meet();
    hadamard(values, c.dim, lane);
    device uchar* bytes = out + ulong(c.first + row) * (c.dim / 2 + c.dim / 32);
    for (uint block = 0; block < c.dim / 32; block++) {
        const float value = values[32 * block + lane];
        const int e = exponent_of(max_of_lanes(fabs(value)), 6.0f, 7.052966e-38f);
        const uint code = e2m1_code(value * power_of_two(-e)), next = simd_shuffle_xor(code, 1);
        if (lane % 2 == 0) bytes[16 * block + lane / 2] = uchar(code | next << 4);
        if (lane == 0) bytes[c.dim / 2 + block] = uchar(e + 127);
    }
}

struct IndexHeads {
    uint heads, dim;
};

// An indexer query rounded as rows are: twice the value of every code, and a quarter of every scale. A SIMD group per head of `dim` values, which are
// rotated already.
kernel void index_queries(device const float* x [[buffer(0)]], device char* codes [[buffer(1)]], device float* scales [[buffer(2)]],
                          constant IndexHeads& c [[buffer(3)]], PLACE) {
    SHARED(float, all, [INDEX_SIMDS * INDEX_MOST]);
    const uint head = group.x * INDEX_SIMDS + simd;
    if (head >= c.heads) return;
    threadgroup float* values = all + simd * INDEX_MOST;
    for (uint i = lane; i < c.dim; i += LANES) values[i] = x[ulong(head) * c.dim + i];
    lanes_meet();
    hadamard(values, c.dim, lane);
    for (uint block = 0; block < c.dim / 32; block++) {
        const float value = values[32 * block + lane];
        const int e = exponent_of(max_of_lanes(fabs(value)), 6.0f, 7.052966e-38f);
        codes[ulong(head) * c.dim + 32 * block + lane] = char(e2m1_twice(e2m1_code(value * power_of_two(-e))));
        if (lane == 0) scales[ulong(head) * (c.dim / 32) + block] = stored_power(uchar(e + 127)) * 0.25f;
    }
}

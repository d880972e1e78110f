/* The vector layer in portable C++ (the compilers' vector extension): W = 4 floats, 16 bytes, which is what every
 * processor with SSE2 or NEON has. It also says what the functions of the other levels mean.
 *
 * V is W floats, I is W int32, M a mask of W lanes. + - * / work on V as they stand. Never contracted: fma() is one
 * rounding where the machine has it and two here, so levels differ in last bits and rows of one level do not.
 */

typedef float V __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
typedef I M; /* all ones or all zeros a lane */
static constexpr int W = 4;

static OPTPIPE_INLINE V zero() { return V{0, 0, 0, 0}; }
static OPTPIPE_INLINE V set1(float x) { return V{x, x, x, x}; }
static OPTPIPE_INLINE V load(const float *p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
}
static OPTPIPE_INLINE void store(float *p, V x) { memcpy(p, &x, sizeof x); }
/* The first n floats, zeros after them; all when n ≥ W. Reads nothing past them. */
static OPTPIPE_INLINE V load_n(const float *p, int64_t n) {
    V x = zero();
    memcpy(&x, p, (size_t)(n < W ? n : W) * 4);
    return x;
}
static OPTPIPE_INLINE void store_n(float *p, V x, int64_t n) { memcpy(p, &x, (size_t)(n < W ? n : W) * 4); }

static OPTPIPE_INLINE float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static OPTPIPE_INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)((bits | 0x400000) >> 16);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static OPTPIPE_INLINE float from_f16(uint16_t x) {
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, body = x & 0x7fff;
    const uint32_t exponent = body >= 0x7c00 ? 0x70000000u : 0x38000000u; /* infinities and NaN keep all ones */
    uint32_t bits = sign | ((body << 13) + exponent);
    float value;
    if (body < 0x400) { /* subnormal: body × 2^-24 */
        value = (float)body * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}
static OPTPIPE_INLINE V load_bf16_n(const uint16_t *p, int64_t n) {
    V x = zero();
    for (int64_t k = 0; k < W && k < n; ++k) x[k] = from_bf16(p[k]);
    return x;
}
static OPTPIPE_INLINE V load_bf16(const uint16_t *p) { return load_bf16_n(p, W); }
/* Rounded to nearest, ties to even; NaN stays NaN. */
static OPTPIPE_INLINE void store_bf16_n(uint16_t *p, V x, int64_t n) {
    for (int64_t k = 0; k < W && k < n; ++k) p[k] = to_bf16(x[k]);
}
static OPTPIPE_INLINE void store_bf16(uint16_t *p, V x) { store_bf16_n(p, x, W); }
static OPTPIPE_INLINE V load_f16_n(const uint16_t *p, int64_t n) {
    V x = zero();
    for (int64_t k = 0; k < W && k < n; ++k) x[k] = from_f16(p[k]);
    return x;
}
static OPTPIPE_INLINE V load_f16(const uint16_t *p) { return load_f16_n(p, W); }
static OPTPIPE_INLINE V load_i8_n(const int8_t *p, int64_t n) {
    V x = zero();
    for (int64_t k = 0; k < W && k < n; ++k) x[k] = (float)p[k];
    return x;
}
static OPTPIPE_INLINE V load_i8(const int8_t *p) { return load_i8_n(p, W); }

/* a · b + c */
static OPTPIPE_INLINE V fma(V a, V b, V c) { return a * b + c; }
/* As x86 has them: the second operand where either is NaN. */
static OPTPIPE_INLINE V vmin(V a, V b) { return a < b ? a : b; }
static OPTPIPE_INLINE V vmax(V a, V b) { return a > b ? a : b; }
static OPTPIPE_INLINE I as_int(V a) { return (I)a; }
static OPTPIPE_INLINE V as_float(I a) { return (V)a; }
static OPTPIPE_INLINE V vabs(V a) { return (V)((I)a & 0x7fffffff); }
static OPTPIPE_INLINE V vsqrt(V a) {
    V x;
    for (int k = 0; k < W; ++k) x[k] = __builtin_sqrtf(a[k]);
    return x;
}
static OPTPIPE_INLINE V to_float(I a) { return __builtin_convertvector(a, V); }
/* To the nearest whole number, ties to even. From 2^23 upwards every float is whole. */
static OPTPIPE_INLINE V nearest(V a) {
    const V magic = (V)((I)set1(0x1p23f) | ((I)a & (I)set1(-0.0f)));
    const V whole = (V)((I)((a + magic) - magic) | ((I)a & (I)set1(-0.0f)));
    return vabs(a) < set1(0x1p23f) ? whole : a;
}
static OPTPIPE_INLINE V down(V a) {
    const V whole = nearest(a);
    return whole > a ? whole - set1(1.0f) : whole;
}
/* The nearest int32, ties to even; anything where it does not fit. */
static OPTPIPE_INLINE I to_int(V a) { return __builtin_convertvector(nearest(a), I); }
static OPTPIPE_INLINE M less(V a, V b) { return a < b; }
static OPTPIPE_INLINE M equal(V a, V b) { return a == b; }
static OPTPIPE_INLINE V choose(M m, V yes, V no) { return m ? yes : no; }
static OPTPIPE_INLINE bool any(M m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
static OPTPIPE_INLINE bool all(M m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }
static OPTPIPE_INLINE I seti(int x) { return I{x, x, x, x}; }
static OPTPIPE_INLINE I addi(I a, I b) { return a + b; }
static OPTPIPE_INLINE I bits_and(I a, I b) { return a & b; }
static OPTPIPE_INLINE I negate(I a) { return -a; }
template <int n> static OPTPIPE_INLINE I shift_left(I a) { return a << n; }
/* a · 2^n of whole n ≤ 0: zero where n < −126; NaN where a and n are NaN. */
static OPTPIPE_INLINE V scale_down(V a, V n) {
    const I exponent = to_int(vmax(n, set1(-126.0f)));
    return choose(less(n, set1(-126.0f)), zero(), a * as_float(shift_left<23>(addi(exponent, seti(127)))));
}
/* Rounded to the nearest whole number and saturated to −128 … 127. */
static OPTPIPE_INLINE void store_i8_n(int8_t *p, V x, int64_t n) {
    const I whole = to_int(vmin(vmax(x, set1(-128.0f)), set1(127.0f)));
    for (int64_t k = 0; k < W && k < n; ++k) p[k] = (int8_t)whole[k];
}
static OPTPIPE_INLINE void store_i8(int8_t *p, V x) { store_i8_n(p, x, W); }

/* The sum and the largest of all lanes, halves folded onto each other: always in this order. */
static OPTPIPE_INLINE float sum(V x) { return (x[0] + x[2]) + (x[1] + x[3]); }
static OPTPIPE_INLINE float largest(V x) {
    const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}

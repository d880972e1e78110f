/* quantize(x, q)
 *
 *     for every token and group of 32 inputs:  s = max |x| / 127,  c = x / s to the nearest whole number, ties to even
 *
 * x [T, K] f32; q [T, bytes(K)] u8. Bytes: 4·T·K read, about 1.4·T·K written. Let G = ⌈K / 32⌉; a row of q is
 *
 *     ┌ 32·G × int8 c, zeros past K ┬ G × f32 s ┬ G × i32 −8·Σc ┬ G × f32 s·Σc ┐ filled up to 64 bytes
 *
 * where the third part takes the 8 off symmetric 4-bit codes (16 times it the 128 off 8-bit ones) and the fourth
 * meets a grid's minimum. A group with a NaN or an infinity has a NaN for its s, so that no product hides it.
 * Measured: activations rounded a token and group of 32 cost SmolLM2 0.003 nats, rounded a token 0.036.
 *
 * A row of q twice as long has two planes and 15 bits: the first is such a row; the second has the same parts, with
 * the codes d of what the first left over in steps of s / 254, and for both together
 *
 *     x ≈ s/254 · (254·c + d)      G × f32 s/254     G × i32 −8·Σ(254·c + d)     G × f32 s/254·Σ(254·c + d)
 */

static OPTPIPE_INLINE int64_t quantized_groups(int64_t inputs) { return (inputs + 31) / 32; }
static OPTPIPE_INLINE int64_t quantized_bytes(int64_t inputs) { return round_up(quantized_groups(inputs) * 44, 64); }

/* The parts of one row. */
struct Quantized {
    int8_t *codes;
    float *scale;
    int32_t *offset; /* −8·Σc */
    float *sum;      /* s·Σc */
};

static OPTPIPE_INLINE Quantized quantized_row(uint8_t *q, int64_t inputs) {
    const int64_t groups = quantized_groups(inputs);
    uint8_t *rest = q + 32 * groups;
    return {(int8_t *)q, (float *)rest, (int32_t *)(rest + 4 * groups), (float *)(rest + 8 * groups)};
}

/* One group: n ≤ 32 floats to place g of the row. */
static OPTPIPE_INLINE void quantize_group(const float *x, int64_t n, const Quantized &to, int64_t g) {
    V held[32 / W], top = zero(), odd = zero(), total = zero();
    for (int k = 0; k < 32 / W; ++k) {
        held[k] = n == 32 ? load(x + k * W) : load_n(x + k * W, most(0, n - k * W));
        top = vmax(top, vabs(held[k]));
        odd = odd + (held[k] - held[k]); /* 0, or NaN where x is not finite */
    }
    const float most_of_all = largest(top), scale = most_of_all * (1.0f / 127.0f) + sum(odd);
    const V inverse = set1(most_of_all > 0.0f ? 127.0f / most_of_all : 0.0f);
    for (int k = 0; k < 32 / W; ++k) {
        const V code = nearest(held[k] * inverse);
        store_i8(to.codes + g * 32 + k * W, code);
        total = total + code;
    }
    const float codes = sum(total);
    to.scale[g] = scale;
    to.offset[g] = codes == codes ? -8 * (int32_t)codes : 0;
    to.sum[g] = scale * codes;
}

/* One group in every plane of the row. */
static OPTPIPE_INLINE void quantize_planes(const float *x, int64_t n, uint8_t *q, int64_t inputs, int64_t planes, int64_t g) {
    const Quantized first = quantized_row(q, inputs);
    quantize_group(x, n, first, g);
    if (planes == 1) return;
    const Quantized second = quantized_row(q + quantized_bytes(inputs), inputs);
    const float scale = first.scale[g];
    const V inverse = set1(scale > 0.0f ? 1.0f / scale : 0.0f);
    V total = zero();
    for (int k = 0; k < 32; k += W) {
        const V high = load_i8(first.codes + g * 32 + k), held = load_n(x + k, most(0, n - k));
        const V low = nearest(fma(held, inverse, zero() - high) * set1(254.0f));
        const V code = vmin(vmax(low, set1(-127.0f)), set1(127.0f)); /* a rounding of 1/s may have made it 128 */
        store_i8(second.codes + g * 32 + k, code);
        total = total + fma(high, set1(254.0f), code);
    }
    const float codes = sum(total);
    second.scale[g] = scale * (1.0f / 254.0f);
    second.offset[g] = codes == codes ? -8 * (int32_t)codes : 0;
    second.sum[g] = second.scale[g] * codes;
}

/* A whole row; other ops end with it when their result is wanted quantized. */
static void quantize_row(const float *x, int64_t inputs, uint8_t *q, int64_t planes) {
    for (int64_t g = 0; g < quantized_groups(inputs); ++g)
        quantize_planes(x + g * 32, least(32, inputs - g * 32), q, inputs, planes, g);
}

/* How many planes the rows of operand k have. */
static OPTPIPE_INLINE int64_t planes_of(const Call &c, int k, int64_t inputs) {
    return c.has(k) && c.size(k, 1) >= 2 * quantized_bytes(inputs) ? 2 : 1;
}

/* NULL when operand k can take or give rows [rows, inputs] quantized. */
static const char *check_quantized(const Call &c, int k, int64_t rows, int64_t inputs) {
    const optpipe_tensor &q = c.t[k];
    const int64_t bytes = quantized_bytes(inputs);
    const bool sized = q.dtype == OPTPIPE_U8 && q.rank == 2 && q.size[0] == rows && q.size[1] >= bytes;
    const bool strided = q.size[1] < 2 * bytes ? q.stride[0] % 4 == 0 : rows < 2 || q.stride[0] == 2 * bytes;
    if (sized && (rows == 0 || (q.stride[1] == 1 && strided))) return nullptr;
    return sentence("operand %d must be u8 [%lld, %lld], the quantized form of %lld inputs", k, (long long)rows,
                    (long long)quantized_bytes(inputs), (long long)inputs);
}

static const char *check_quantize(const Call &c) {
    if (c.n != 2) return sentence("takes 2 operands, got %d", c.n);
    if (c.t[0].dtype != OPTPIPE_F32 || c.t[0].rank != 2 || (c.size(0, 0) > 0 && c.size(0, 1) > 1 && c.stride(0, 1) != 1))
        return "x must be f32 [T, K] with stride 1 along K";
    return check_quantized(c, 1, c.size(0, 0), c.size(0, 1));
}

static void quantize(const Call &c, int thread, int threads) {
    const Range rows = split(c.size(0, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r)
        quantize_row(c.at<float>(0) + r * c.stride(0, 0), c.size(0, 1), c.at<uint8_t>(1) + r * c.stride(1, 0),
                     planes_of(c, 1, c.size(0, 1)));
}

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
 * A row of q twice as long has two planes, each such a row: the second is what the first left over, rounded again. A
 * product of both is the sum of two products, and its activations have 15 bits.
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
    float rest[32];
    for (int64_t k = 0; k < n; k += W) {
        const V codes = load_i8_n(first.codes + g * 32 + k, n - k);
        store_n(rest + k, fma(codes, set1(-first.scale[g]), load_n(x + k, n - k)), n - k);
    }
    quantize_group(rest, n, quantized_row(q + quantized_bytes(inputs), inputs), g);
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

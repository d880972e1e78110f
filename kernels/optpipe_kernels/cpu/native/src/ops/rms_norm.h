/* rms_norm(x, w?, out?, outq?) | unit_offset | eps               y = x / √(mean x² + ε) · w,   w + 1 with unit_offset
 * add_rms_norm(a, b, w?, out?, sum, outq?) | unit_offset | eps   sum = a + b, then the norm of it
 *
 * Along the last dimension; rows of any strides. outq is the quantized form of y (quantize.h), for rows [T, K].
 * The dialect body is optpipe/dialect/rms_norm.py. Σx² has W running lanes, folded once. Bytes: 8 a element.
 */

/* One row of n: x to y with the factors w. */
static OPTPIPE_INLINE void rms_row(const float *x, const float *w, int64_t n, bool offset, float eps, float *y) {
    V squares = zero();
    for (int64_t k = 0; k < n; k += W) {
        const V it = load_n(x + k, n - k);
        squares = fma(it, it, squares);
    }
    const float mean = sum(squares) / (float)n;
    const V factor = set1(1.0f / __builtin_sqrtf(mean + eps)), one = set1(offset ? 1.0f : 0.0f);
    for (int64_t k = 0; k < n; k += W) {
        const V scaled = load_n(x + k, n - k) * factor;
        store_n(y + k, w == nullptr ? scaled : scaled * (load_n(w + k, n - k) + one), n - k);
    }
}

static const char *check_norm_results(const Call &c, int x, int out, int quantized) {
    if (!c.has(out) && !c.has(quantized)) return "has no result";
    if (c.has(out)) {
        const char *wrong = check_rows(c, out);
        if (wrong == nullptr) wrong = check_like(c, out, x);
        if (wrong != nullptr) return wrong;
    }
    if (c.has(quantized)) return check_quantized(c, quantized, rows_of(c, x), width_of(c, x));
    return nullptr;
}

static const char *check_rms_norm(const Call &c) {
    if (c.n != 4 || c.ints != 1 || c.floats != 1) return "takes x, w?, out?, outq?, unit_offset and eps";
    const char *wrong = check_rows(c, 0);
    if (wrong == nullptr) wrong = check_row(c, 1, width_of(c, 0));
    return wrong != nullptr ? wrong : check_norm_results(c, 0, 2, 3);
}

static void rms_norm(const Call &c, int thread, int threads) {
    const int64_t n = width_of(c, 0);
    float *room = (float *)c.scratch(thread, (size_t)(n + W) * 4);
    const Range rows = split(rows_of(c, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        float *y = c.has(2) ? c.at<float>(2) + row_at(c, 2, r) : room;
        rms_row(c.at<float>(0) + row_at(c, 0, r), c.at<float>(1), n, c.i[0] != 0, (float)c.f[0], y);
        if (c.has(3)) quantize_row(y, n, c.at<uint8_t>(3) + r * c.stride(3, 0), planes_of(c, 3, n));
    }
}

static const char *check_add_rms_norm(const Call &c) {
    if (c.n != 6 || c.ints != 1 || c.floats != 1) return "takes a, b, w?, out?, sum, outq?, unit_offset and eps";
    const char *wrong = check_rows(c, 0);
    if (wrong == nullptr) wrong = check_rows(c, 1);
    if (wrong == nullptr) wrong = check_like(c, 1, 0);
    if (wrong == nullptr) wrong = check_row(c, 2, width_of(c, 0));
    if (wrong == nullptr) wrong = check_rows(c, 4);
    if (wrong == nullptr) wrong = check_like(c, 4, 0);
    return wrong != nullptr ? wrong : check_norm_results(c, 0, 3, 5);
}

static void add_rms_norm(const Call &c, int thread, int threads) {
    const int64_t n = width_of(c, 0);
    float *room = (float *)c.scratch(thread, (size_t)(n + W) * 4);
    const Range rows = split(rows_of(c, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const float *a = c.at<float>(0) + row_at(c, 0, r), *b = c.at<float>(1) + row_at(c, 1, r);
        float *total = c.at<float>(4) + row_at(c, 4, r), *y = c.has(3) ? c.at<float>(3) + row_at(c, 3, r) : room;
        for (int64_t k = 0; k < n; k += W) store_n(total + k, load_n(a + k, n - k) + load_n(b + k, n - k), n - k);
        rms_row(total, c.at<float>(2), n, c.i[0] != 0, (float)c.f[0], y);
        if (c.has(5)) quantize_row(y, n, c.at<uint8_t>(5) + r * c.stride(5, 0), planes_of(c, 5, n));
    }
}

/* layer_norm(x, w?, bias?, out?, outq?) | | eps        y = (x − mean x) / √(mean (x − mean x)² + ε) · w + bias
 *
 * Along the last dimension; rows of any strides; outq as in rms_norm.h. Two passes over a row, W running lanes each.
 */

static OPTPIPE_INLINE void layer_row(const float *x, const float *w, const float *bias, int64_t n, float eps, float *y) {
    V total = zero(), squares = zero();
    for (int64_t k = 0; k < n; k += W) total = total + load_n(x + k, n - k);
    const V mean = set1(sum(total) / (float)n);
    for (int64_t k = 0; k < n; k += W) {
        const V it = n - k < W ? first_lanes(load_n(x + k, n - k) - mean, n - k) : load(x + k) - mean;
        squares = fma(it, it, squares);
    }
    const V factor = set1(1.0f / __builtin_sqrtf(sum(squares) / (float)n + eps));
    for (int64_t k = 0; k < n; k += W) {
        V it = (load_n(x + k, n - k) - mean) * factor;
        if (w != nullptr) it = it * load_n(w + k, n - k);
        if (bias != nullptr) it = it + load_n(bias + k, n - k);
        store_n(y + k, it, n - k);
    }
}

static const char *check_layer_norm(const Call &c) {
    if (c.n != 5 || c.floats != 1) return "takes x, w?, bias?, out?, outq? and eps";
    const char *wrong = check_rows(c, 0);
    for (int k = 1; wrong == nullptr && k < 3; ++k) wrong = check_row(c, k, width_of(c, 0));
    return wrong != nullptr ? wrong : check_norm_results(c, 0, 3, 4);
}

static void layer_norm(const Call &c, int thread, int threads) {
    const int64_t n = width_of(c, 0);
    float *room = (float *)c.scratch(thread, (size_t)(n + W) * 4);
    const Range rows = split(rows_of(c, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        float *y = c.has(3) ? c.at<float>(3) + row_at(c, 3, r) : room;
        layer_row(c.at<float>(0) + row_at(c, 0, r), c.at<float>(1), c.at<float>(2), n, (float)c.f[0], y);
        if (c.has(4)) quantize_row(y, n, c.at<uint8_t>(4) + r * c.stride(4, 0), planes_of(c, 4, n));
    }
}

/* softmax(x, out)         out[i] = e^(x[i] − m) / Σ e^(x[j] − m),  m = max x      along the last dimension
 * log_softmax(x, out)     out[i] = (x[i] − m) − log Σ e^(x[j] − m)
 *
 * Any strides. A row of −∞ alone gives NaN, as in torch.
 */

static const char *check_softmax(const Call &c) {
    if (c.n != 2 || c.t[0].rank < 1) return "takes x of one dimension or more, and out";
    return check_copy(c);
}

template <bool logarithm> static void softmax(const Call &c, int thread, int threads) {
    const optpipe_tensor &x = c.t[0], &y = c.t[1];
    const int last = x.rank - 1;
    const int64_t n = x.size[last];
    int64_t rows = 1;
    for (int d = 0; d < last; ++d) rows *= x.size[d];
    const Range work = split(rows, 1, thread, threads);
    float *row = (float *)c.scratch(thread, (size_t)(n + W) * 4);
    for (int64_t k = work.begin; k < work.end; ++k) {
        int64_t from = 0, to = 0, rest = k;
        for (int d = last - 1; d >= 0; --d) {
            from += rest % x.size[d] * x.stride[d];
            to += rest % x.size[d] * y.stride[d];
            rest /= x.size[d];
        }
        float top = -__builtin_inff();
        for (int64_t i = 0; i < n; ++i) {
            row[i] = float_at((const char *)x.data, x.dtype, from + i * x.stride[last]);
            top = row[i] > top ? row[i] : top;
        }
        V total = zero();
        for (int64_t i = 0; i < n; i += W) {
            const V e = vexp(load_n(row + i, n - i) - set1(top));
            if (!logarithm) store_n(row + i, e, n - i);
            total = total + (n - i < W ? first_lanes(e, n - i) : e);
        }
        const float whole = sum(total), shift = logarithm ? top + logf(whole) : 0.0f;
        for (int64_t i = 0; i < n; ++i)
            put_float((char *)y.data, y.dtype, to + i * y.stride[last], logarithm ? row[i] - shift : row[i] / whole);
    }
}

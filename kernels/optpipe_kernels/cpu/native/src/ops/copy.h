/* copy(x, out)                out[i] = x[i], converted: floats to whole numbers towards zero
 * fill(out) | | value         out[i] = value
 *
 * Any strides. Bytes: both read or written once.
 */

static const char *check_copy(const Call &c) {
    if (c.n != 2) return sentence("takes 2 operands, got %d", c.n);
    const char *wrong = check_like(c, 0, 1);
    return wrong != nullptr ? wrong : check_written(c, 1);
}

static void copy(const Call &c, int thread, int threads) {
    const int operands[] = {1, 0};
    const Walk w = walk_over(c, operands, 2);
    const int32_t to = w.dtype[0], from = w.dtype[1];
    each_run(w, thread, threads, [=](char **p, const int64_t *step, int64_t n) OPTPIPE_BODY {
        if (to == from && step[0] == 1 && step[1] == 1) {
            memcpy(p[0], p[1], (size_t)(n * item_bytes(to)));
        } else if (is_float(from)) {
            for (int64_t k = 0; k < n; ++k) put_float(p[0], to, k * step[0], float_at(p[1], from, k * step[1]));
        } else {
            for (int64_t k = 0; k < n; ++k) put_int(p[0], to, k * step[0], int_at(p[1], from, k * step[1]));
        }
    });
}

static const char *check_fill(const Call &c) {
    return c.n != 1 || c.floats != 1 ? "takes out and a value" : check_written(c, 0);
}

static void fill(const Call &c, int thread, int threads) {
    const int operands[] = {0};
    const Walk w = walk_over(c, operands, 1);
    const double value = c.f[0];
    each_run(w, thread, threads, [=](char **p, const int64_t *step, int64_t n) OPTPIPE_BODY {
        for (int64_t k = 0; k < n; ++k)
            if (is_float(w.dtype[0]))
                put_float(p[0], w.dtype[0], k * step[0], (float)value);
            else
                put_int(p[0], w.dtype[0], k * step[0], (int64_t)value);
    });
}

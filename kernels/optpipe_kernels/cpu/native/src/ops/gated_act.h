/* gated_act(gate, up, out) | kind        out = act(gate) · up        rows of any strides */

static const char *check_gated_act(const Call &c) {
    if (c.n != 3 || c.ints != 1 || c.i[0] <= NONE || c.i[0] >= ACTIVATIONS) return "takes gate, up, out and an activation";
    for (int k = 0; k < 3; ++k) {
        const char *wrong = check_rows(c, k);
        if (wrong == nullptr) wrong = check_like(c, k, 2);
        if (wrong != nullptr) return wrong;
    }
    return nullptr;
}

static void gated_act(const Call &c, int thread, int threads) {
    const int64_t n = width_of(c, 0), pieces = (n + RUN - 1) / RUN;
    const Range work = split(rows_of(c, 0) * pieces, 1, thread, threads);
    for (int64_t at = work.begin; at < work.end; ++at) {
        const int64_t r = at / pieces, begin = at % pieces * RUN, end = least(n, begin + RUN);
        const float *gate = c.at<float>(0) + row_at(c, 0, r), *up = c.at<float>(1) + row_at(c, 1, r);
        float *y = c.at<float>(2) + row_at(c, 2, r);
        for (int64_t k = begin; k < end; k += W)
            store_n(y + k, activate(c.i[0], load_n(gate + k, end - k)) * load_n(up + k, end - k), end - k);
    }
}

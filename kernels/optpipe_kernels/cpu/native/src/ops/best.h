/* The ending of an LM head of which only the most likely token is wanted: no logit is stored.
 *
 *     ids[r] = the least n with the largest x·w[n] + bias[n], best[r] = that value; a NaN is larger than any number
 */
struct Best {
    float value;
    int64_t id;
};

static OPTPIPE_INLINE bool beats(float a, float b) { return a > b || (a != a && b == b); }

/* The 16 outputs of a tile, ids ascending, against the best before them. */
static OPTPIPE_INLINE void improve(Best &best, const float *sums, const float *bias, int64_t n, int64_t outputs) {
    alignas(64) float held[TILE];
    bool better = best.id < 0;
    for (int64_t lane = 0; lane < TILE; lane += W) {
        const int64_t some = most(0, outputs - n - lane);
        V y = load(sums + lane);
        if (bias != nullptr) y = y + load_n(bias + n + lane, some);
        store(held + lane, y);
        /* Lanes past the last output may raise a false alarm. */
        better |= any(less(set1(best.value), y)) || !all(equal(y, y));
    }
    for (int64_t lane = 0; better && lane < TILE && n + lane < outputs; ++lane)
        if (best.id < 0 || beats(held[lane], best.value)) best = {held[lane], n + lane};
}

/* Operands bias?, ids, best from the third. */
static const char *check_best(const Call &c, bool quantized) {
    if (c.n != 5) return sentence("takes 5 operands, got %d", c.n);
    if (const char *words = check_weight(c, 1, c.ints > 0 ? c.i[0] : 0, quantized)) return words;
    const int64_t rows = c.size(0, 0);
    if (const char *words = check_vector(c, 2, c.i[0])) return words;
    if (!c.has(3) || c.t[3].dtype != OPTPIPE_I64 || c.t[3].rank != 1 || c.size(3, 0) != rows || c.stride(3, 0) != 1)
        return sentence("ids must be i64 [%lld]", (long long)rows);
    return check_vector(c, 4, rows);
}

template <class Source> static void run_best(const Call &c, const Source &source, int thread, int threads) {
    const int64_t rows = c.size(0, 0), outputs = c.i[0];
    const float *bias = c.at<float>(2);
    Best *all = (Best *)c.shared((size_t)(threads * rows) * sizeof(Best));
    Best *mine = all + thread * rows;
    for (int64_t r = 0; r < rows; ++r) mine[r] = {-__builtin_inff(), -1};
    sweep(source, split(source.w.count(), 1, thread, threads), {0, rows},
          [&](int64_t row, int64_t tile, int64_t tiles, const float *sums) {
              for (int64_t s = 0; s < tiles; ++s)
                  improve(mine[row], sums + s * Source::ROWS * TILE, bias, (tile + s) * TILE, outputs);
          });
    c.barrier();
    for (int64_t r = thread; r < rows; r += threads) {
        Best best = {-__builtin_inff(), -1};
        for (int k = 0; k < threads; ++k) { /* threads hold ascending ids */
            const Best &other = all[k * rows + r];
            if (other.id >= 0 && (best.id < 0 || beats(other.value, best.value))) best = other;
        }
        c.at<int64_t>(3)[r] = best.id;
        if (c.has(4)) c.at<float>(4)[r] = best.value;
    }
}

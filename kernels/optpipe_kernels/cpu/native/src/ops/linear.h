/* linear(x, w, bias?, residual?, out) | N K bits 0 0 [activation]
 *
 *     out[t, n] = f(Σ_k x[t, k] · w[n, k] + bias[n]) + residual[t, n]
 *
 * x [T, K] f32; w packed bf16 or f32 (packed.h); out [T, N] f32, may be residual itself. Equals aten.linear in float32:
 * the sum of an output is fused multiply-adds in the order of k. A bf16 weight is widened, x is not narrowed, but where
 * the processor multiplies pairs of bfloat16: linear_pairs.h.
 *
 * Bytes: N·K·bits/8 from memory once up to `chunk` rows. A block is ROWS rows × TILES tiles, all sums in registers.
 */
#if defined(__AVX512F__)
enum { FLOAT_ROWS = 6, FLOAT_TILES = 4 }; /* 24 sums, 4 weights */
#elif defined(__AVX2__)
enum { FLOAT_ROWS = 6, FLOAT_TILES = 1 }; /* 12 sums, 2 weights */
#else
enum { FLOAT_ROWS = 2, FLOAT_TILES = 1 };
#endif

/* The two inputs of a pair of bf16 weights: the lower and the upper halves of words. */
static OPTPIPE_INLINE V lower_bf16(V words) { return as_float(shift_left<16>(as_int(words))); }
static OPTPIPE_INLINE V upper_bf16(V words) { return as_float(as_int(words) & seti((int)0xffff0000)); }

/* R rows against S tiles, tile_bytes apart. ahead: bytes from here to the weights that this thread needs next, or 0. */
template <int R, int S, int BITS>
static void float_tiles(const uint8_t *tiles, int64_t tile_bytes, const float *x, int64_t stride, int64_t inputs, int64_t ahead,
                        float *sums) {
    enum { PARTS = TILE / W, STEP = BITS == 16 ? 2 : 1 };
    V total[S * PARTS][R];
    for (int s = 0; s < S * PARTS; ++s)
        for (int r = 0; r < R; ++r) total[s][r] = zero();
    for (int64_t k = 0; k < inputs; k += STEP) {
        V w[S * PARTS];
#pragma GCC unroll 4
        for (int s = 0; ahead != 0 && s < S; ++s) prefetch(tiles + s * tile_bytes + k / STEP * TILE * 4 + ahead);
#pragma GCC unroll 8
        for (int s = 0; s < S * PARTS; ++s)
            w[s] = load((const float *)(tiles + s / PARTS * tile_bytes + (k / STEP * TILE + s % PARTS * W) * 4));
#pragma GCC unroll 2
        for (int c = 0; c < STEP; ++c) {
            if (k + c == inputs) break; /* bf16 of an odd K */
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const V value = set1(x[r * stride + k + c]);
#pragma GCC unroll 8
                for (int s = 0; s < S * PARTS; ++s) {
                    const V weight = BITS == 32 ? w[s] : c == 0 ? lower_bf16(w[s]) : upper_bf16(w[s]);
                    total[s][r] = fma(value, weight, total[s][r]);
                }
            }
        }
    }
    for (int s = 0; s < S * PARTS; ++s)
        for (int r = 0; r < R; ++r) store(sums + (s / PARTS * FLOAT_ROWS + r) * TILE + s % PARTS * W, total[s][r]);
}

typedef void (*FloatTiles)(const uint8_t *, int64_t, const float *, int64_t, int64_t, int64_t, float *);

template <int R, int S> static void float_tiles_of(int32_t bits, FloatTiles (*to)[FLOAT_ROWS]) {
    to[S - 1][R - 1] = bits == 16 ? float_tiles<R, S, 16> : float_tiles<R, S, 32>;
    if constexpr (R > 1) float_tiles_of<R - 1, S>(bits, to);
    else if constexpr (S > 1) float_tiles_of<FLOAT_ROWS, S - 1>(bits, to);
}

/* Float rows times a packed weight, for sweep(). */
struct FloatSource {
    enum { ROWS = FLOAT_ROWS, TILES = 4 };
    Packed w;
    const float *x;
    int64_t stride, chunk;
    FloatTiles by_size[FLOAT_TILES][FLOAT_ROWS];

    OPTPIPE_INLINE void block(int64_t tile, int64_t tiles, int64_t row, int64_t rows, bool first, float *sums) const {
        const int64_t ahead = first ? FLOAT_TILES * w.head->tile_bytes : 0;
        for (int64_t s = 0; s < tiles; s += FLOAT_TILES) {
            const int64_t some = least(FLOAT_TILES, tiles - s);
            by_size[some - 1][rows - 1](w.tile(tile + s), w.head->tile_bytes, x + row * stride, stride, w.head->inputs,
                                        ahead, sums + s * ROWS * TILE);
        }
    }
};

static FloatSource float_source(void *blob, const float *x, int64_t stride) {
    FloatSource it;
    it.w = packed(blob);
    it.x = x;
    it.stride = stride;
    it.chunk = (384 << 10) / most(1, 4 * it.w.head->inputs);
    float_tiles_of<FLOAT_ROWS, FLOAT_TILES>(it.w.head->bits, it.by_size);
    return it;
}

/* run(source) with the source that the weight's type wants. Operands x, w first. */
template <class Run> static OPTPIPE_INLINE void with_source(const Call &c, int thread, const Run &run) {
    const float *x = c.at<float>(0);
#ifdef OPTPIPE_PAIRS
    if (packed(c.at<uint8_t>(1)).head->bits == 16) {
        PairSource source = pair_source(c.at<uint8_t>(1), x, c.stride(0, 0));
        const int64_t rows = least(c.size(0, 0), source.chunk);
        source.narrow = (uint8_t *)c.scratch(thread, (size_t)most(1, rows * source.row_bytes));
        return run(source);
    }
#endif
    (void)thread;
    run(float_source(c.at<uint8_t>(1), x, c.stride(0, 0)));
}

static const char *check_linear(const Call &c) {
    if (c.n != 5) return sentence("takes 5 operands, got %d", c.n);
    if (const char *words = check_weight(c, 1, c.ints > 0 ? c.i[0] : 0, false)) return words;
    if (!c.has(4) || !c.has(0)) return "x and out must be there";
    const int64_t rows = c.size(4, 0);
    for (int k = 3; k < 5; ++k)
        if (const char *words = check_rows(c, k, rows, c.i[0])) return words;
    if (const char *words = check_vector(c, 2, c.i[0])) return words;
    return check_rows(c, 0, rows, c.i[1]);
}

static void linear(const Call &c, int thread, int threads) {
    with_source(c, thread, [&](const auto &source) { run_linear(c, source, thread, threads); });
}

/* linear_gated(x, w, bias?, out?, outq?) | I K bits 0 0 kind: gated.h */
static const char *check_linear_gated(const Call &c) {
    const char *words = check_gated(c, false);
    return words != nullptr ? words : check_rows(c, 0, c.size(0, 0), c.i[1]);
}

static void linear_gated(const Call &c, int thread, int threads) {
    with_source(c, thread, [&](const auto &source) { run_gated(c, source, thread, threads); });
}

/* linear_argmax(x, w, bias?, ids, best?) | N K bits 0 0: best.h */
static const char *check_linear_argmax(const Call &c) {
    const char *words = check_best(c, false);
    return words != nullptr ? words : check_rows(c, 0, c.size(0, 0), c.i[1]);
}

static void linear_argmax(const Call &c, int thread, int threads) {
    with_source(c, thread, [&](const auto &source) { run_best(c, source, thread, threads); });
}

/* A tile of attention over a cache of float32 or bfloat16, in float32.
 *
 *     scores   keys [D][S]: a lane is a slot, its sum runs over d in order
 *     outputs  values [S][E]: a lane is a column, its sum runs over the slots in order
 */

/* How numbers of a cache become floats. */
struct CacheF32 {
    typedef float Number;
    static OPTPIPE_INLINE V numbers(const float *p) { return load(p); }
};
struct CacheBf16 {
    typedef uint16_t Number;
    static OPTPIPE_INLINE V numbers(const uint16_t *p) { return load_bf16(p); }
};

/* score[r][s] = q[r] · key s, over vectors of keys: N at a time for R rows. */
template <int R, int N, class C>
static OPTPIPE_INLINE void dot_keys(const float *q, int64_t width, int64_t slots, const char *const *keys, float *score,
                                    int64_t score_stride) {
    V acc[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) acc[r][n] = zero();
    for (int64_t d = 0; d < width; ++d) {
        V k[N];
        for (int n = 0; n < N; ++n) k[n] = C::numbers((const typename C::Number *)keys[n] + d * slots);
        for (int r = 0; r < R; ++r) {
            const V it = set1(q[r * width + d]);
            for (int n = 0; n < N; ++n) acc[r][n] = fma(it, k[n], acc[r][n]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) store(score + r * score_stride + n * W, acc[r][n]);
}

/* out[r] += Σ_s p[r][s] · value s over the slots [0, count) of one block. */
template <int R, int N, class C>
static OPTPIPE_INLINE void add_values(const float *p, int64_t p_stride, const typename C::Number *values, int64_t columns,
                                      int64_t count, float *out, int64_t out_stride) {
    V acc[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) acc[r][n] = load(out + r * out_stride + n * W);
    for (int64_t s = 0; s < count; ++s) {
        V v[N];
        for (int n = 0; n < N; ++n) v[n] = C::numbers(values + s * columns + n * W);
        for (int r = 0; r < R; ++r) {
            const V it = set1(p[r * p_stride + s]);
            for (int n = 0; n < N; ++n) acc[r][n] = fma(it, v[n], acc[r][n]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) store(out + r * out_stride + n * W, acc[r][n]);
}

/* Attention over floats, for attend_span. Scratch: the rows' queries [R][D]. */
template <class C> struct FloatAttention {
    typedef typename C::Number Number;
    float *q, *score;

    static OPTPIPE_INLINE int64_t scratch_bytes(const Attention &a) { return ROWS * (a.keys.width + a.tile_slots) * 4; }

    template <int R> OPTPIPE_INLINE void begin(const Attention &a, const Unit &u, char *scratch) {
        q = (float *)scratch;
        score = q + ROWS * a.keys.width;
        for (int r = 0; r < R; ++r) memcpy(q + r * a.keys.width, query_of(a, u, r), (size_t)a.keys.width * 4);
    }

    template <int R> void scores(const Attention &a, const Unit &u, const int32_t *table, int64_t blocks) const {
        constexpr int N = R <= 3 ? 4 : 2;
        const int64_t slots = a.keys.slots, vectors = blocks * slots / W;
        for (int64_t v = 0; v < vectors; v += N) {
            const char *keys[N];
            const int64_t held = least(N, vectors - v);
            for (int64_t n = 0; n < N; ++n) {
                const int64_t at = (v + least(n, held - 1)) * W; /* past the end: the last one again, not kept */
                keys[n] = a.keys.head(table[at / slots], u.head) + at % slots * (int64_t)sizeof(Number);
            }
            float *to = score + v * W;
            if (held == N) dot_keys<R, N, C>(q, a.keys.width, slots, keys, to, a.tile_slots);
            else
                for (int64_t n = 0; n < held; ++n) dot_keys<R, 1, C>(q, a.keys.width, slots, keys + n, to + n * W, a.tile_slots);
        }
    }

    /* `blocks` blocks from `block` on. */
    template <int R>
    void tile(const Attention &a, const Unit &u, const float *slope, int64_t block, int64_t blocks, Running *rows, float *out) const {
        const int64_t slots = a.keys.slots, columns = a.values.columns;
        const int32_t *table = table_of(a, u) + block;
        scores<R>(a, u, table, blocks);
        for (int r = 0; r < R; ++r) {
            float *mine = score + r * a.tile_slots;
            const float top = finish_scores(a, u, r, block, blocks, slope[r], mine);
            if (top == -__builtin_inff()) { /* nothing seen: this tile leaves the row as it is */
                for (int64_t s = 0; s < blocks * slots; ++s) mine[s] = 0.0f;
                continue;
            }
            const float fade = weigh(mine, blocks * slots, top, rows[r]);
            if (fade != 1.0f)
                for (int64_t d = 0; d < columns; d += W) store(out + r * columns + d, load(out + r * columns + d) * set1(fade));
        }
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t count = least(a.keys.block, u.context - (block + b) * a.keys.block);
            const Number *values = (const Number *)a.values.head(table[b], u.head);
            const float *weights = score + b * slots;
            int64_t d = 0;
            for (; d + 4 * W <= columns; d += 4 * W)
                add_values<R, 4, C>(weights, a.tile_slots, values + d, columns, count, out + d, columns);
            for (; d < columns; d += W) add_values<R, 1, C>(weights, a.tile_slots, values + d, columns, count, out + d, columns);
        }
    }
};

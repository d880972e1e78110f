/* A tile of attention over a cache of float32.
 *
 *     scores   keys [D][S]: a lane is a slot, its sum runs over d in order
 *     outputs  values [S][E]: a lane is a column, its sum runs over the slots in order
 */
struct FloatAttention {
    float *q, *score; /* [R][D], scaled; [R][tile_slots] */

    /* How many vectors R rows meet at a time: their sums stay in registers. */
    template <int R> static constexpr int vectors() { return R <= 3 ? 4 : 2; }

    static OPTPIPE_INLINE int64_t scratch_bytes(const Attention &a) { return ROWS * (a.keys.width + a.tile_slots) * 4; }

    template <int R> OPTPIPE_INLINE void begin(const Attention &a, const Unit &u, char *scratch) {
        const int64_t width = a.keys.width;
        score = (float *)scratch;
        q = score + ROWS * a.tile_slots;
        for (int r = 0; r < R; ++r)
            for (int64_t d = 0; d < width; d += W)
                store_n(q + r * width + d, load_n(query_of(a, u, r) + d, width - d) * set1(a.scale), width - d);
    }

    /* Scores of N vectors of slots from vector v on. */
    template <int R, int N>
    OPTPIPE_INLINE void score_slots(const Attention &a, const Unit &u, const int32_t *table, int64_t v) const {
        const int64_t slots = a.keys.slots, width = a.keys.width;
        const float *keys[N];
        V sums[R][N];
        for (int n = 0; n < N; ++n) keys[n] = (const float *)a.keys.head(table[(v + n) * W / slots], u.head) + (v + n) * W % slots;
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) sums[r][n] = zero();
        for (int64_t d = 0; d < width; ++d)
            for (int r = 0; r < R; ++r) {
                const V it = set1(q[r * width + d]);
                for (int n = 0; n < N; ++n) sums[r][n] = fma(it, load(keys[n] + d * slots), sums[r][n]);
            }
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) store(score + r * a.tile_slots + (v + n) * W, sums[r][n]);
    }

    /* out[r] = Σ weights · values, over N vectors of columns from d on. */
    template <int R, int N>
    OPTPIPE_INLINE void add_columns(const Attention &a, const Unit &u, const int32_t *table, const Range &blocks, int64_t d, float *out) const {
        const int64_t slots = a.values.slots, columns = a.values.columns;
        V sums[R][N];
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) sums[r][n] = zero();
        for (int64_t b = blocks.begin; b < blocks.end; ++b) {
            const float *values = (const float *)a.values.head(table[b - blocks.begin], u.head) + d;
            const float *weights = score + (b - blocks.begin) * slots;
            const int64_t written = least(a.values.block, u.context - b * a.values.block);
            for (int64_t s = 0; s < written; ++s)
                for (int r = 0; r < R; ++r) {
                    const V it = set1(weights[r * a.tile_slots + s]);
                    for (int n = 0; n < N; ++n) sums[r][n] = fma(it, load(values + s * columns + n * W), sums[r][n]);
                }
        }
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) store(out + r * columns + d + n * W, sums[r][n]);
    }

    template <int R>
    void tile(const Attention &a, const Unit &u, const float *slope, const Range &blocks, const Ahead &, const Part &part) {
        constexpr int N = vectors<R>();
        const int32_t *table = table_of(a, u) + blocks.begin;
        const int64_t slots = (blocks.end - blocks.begin) * a.keys.slots, columns = a.values.columns;
        int64_t v = 0, d = 0;
        for (; v + N <= slots / W; v += N) score_slots<R, N>(a, u, table, v);
        for (; v < slots / W; ++v) score_slots<R, 1>(a, u, table, v);
        for (int r = 0; r < R; ++r) {
            float *mine = score + r * a.tile_slots;
            part.rows[r] = weigh(mine, slots, finish_scores(a, u, r, blocks, slope[r], mine));
        }
        for (; d + N * W <= columns; d += N * W) add_columns<R, N>(a, u, table, blocks, d, part.out);
        for (; d < columns; d += W) add_columns<R, 1>(a, u, table, blocks, d, part.out);
    }
};

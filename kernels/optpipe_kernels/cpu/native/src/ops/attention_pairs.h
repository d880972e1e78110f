/* A tile of attention over a cache of bfloat16, by products of pairs summed in float32 (vec/pairs.h).
 *
 *     scores   keys [⌈D/2⌉][S][2]: a lane is a slot, its sum runs over pairs of channels in order
 *     outputs  values [S/2][E][2]: a lane is a column, its sum runs over pairs of slots in order
 *
 * Queries and weights are rounded to bfloat16 as the cache is; a row's total is summed before they are.
 */
struct PairAttention {
    float *score;         /* [R][tile_slots] */
    uint16_t *q, *weights; /* [R][q_stride], scaled; [R][tile_slots] */
    int64_t q_stride;

    /* How many vectors R rows meet at a time: their sums stay in registers. */
    template <int R> static constexpr int vectors() { return sizeof(V) == 64 ? 4 : R <= 2 ? 2 : 1; }

    static OPTPIPE_INLINE int64_t scratch_bytes(const Attention &a) {
        return ROWS * (a.tile_slots * 6 + round_up(a.keys.width, 16) * 2);
    }

    template <int R> OPTPIPE_INLINE void begin(const Attention &a, const Unit &u, char *scratch) {
        const int64_t width = a.keys.width;
        score = (float *)scratch;
        weights = (uint16_t *)(score + ROWS * a.tile_slots);
        q = weights + ROWS * a.tile_slots;
        q_stride = round_up(width, 16);
        for (int r = 0; r < R; ++r)
            for (int64_t d = 0; d < q_stride; d += W)
                store_halves(q + r * q_stride + d, load_n(query_of(a, u, r) + d, most(0, width - d)) * set1(a.scale));
    }

    /* Scores of N vectors of slots from vector v on. */
    template <int R, int N>
    OPTPIPE_INLINE void score_slots(const Attention &a, const Unit &u, const int32_t *table, const Ahead &next, int64_t v) const {
        const int64_t slots = a.keys.slots, pairs = a.keys.rows() / 2;
        const char *keys[N];
        V sums[R][N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const int64_t at = (v + n) * W, b = at / slots;
            keys[n] = a.keys.head(table[b], u.head) + at % slots * 4;
            if (at % slots == 0) next.fetch(a.values, b);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sums[r][n] = zero();
        for (int64_t j = 0; j < pairs; ++j) {
            P k[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) k[n] = load_pairs(keys[n] + j * slots * 4);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const P it = set1_pair(q + r * q_stride + 2 * j);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) sums[r][n] = dot_pairs(sums[r][n], k[n], it);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(score + r * a.tile_slots + (v + n) * W, sums[r][n]);
    }

    /* out[r] = Σ weights · values, over N vectors of columns from d on. */
    template <int R, int N>
    OPTPIPE_INLINE void add_columns(const Attention &a, const Unit &u, const int32_t *table, const Range &blocks, const Ahead &next,
                                    int64_t d, float *out) const {
        const int64_t slots = a.values.slots, columns = a.values.columns;
        V sums[R][N];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sums[r][n] = zero();
        for (int64_t b = 0; b < blocks.end - blocks.begin; ++b) {
            if (d == 0) next.fetch(a.keys, b);
            const char *values = a.values.head(table[b], u.head) + d * 4;
            const uint16_t *mine = weights + b * slots;
            const int64_t written = least(a.values.block, u.context - (blocks.begin + b) * a.values.block);
            for (int64_t j = 0; j < (written + 1) / 2; ++j) {
                P v[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) {
                    v[n] = load_pairs(values + (j * columns + n * W) * 4);
                    if (2 * j + 1 == written) v[n] = first_of_pairs(v[n]); /* after it: never written */
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const P it = set1_pair(mine + r * a.tile_slots + 2 * j);
#pragma GCC unroll 4
                    for (int n = 0; n < N; ++n) sums[r][n] = dot_pairs(sums[r][n], v[n], it);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(out + r * columns + d + n * W, sums[r][n]);
    }

    template <int R>
    void tile(const Attention &a, const Unit &u, const float *slope, const Range &blocks, const Ahead &next, const Part &part) {
        constexpr int N = vectors<R>();
        const int32_t *table = table_of(a, u) + blocks.begin;
        const int64_t slots = (blocks.end - blocks.begin) * a.keys.slots, columns = a.values.columns;
        int64_t v = 0, d = 0;
        for (; v + N <= slots / W; v += N) score_slots<R, N>(a, u, table, next, v);
        for (; N > 2 && v + 2 <= slots / W; v += 2) score_slots<R, 2>(a, u, table, next, v);
        for (; v < slots / W; ++v) score_slots<R, 1>(a, u, table, next, v);
        for (int r = 0; r < R; ++r) {
            float *mine = score + r * a.tile_slots;
            part.rows[r] = weigh(mine, slots, finish_scores(a, u, r, blocks, slope[r], mine));
            for (int64_t s = 0; s < slots; s += W) store_halves(weights + r * a.tile_slots + s, load(mine + s));
        }
        for (; d + N * W <= columns; d += N * W) add_columns<R, N>(a, u, table, blocks, next, d, part.out);
        for (; d < columns; d += W) add_columns<R, 1>(a, u, table, blocks, next, d, part.out);
    }
};

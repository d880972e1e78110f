/* A tile of attention over a cache of int8, by dot products of bytes that are exact in int32.
 *
 *     q[d] ≈ s · (254·a[d] + b[d]) / 254       two planes of int8 a row: 15 bits, as quantize.h has them
 *     score of slot j = k_scale[j] · (s · Σ a·k + s/254 · Σ b·k)
 *     p[j] · v_scale[j] ≈ t · (254·a[j] + b[j]) / 254       one t a row and tile
 *     out[d] = t · Σ a·v + t/254 · Σ b·v
 *
 * Four numbers that meet in one product lie together (kv_cache.h), so that a vector is W slots × 4 channels of keys or
 * W columns × 4 slots of values. Codes in the cache have 128 added; −128·Σa takes it off (vec/dot.h).
 *
 * Against the same cache in float32 the error is 2^-15 of the largest |q| and of the largest weight of the tile.
 */

enum { PLANES = 2 };

/* W numbers in units of the first plane's step: to both planes' codes; the sums of codes go on in `totals`. */
static OPTPIPE_INLINE void put_planes(V x, int8_t *first, int8_t *second, V *totals) {
    const V high = nearest(x), low = nearest((x - high) * set1(254.0f));
    store_i8(first, high);
    store_i8(second, low);
    totals[0] = totals[0] + high;
    totals[1] = totals[1] + low;
}

/* What turns a sum of products of both planes into a float. */
struct PlaneScale {
    float step;         /* of the first plane, the second's is 1/254 of it; 0: every code is 0 */
    int32_t eighth[PLANES]; /* −8·Σ codes */

    OPTPIPE_INLINE void take(float scale, const V *totals) {
        step = scale;
        for (int p = 0; p < PLANES; ++p) {
            const float codes = sum(totals[p]);
            eighth[p] = codes == codes ? -8 * (int32_t)codes : 0;
        }
    }
};

/* Sums of R rows' quads in two planes against N vectors of codes. */
template <int R, int N> struct QuadSums {
    typedef typename Dot<8>::Sum Sum;
    Sum dots[R][PLANES][N];

    OPTPIPE_INLINE void begin(const PlaneScale *scale) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < PLANES; ++p)
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) dots[r][p][n] = Dot<8>::begin(Dot<8>::offset(false, scale[r].eighth[p]));
    }
    /* x: the quad of row r in plane p at (PLANES·r + p)·stride */
    OPTPIPE_INLINE void add(const U *codes, const int8_t *x, int64_t stride) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < PLANES; ++p) {
                int32_t quad;
                memcpy(&quad, x + (PLANES * r + p) * stride, 4);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) dots[r][p][n] = Dot<8>::dot(dots[r][p][n], codes[n], quad);
            }
    }
    OPTPIPE_INLINE V end(const PlaneScale &scale, int r, int n) const {
        V found[PLANES];
#pragma GCC unroll 2
        for (int p = 0; p < PLANES; ++p)
            found[p] = to_float(Dot<8>::end(dots[r][p][n], Dot<8>::offset(false, scale.eighth[p])));
        return fma(found[0], set1(scale.step), found[1] * set1(scale.step * (1.0f / 254.0f)));
    }
};

/* How many vectors of codes R rows meet at a time: their sums stay in registers. */
template <int R> static constexpr int quad_vectors() { return sizeof(U) == 64 ? (R <= 3 ? 4 : 2) : R == 1 ? 4 : R == 2 ? 2 : 1; }

struct Int8Attention {
    float *score;
    int8_t *q, *weights; /* [R][PLANES][q_stride], [R][PLANES][tile_slots] */
    int64_t q_stride;
    PlaneScale q_scale[ROWS], weight_scale[ROWS];

    static OPTPIPE_INLINE int64_t scratch_bytes(const Attention &a) {
        return ROWS * (a.tile_slots * (4 + PLANES) + round_up(a.keys.width, 16) * PLANES);
    }

    template <int R> OPTPIPE_INLINE void begin(const Attention &a, const Unit &u, char *scratch) {
        score = (float *)scratch;
        weights = (int8_t *)(score + ROWS * a.tile_slots);
        q = weights + ROWS * PLANES * a.tile_slots;
        q_stride = round_up(a.keys.width, 16);
        for (int r = 0; r < R; ++r) take_query(query_of(a, u, r), a.keys.width, a.scale, r);
    }

    OPTPIPE_INLINE void take_query(const float *x, int64_t width, float scale, int r) {
        V top = zero(), odd = zero(), totals[PLANES] = {zero(), zero()};
        for (int64_t d = 0; d < width; d += W) {
            const V it = load_n(x + d, width - d);
            top = vmax(top, vabs(it));
            odd = odd + (it - it); /* 0, or NaN where x is not finite */
        }
        const float most_of_all = largest(top);
        const V inverse = set1(most_of_all > 0.0f ? 127.0f / most_of_all : 0.0f);
        int8_t *to = q + r * PLANES * q_stride;
        for (int64_t d = 0; d < q_stride; d += W) put_planes(load_n(x + d, most(0, width - d)) * inverse, to + d, to + q_stride + d, totals);
        q_scale[r].take((most_of_all * (1.0f / 127.0f) + sum(odd)) * scale, totals);
    }

    /* N vectors of slots from vector v on. */
    template <int R, int N> OPTPIPE_INLINE void score_slots(const Attention &a, const Unit &u, const int32_t *table, const Ahead &next, int64_t v) const {
        const int64_t slots = a.keys.slots, quads = a.keys.rows() / 4;
        const uint8_t *keys[N];
        const float *scales[N];
        for (int n = 0; n < N; ++n) {
            const int64_t at = (v + n) * W;
            char *head = a.keys.head(table[at / slots], u.head);
            keys[n] = (const uint8_t *)head + at % slots * 4;
            scales[n] = a.keys.scales(head) + at % slots;
            if (at % slots == 0) next.fetch(a.values, at / slots);
        }
        QuadSums<R, N> sums;
        sums.begin(q_scale);
        for (int64_t j = 0; j < quads; ++j) {
            U codes[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) codes[n] = load_codes(keys[n] + j * slots * 4);
            sums.add(codes, q + 4 * j, q_stride);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(score + r * a.tile_slots + (v + n) * W, sums.end(q_scale[r], r, n) * load(scales[n]));
    }

    /* Weights times the scales of their values, in two planes. A hidden slot's scale may be anything. */
    OPTPIPE_INLINE void take_weights(const Attention &a, const Unit &u, const int32_t *table, int64_t blocks, int r) {
        const int64_t slots = a.keys.slots;
        float *mine = score + r * a.tile_slots;
        V top = zero(), odd = zero(), totals[PLANES] = {zero(), zero()};
        for (int64_t b = 0; b < blocks; ++b) {
            const float *scales = a.values.scales(a.values.head(table[b], u.head));
            for (int64_t s = 0; s < slots; s += W) {
                const V p = load(mine + b * slots + s), it = choose(equal(p, zero()), p, p * load(scales + s));
                store(mine + b * slots + s, it);
                top = vmax(top, it);
                odd = odd + (it - it);
            }
        }
        const float most_of_all = largest(top);
        const V inverse = set1(most_of_all > 0.0f ? 127.0f / most_of_all : 0.0f);
        int8_t *to = weights + r * PLANES * a.tile_slots;
        for (int64_t s = 0; s < blocks * slots; s += W) put_planes(load(mine + s) * inverse, to + s, to + a.tile_slots + s, totals);
        weight_scale[r].take(most_of_all * (1.0f / 127.0f) + sum(odd), totals);
    }

    /* out[r] = Σ weights · values, over N vectors of columns from d on. */
    template <int R, int N>
    OPTPIPE_INLINE void add_columns(const Attention &a, const Unit &u, const int32_t *table, int64_t blocks, const Ahead &next,
                                    int64_t d, float *out) const {
        const int64_t slots = a.values.slots, columns = a.values.columns;
        QuadSums<R, N> sums;
        sums.begin(weight_scale);
        for (int64_t b = 0; b < blocks; ++b) {
            if (d == 0) next.fetch(a.keys, b);
            const uint8_t *values = (const uint8_t *)a.values.head(table[b], u.head) + d * 4;
            for (int64_t j = 0; j < slots / 4; ++j) {
                U codes[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) codes[n] = load_codes(values + j * columns * 4 + n * W * 4);
                sums.add(codes, weights + b * slots + 4 * j, a.tile_slots);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) store(out + r * columns + d + n * W, sums.end(weight_scale[r], r, n));
    }

    template <int R>
    void tile(const Attention &a, const Unit &u, const float *slope, const Range &range, const Ahead &next, const Part &part) {
        constexpr int N = quad_vectors<R>();
        const int32_t *table = table_of(a, u) + range.begin;
        const int64_t blocks = range.end - range.begin, slots = blocks * a.keys.slots, columns = a.values.columns;
        int64_t v = 0, d = 0;
        for (; v + N <= slots / W; v += N) score_slots<R, N>(a, u, table, next, v);
        for (; v < slots / W; ++v) score_slots<R, 1>(a, u, table, next, v);
        for (int r = 0; r < R; ++r) {
            float *mine = score + r * a.tile_slots;
            part.rows[r] = weigh(mine, slots, finish_scores(a, u, r, range, slope[r], mine));
            take_weights(a, u, table, blocks, r);
        }
        for (; d + N * W <= columns; d += N * W) add_columns<R, N>(a, u, table, blocks, next, d, part.out);
        for (; d < columns; d += W) add_columns<R, 1>(a, u, table, blocks, next, d, part.out);
    }
};

/* The softmax of attention, a tile of keys at a time, tiles joined in the order of positions.
 *
 *     (top, total, out) of a row: the largest score so far, Σ e^(score − top), Σ e^(score − top)·v
 *
 * A hidden key has the score −∞ and the weight 0: it changes no bit of (top, total, out).
 * Source: Dao et al. 2022 (tiling), Dao et al. 2023 (splitting along keys).
 */

/* One row's softmax. */
struct Running {
    float top, total;
};

/* The rows of a unit over some of its keys; out is [ROWS][columns]. */
struct Part {
    Running *rows;
    float *out;
};

enum { PART_HEAD = 16 }; /* floats that the rows of a part take */
static OPTPIPE_INLINE int64_t part_floats(const Attention &a) { return PART_HEAD + ROWS * a.values.columns; }
static OPTPIPE_INLINE Part part_at(float *memory) { return {(Running *)memory, memory + PART_HEAD}; }

/* Whether a row sees every slot of some blocks, and no slot is padding. */
static OPTPIPE_INLINE bool sees_all(const Attention &a, int64_t position, const Range &blocks) {
    return a.keys.slots == a.keys.block && blocks.begin * a.keys.block >= oldest_seen(a, position) &&
           blocks.end * a.keys.block <= position + 1;
}

/* Cap, slope and mask one row's scores of some blocks; the largest that is seen, or −∞. */
static OPTPIPE_INLINE float finish_scores(const Attention &a, const Unit &u, int64_t r, const Range &blocks, float slope,
                                          float *score) {
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int64_t position = u.position(r, a.groups), oldest = oldest_seen(a, position), slots = a.keys.slots;
    const int64_t all = (blocks.end - blocks.begin) * slots;
    const bool plain = slope == 0.0f && sees_all(a, position, blocks);
    V top = set1(-__builtin_inff());
    if (a.softcap > 0.0f)
        for (int64_t s = 0; s < all; s += W) store(score + s, set1(a.softcap) * vtanh(load(score + s) / set1(a.softcap)));
    if (plain) {
        for (int64_t s = 0; s < all; s += W) top = vmax(top, load(score + s));
        return largest(top);
    }
    for (int64_t s = 0; s < all; s += W) {
        /* Distances to the row: negative before it. Whole numbers, exact in float up to 2^24 tokens. */
        const int64_t at = (blocks.begin + s / slots) * a.keys.block + s % slots - position;
        const V away = set1((float)at) + load(lanes);
        const float last = (float)least(0, at - s % slots + a.keys.block - 1);
        V it = load(score + s) + set1(slope) * away;
        it = choose(less(away, set1((float)(oldest - position))), set1(-__builtin_inff()), it);
        it = choose(less(set1(last), away), set1(-__builtin_inff()), it);
        store(score + s, it);
        top = vmax(top, it);
    }
    return largest(top);
}

/* Scores become weights; the row's softmax of this tile. */
static OPTPIPE_INLINE Running weigh(float *score, int64_t slots, float top) {
    if (top == -__builtin_inff()) { /* nothing seen */
        memset(score, 0, (size_t)slots * 4);
        return {top, 0.0f};
    }
    V total = zero();
    for (int64_t s = 0; s < slots; s += W) {
        const V it = vexp_below(load(score + s) - set1(top));
        store(score + s, it);
        total = total + it;
    }
    return {top, sum(total)};
}

/* Join a tile to what came before it, row by row. */
static OPTPIPE_INLINE void join(const Part &to, const Part &more, int64_t count, int64_t columns) {
    float factors[2 * 8] = {}; /* exponents, then: by how much the rows fade, and the tile's part of them */
    for (int64_t r = 0; r < count; ++r) {
        const float before = to.rows[r].top, now = more.rows[r].top, peak = before > now ? before : now;
        factors[r] = before == peak ? 0.0f : before - peak;
        factors[8 + r] = now == peak ? 0.0f : now - peak;
    }
    for (int k = 0; k < 16; k += W) store(factors + k, vexp_below(load(factors + k)));
    for (int64_t r = 0; r < count; ++r) {
        const float fade = factors[r], gain = factors[8 + r], before = to.rows[r].top, now = more.rows[r].top;
        if (now == -__builtin_inff()) continue;
        to.rows[r] = {before > now ? before : now, to.rows[r].total * fade + more.rows[r].total * gain};
        float *out = to.out + r * columns;
        for (int64_t d = 0; d < columns; d += W)
            store(out + d, fma(load(more.out + r * columns + d), set1(gain), load(out + d) * set1(fade)));
    }
}

/* The softmax of attention, a tile of keys at a time and then a span at a time, always in the order of positions.
 *
 *     (top, total, out) of a row: the largest score so far, Σ e^(score − top), Σ e^(score − top)·v
 *
 * A hidden key has the score −∞ and the weight 0: it changes no bit of (top, total, out).
 * Source: Dao et al. 2022 (tiling), Dao et al. 2023 (splitting along keys).
 */

/* One row's softmax so far. */
struct Running {
    float top, total;
};

static OPTPIPE_INLINE float scalar_exp(float x) {
    float lanes[W];
    store(lanes, vexp(set1(x)));
    return lanes[0];
}

/* Whether a row sees every slot of `blocks` blocks from `block` on, and no slot is padding. */
static OPTPIPE_INLINE bool sees_all(const Attention &a, int64_t position, int64_t block, int64_t blocks) {
    return a.keys.slots == a.keys.block && block * a.keys.block >= oldest_seen(a, position) &&
           (block + blocks) * a.keys.block <= position + 1;
}

/* Add the slope to W scores from slot s of a block that begins at position `at`, and hide what the row must not see. */
static OPTPIPE_INLINE V hide(const Attention &a, int64_t position, int64_t oldest, int64_t at, int64_t s, float slope, V it) {
    float lanes[W];
    store(lanes, it);
    for (int k = 0; k < W; ++k) {
        const int64_t key = at + s + k;
        lanes[k] += slope * (float)(key - position);
        if (key < oldest || key > position || s + k >= a.keys.block) lanes[k] = -__builtin_inff();
    }
    return load(lanes);
}

/* Scale, cap, slope and mask one row's scores of a tile whose first block is `block`; the largest that is seen. */
static OPTPIPE_INLINE float finish_scores(const Attention &a, const Unit &u, int64_t r, int64_t block, int64_t blocks,
                                          float slope, float *score) {
    const int64_t position = u.position(r, a.groups), oldest = oldest_seen(a, position);
    const V scale = set1(a.scale);
    const bool plain = slope == 0.0f && sees_all(a, position, block, blocks);
    V top = set1(-__builtin_inff());
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = (block + b) * a.keys.block;
        float *part = score + b * a.keys.slots;
        for (int64_t s = 0; s < a.keys.slots; s += W) {
            V it = load(part + s) * scale;
            if (a.softcap > 0.0f) it = set1(a.softcap) * vtanh(it / set1(a.softcap));
            if (!plain) it = hide(a, position, oldest, at, s, slope, it);
            store(part + s, it);
            top = vmax(top, it);
        }
    }
    return largest(top);
}

/* Scores become weights, the row's softmax goes on, and its output so far fades by the factor returned. */
static OPTPIPE_INLINE float weigh(float *score, int64_t slots, float top, Running &row) {
    const float peak = row.top > top ? row.top : top;
    const float fade = row.top == peak ? 1.0f : scalar_exp(row.top - peak);
    V total = zero();
    for (int64_t s = 0; s < slots; s += W) {
        const V it = vexp_below(load(score + s) - set1(peak));
        store(score + s, it);
        total = total + it;
    }
    row.total = row.total * fade + sum(total);
    row.top = peak;
    return fade;
}

/* Join a span to what came before it. */
static OPTPIPE_INLINE void join(Running &row, float *out, const Running &more, const float *part, int64_t columns) {
    if (more.top == -__builtin_inff()) return;
    const float peak = row.top > more.top ? row.top : more.top;
    const float fade = row.top == peak ? 1.0f : scalar_exp(row.top - peak);
    const float gain = more.top == peak ? 1.0f : scalar_exp(more.top - peak);
    row = {peak, row.total * fade + more.total * gain};
    for (int64_t d = 0; d < columns; d += W)
        store(out + d, fma(load(part + d), set1(gain), load(out + d) * set1(fade)));
}

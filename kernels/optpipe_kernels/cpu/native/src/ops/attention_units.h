/* What attention is made of: one sequence's rows of one KV head, and the spans of keys that they see.
 *
 *     a unit of work = one sequence, one KV head, up to ROWS rows (token, query head of that KV head)
 *     keys:  span of 256 slots ▸ tile of 64 or 128 slots ▸ vectors of W slots
 *
 * Spans and tiles begin at fixed places of the sequence, so that a row's result depends on nothing but its position.
 */

enum { ROWS = 6, TILE_SLOTS = 64, INT8_TILE_SLOTS = 128, SPAN_SLOTS = 256 };

struct Attention {
    const Call *c;
    Cache keys, values;
    int64_t groups;               /* query heads a KV head */
    int64_t tile_blocks, span_blocks;
    int64_t tile_slots;           /* slots of a tile, padding included */
    int64_t window, chunk;
    float scale, softcap;
};

static Attention attention_of(const Call &c) {
    Attention a;
    a.c = &c;
    a.keys = cache_of(c, 1, true);
    a.values = cache_of(c, 2, false);
    a.groups = c.size(0, 1) / a.keys.heads;
    a.tile_blocks = most(1, (a.keys.dtype == OPTPIPE_I8 ? INT8_TILE_SLOTS : TILE_SLOTS) / a.keys.slots);
    a.span_blocks = most(1, SPAN_SLOTS / a.keys.slots / a.tile_blocks) * a.tile_blocks;
    a.tile_slots = a.tile_blocks * a.keys.slots;
    a.window = c.i[0];
    a.chunk = c.i[1];
    a.scale = (float)c.f[0];
    a.softcap = (float)c.f[1];
    return a;
}

/* The rows of a unit. */
struct Unit {
    int64_t sequence, head, first, count; /* rows first … first + count of this sequence and KV head */
    int64_t begin, context;               /* the sequence's first token of this step; its length */
    int64_t tokens;                       /* its tokens of this step */

    OPTPIPE_INLINE int64_t token(int64_t r, int64_t groups) const { return (first + r) / groups; }
    OPTPIPE_INLINE int64_t position(int64_t r, int64_t groups) const { return context - tokens + token(r, groups); }
    /* The query head of a row, and its token in the step. */
    OPTPIPE_INLINE int64_t query_head(int64_t r, int64_t groups) const { return head * groups + (first + r) % groups; }
    OPTPIPE_INLINE int64_t row(int64_t r, int64_t groups) const { return begin + token(r, groups); }
};

static OPTPIPE_INLINE const float *query_of(const Attention &a, const Unit &u, int64_t r) {
    return a.c->at<float>(0) + u.row(r, a.groups) * a.c->stride(0, 0) + u.query_head(r, a.groups) * a.c->stride(0, 1);
}
/* The blocks of a unit's sequence. */
static OPTPIPE_INLINE const int32_t *table_of(const Attention &a, const Unit &u) {
    return a.c->at<int32_t>(5) + u.sequence * a.c->stride(5, 0);
}

/* Each unit in turn: body(unit, its number). */
template <class Body> static OPTPIPE_INLINE void each_unit(const Attention &a, Body &&body) {
    const Call &c = *a.c;
    const int32_t *starts = c.at<int32_t>(3), *lengths = c.at<int32_t>(4);
    int64_t number = 0;
    for (int64_t b = 0; b < c.size(4, 0); ++b) {
        const int64_t tokens = starts[b + 1] - starts[b], rows = tokens * a.groups;
        for (int64_t h = 0; h < a.keys.heads; ++h)
            for (int64_t first = 0; first < rows; first += ROWS)
                body(Unit{b, h, first, least(ROWS, rows - first), starts[b], lengths[b], tokens}, number++);
    }
}

/* The first position that a query at `position` sees. */
static OPTPIPE_INLINE int64_t oldest_seen(const Attention &a, int64_t position) {
    int64_t oldest = 0;
    if (a.window > 0) oldest = most(oldest, position - a.window + 1);
    if (a.chunk > 0) oldest = most(oldest, position / a.chunk * a.chunk);
    return oldest;
}

/* The spans that a unit's rows see anything of: first … last. */
static OPTPIPE_INLINE void spans_of(const Attention &a, const Unit &u, int64_t &first, int64_t &last) {
    const int64_t slots = a.span_blocks * a.keys.block;
    first = oldest_seen(a, u.position(0, a.groups)) / slots;
    last = u.position(u.count - 1, a.groups) / slots + 1;
}

/* The tiles of a span that a unit's rows see anything of: body(first block, blocks). */
template <class Body> static OPTPIPE_INLINE void each_tile(const Attention &a, const Unit &u, int64_t span, Body &&body) {
    const int64_t newest = u.position(u.count - 1, a.groups), oldest = oldest_seen(a, u.position(0, a.groups));
    const int64_t last = least((span + 1) * a.span_blocks, newest / a.keys.block + 1);
    for (int64_t block = span * a.span_blocks; block < last; block += a.tile_blocks) {
        const int64_t blocks = least(a.tile_blocks, last - block);
        if ((block + blocks) * a.keys.block > oldest) body(block, blocks);
    }
}

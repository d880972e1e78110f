/* What attention is made of: one sequence's rows of one KV head, and the tiles of keys that they see.
 *
 *     a unit of work = one sequence, one KV head, up to ROWS rows (token, query head of that KV head)
 *     keys:  tile of 128 slots ▸ blocks of the cache ▸ vectors of W slots
 *
 * Tiles begin at fixed places of the sequence, so that a row's result depends on nothing but its position.
 */

enum { ROWS = 6, TILE_SLOTS = 128 };

struct Attention {
    const Call *c;
    Cache keys, values;
    int64_t groups;               /* query heads a KV head */
    int64_t tile_blocks, tile_slots; /* of a tile, padding included */
    int64_t window, chunk;
    float scale, softcap;
};

static Attention attention_of(const Call &c) {
    Attention a;
    a.c = &c;
    a.keys = cache_of(c, 1, true);
    a.values = cache_of(c, 2, false);
    a.groups = c.size(0, 1) / a.keys.heads;
    a.tile_blocks = most(1, TILE_SLOTS / a.keys.slots);
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

/* The tiles that a unit's rows see anything of: begin … end. */
static OPTPIPE_INLINE Range tiles_of(const Attention &a, const Unit &u) {
    const int64_t slots = a.tile_blocks * a.keys.block;
    return {oldest_seen(a, u.position(0, a.groups)) / slots, u.position(u.count - 1, a.groups) / slots + 1};
}

/* The blocks of a tile that a unit's rows see anything of: begin … end. Blocks that a window has left behind may be
 * another sequence's by now. */
static OPTPIPE_INLINE Range blocks_of(const Attention &a, const Unit &u, int64_t tile) {
    const int64_t newest = u.position(u.count - 1, a.groups), oldest = oldest_seen(a, u.position(0, a.groups));
    return {most(tile * a.tile_blocks, oldest / a.keys.block),
            least((tile + 1) * a.tile_blocks, newest / a.keys.block + 1)};
}

/* What a thread does at a time: some tiles of a unit. */
struct Job {
    Unit unit;
    Range tiles;
    float *kept; /* where the tiles' parts go, or nullptr: they are joined to the thread's rows */
};

/* Blocks that are read after the tile at hand: their keys and values are asked for meanwhile. */
struct Ahead {
    const int32_t *table;
    int64_t count, head;
    int64_t each; /* for one block at hand */

    OPTPIPE_INLINE void fetch(const Cache &cache, int64_t b) const {
        for (int64_t k = b * each; k < least(count, (b + 1) * each); ++k) {
            const char *memory = cache.head(table[k], head);
            for (int64_t at = 0; at < cache.head_bytes; at += 64) prefetch(memory + at);
        }
    }
};

enum { FEW_TOKENS = 4 }; /* a sequence with more of them in a step finds its keys in a cache */

/* The tile after this one, whose blocks are `now`, of this job or the next; none in a prompt, which finds its keys in a
 * cache. */
static OPTPIPE_INLINE Ahead ahead_of(const Attention &a, const Job &job, const Job *next, int64_t tile, const Range &now) {
    const bool more = tile + 1 < job.tiles.end;
    if (job.unit.tokens > FEW_TOKENS || (!more && next == nullptr)) return {nullptr, 0, 0, 0};
    const Unit &u = more ? job.unit : next->unit;
    const Range then = blocks_of(a, u, more ? tile + 1 : next->tiles.begin);
    const int64_t count = then.end - then.begin, held = now.end - now.begin;
    return {table_of(a, u) + then.begin, count, u.head, (count + held - 1) / held};
}

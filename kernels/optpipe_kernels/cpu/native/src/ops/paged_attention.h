/* paged_attention(q, k_cache, v_cache, query_start, context_lens, block_tables, sinks?, alibi?, out) | window chunk
 *                                                                                                    | scale softcap
 *
 *     score[i, j] = softcap(scale · q[i]·k[j]) + alibi · (j − i)     where j ≤ i, j > i − window, j and i in one chunk
 *     out[i] = Σ_j softmax_j(score[i, ·] and the sink) · v[j]
 *
 * q, out [T, H, D]; caches as kv_cache.h draws them; query_start [B + 1], context_lens [B], block_tables [B, M].
 * window and chunk −1 for none, softcap 0 for none. The dialect body is optpipe/dialect/paged_attention.py.
 *
 *     a unit of work = one sequence, one KV head, up to ROWS rows (token, query head of that KV head)
 *     keys:  span of 512 slots ▸ tile of 64 slots ▸ vectors of W slots
 *
 * Within a span the softmax runs online over its tiles; spans are joined one after the other, from the sink on.
 * Spans and tiles begin at fixed places of the sequence, and what is hidden from a row changes none of its bits, so
 * a row's result is the same in a prompt, a chunk, a decode step and a verification, in any batch, on any number of
 * threads. When there are few units the spans of one are done by several threads, and joined the same way.
 *
 * Operations: 4·D a visible pair; bytes: keys and values once a unit.
 * Source: Dao et al. 2022 (tiling), Dao et al. 2023 (splitting along keys), Kwon et al. 2023 (blocks).
 */

enum { ROWS = 6, TILE_SLOTS = 64, SPAN_SLOTS = 512 };

/* How numbers of a cache become floats. */
struct CacheF32 {
    typedef float Number;
    static OPTPIPE_INLINE V numbers(const float *p) { return load(p); }
    static constexpr bool scaled = false;
};
struct CacheBf16 {
    typedef uint16_t Number;
    static OPTPIPE_INLINE V numbers(const uint16_t *p) { return load_bf16(p); }
    static constexpr bool scaled = false;
};
struct CacheI8 {
    typedef int8_t Number;
    static OPTPIPE_INLINE V numbers(const int8_t *p) { return load_i8(p); }
    static constexpr bool scaled = true;
};

struct Attention {
    const Call *c;
    Cache keys, values;
    int64_t groups;               /* query heads a KV head */
    int64_t tile_blocks, span_blocks;
    int64_t tile_slots;           /* slots of a tile, padding included */
    int64_t window, chunk;
    float scale, softcap;
};

/* The rows of a unit. */
struct Unit {
    int64_t sequence, head, first, count; /* rows first … first + count of this sequence and KV head */
    int64_t begin, context;               /* the sequence's first token of this step; its length */
    int64_t tokens;                       /* its tokens of this step */

    OPTPIPE_INLINE int64_t token(int64_t r, int64_t groups) const { return (first + r) / groups; }
    OPTPIPE_INLINE int64_t position(int64_t r, int64_t groups) const { return context - tokens + token(r, groups); }
};

/* One row's softmax so far. */
struct Running {
    float top, total;
};

static OPTPIPE_INLINE float scalar_exp(float x) {
    float lanes[W];
    store(lanes, vexp(set1(x)));
    return lanes[0];
}

/* The first position that a query at `position` sees. */
static OPTPIPE_INLINE int64_t oldest_seen(const Attention &a, int64_t position) {
    int64_t oldest = 0;
    if (a.window > 0) oldest = most(oldest, position - a.window + 1);
    if (a.chunk > 0) oldest = most(oldest, position / a.chunk * a.chunk);
    return oldest;
}

/* score[r][s] = q[r] · key s, over vectors of keys: N at a time for R rows. A lane's sum runs over d in order. */
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

/* out[r] += Σ_s p[r][s] · value s over the slots [0, count) of one block. A lane's sum runs over s in order. */
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

/* Scale, cap, slope and mask one row's scores of a tile whose first slot is at `at`; the largest that is seen. */
static OPTPIPE_INLINE float finish_scores(const Attention &a, const Unit &u, int64_t r, int64_t block, int64_t blocks,
                                          float slope, float *score) {
    const int64_t position = u.position(r, a.groups), oldest = oldest_seen(a, position);
    const V scale = set1(a.scale);
    V top = set1(-__builtin_inff());
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = (block + b) * a.keys.block;
        float *part = score + b * a.keys.slots;
        for (int64_t s = 0; s < a.keys.slots; s += W) {
            V it = load(part + s) * scale;
            if (a.softcap > 0.0f) it = set1(a.softcap) * vtanh(it / set1(a.softcap));
            float lanes[W];
            store(lanes, it);
            const bool whole = at + s >= oldest && at + s + W <= position + 1 && s + W <= a.keys.block;
            if (!whole || slope != 0.0f)
                for (int k = 0; k < W; ++k) {
                    const int64_t key = at + s + k;
                    lanes[k] += slope * (float)(key - position);
                    if (key < oldest || key > position || s + k >= a.keys.block) lanes[k] = -__builtin_inff();
                }
            it = load(lanes);
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
        const V it = vexp(load(score + s) - set1(peak));
        store(score + s, it);
        total = total + it;
    }
    row.total = row.total * fade + sum(total);
    row.top = peak;
    return fade;
}

/* One tile of keys for R rows: `blocks` blocks from `block` on. */
template <int R, class C>
static void attend_tile(const Attention &a, const Unit &u, const float *q, const float *slope, int64_t block, int64_t blocks,
                        float *score, Running *rows, float *out) {
    typedef typename C::Number Number;
    const int64_t slots = a.keys.slots, width = a.keys.width, columns = a.values.columns, stride = a.tile_slots;
    const int32_t *table = a.c->at<int32_t>(5) + u.sequence * a.c->stride(5, 0);
    const int64_t vectors = blocks * slots / W;
    constexpr int N = R <= 3 ? 4 : 2;
    const char *keys[TILE_SLOTS / 4 + 64];
    for (int64_t v = 0; v < vectors; v += N) {
        const int64_t held = least(N, vectors - v);
        for (int64_t n = 0; n < N; ++n) {
            const int64_t at = (v + least(n, held - 1)) * W; /* past the end: the last one again, not kept */
            keys[n] = a.keys.head(table[block + at / slots], u.head) + at % slots * (int64_t)sizeof(Number);
        }
        if (held == N) {
            dot_keys<R, N, C>(q, width, slots, keys, score + v * W, stride);
        } else {
            for (int64_t n = 0; n < held; ++n) dot_keys<R, 1, C>(q, width, slots, keys + n, score + (v + n) * W, stride);
        }
    }
    for (int r = 0; r < R; ++r) {
        float *mine = score + r * stride;
        if (C::scaled)
            for (int64_t b = 0; b < blocks; ++b) {
                const float *scales = a.keys.scales(a.keys.head(table[block + b], u.head));
                for (int64_t s = 0; s < slots; s += W) store(mine + b * slots + s, load(mine + b * slots + s) * load(scales + s));
            }
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
        char *head = a.values.head(table[block + b], u.head);
        float *weights = score + b * slots;
        if (C::scaled)
            for (int r = 0; r < R; ++r)
                for (int64_t s = 0; s < count; ++s) weights[r * stride + s] *= a.values.scales(head)[s];
        int64_t d = 0;
        for (; d + 4 * W <= columns; d += 4 * W)
            add_values<R, 4, C>(weights, stride, (const Number *)head + d, columns, count, out + d, columns);
        for (; d < columns; d += W)
            add_values<R, 1, C>(weights, stride, (const Number *)head + d, columns, count, out + d, columns);
    }
}

/* One span of keys for the rows of a unit, from nothing. `out` [R][columns] and `rows` are its result. */
template <int R, class C>
static void attend_span(const Attention &a, const Unit &u, const float *q, const float *slope, int64_t span, float *score,
                        Running *rows, float *out) {
    for (int r = 0; r < R; ++r) rows[r] = {-__builtin_inff(), 0.0f};
    for (int64_t d = 0; d < R * a.values.columns; d += W) store(out + d, zero());
    const int64_t newest = u.position(R - 1, a.groups), oldest = oldest_seen(a, u.position(0, a.groups));
    const int64_t last = least((span + 1) * a.span_blocks, newest / a.keys.block + 1);
    for (int64_t block = span * a.span_blocks; block < last; block += a.tile_blocks) {
        const int64_t blocks = least(a.tile_blocks, last - block);
        if ((block + blocks) * a.keys.block <= oldest) continue;
        attend_tile<R, C>(a, u, q, slope, block, blocks, score, rows, out);
    }
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

/* Everything of a unit that a thread needs. */
struct Room {
    float *q, *score, *part, *out;
};

static OPTPIPE_INLINE int64_t room_floats(const Attention &a) {
    return ROWS * (a.keys.width + 16 + a.tile_slots + 2 * a.values.columns);
}
static OPTPIPE_INLINE Room room_of(const Attention &a, float *memory) {
    float *score = memory + ROWS * (a.keys.width + 16), *part = score + ROWS * a.tile_slots;
    return {memory, score, part, part + ROWS * a.values.columns};
}

static OPTPIPE_INLINE void spans_of(const Attention &a, const Unit &u, int64_t &first, int64_t &last) {
    const int64_t slots = a.span_blocks * a.keys.block;
    first = oldest_seen(a, u.position(0, a.groups)) / slots;
    last = u.position(u.count - 1, a.groups) / slots + 1;
}

template <int R, class C>
static void run_span(const Attention &a, const Unit &u, const Room &room, int64_t span, Running *rows, float *out) {
    const Call &c = *a.c;
    float slope[R];
    for (int r = 0; r < R; ++r) {
        const int64_t t = u.begin + u.token(r, a.groups), h = u.head * a.groups + (u.first + r) % a.groups;
        memcpy(room.q + r * a.keys.width, c.at<float>(0) + t * c.stride(0, 0) + h * c.stride(0, 1), (size_t)a.keys.width * 4);
        slope[r] = c.has(7) ? c.at<float>(7)[h] : 0.0f;
    }
    attend_span<R, C>(a, u, room.q, slope, span, room.score, rows, out);
}

template <class C>
static void run_any(const Attention &a, const Unit &u, const Room &room, int64_t span, Running *rows, float *out) {
    switch (u.count) {
    case 1: return run_span<1, C>(a, u, room, span, rows, out);
    case 2: return run_span<2, C>(a, u, room, span, rows, out);
    case 3: return run_span<3, C>(a, u, room, span, rows, out);
    case 4: return run_span<4, C>(a, u, room, span, rows, out);
    case 5: return run_span<5, C>(a, u, room, span, rows, out);
    default: return run_span<6, C>(a, u, room, span, rows, out);
    }
}
static void run_unit_span(const Attention &a, const Unit &u, const Room &room, int64_t span, Running *rows, float *out) {
    switch (a.keys.dtype) {
    case OPTPIPE_F32: return run_any<CacheF32>(a, u, room, span, rows, out);
    case OPTPIPE_BF16: return run_any<CacheBf16>(a, u, room, span, rows, out);
    default: return run_any<CacheI8>(a, u, room, span, rows, out);
    }
}

static OPTPIPE_INLINE Running before_all(const Attention &a, const Unit &u, int64_t r) {
    if (!a.c->has(6)) return {-__builtin_inff(), 0.0f};
    return {a.c->at<float>(6)[u.head * a.groups + (u.first + r) % a.groups], 1.0f};
}

/* Divide by the total and write a unit's rows. */
static void write_rows(const Attention &a, const Unit &u, const Running *rows, const float *out) {
    const Call &c = *a.c;
    for (int64_t r = 0; r < u.count; ++r) {
        const int64_t t = u.begin + u.token(r, a.groups), h = u.head * a.groups + (u.first + r) % a.groups;
        float *to = c.at<float>(8) + t * c.stride(8, 0) + h * c.stride(8, 1);
        const V total = set1(rows[r].total);
        for (int64_t d = 0; d < a.values.width; d += W)
            store_n(to + d, load(out + r * a.values.columns + d) / total, a.values.width - d);
    }
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

static Attention attention_of(const Call &c) {
    Attention a;
    a.c = &c;
    a.keys = cache_of(c, 1, true);
    a.values = cache_of(c, 2, false);
    a.groups = c.size(0, 1) / a.keys.heads;
    a.tile_blocks = most(1, TILE_SLOTS / a.keys.slots);
    a.span_blocks = most(1, SPAN_SLOTS / a.keys.slots / a.tile_blocks) * a.tile_blocks;
    a.tile_slots = a.tile_blocks * a.keys.slots;
    a.window = c.i[0];
    a.chunk = c.i[1];
    a.scale = (float)c.f[0];
    a.softcap = (float)c.f[1];
    return a;
}

/* Many units: each thread does whole ones, span after span. */
static void attend_units(const Attention &a, int thread, int threads) {
    const Room room = room_of(a, (float *)a.c->scratch(thread, (size_t)room_floats(a) * 4));
    each_unit(a, [&](const Unit &u, int64_t number) OPTPIPE_BODY {
        if (number % threads != thread) return;
        Running rows[ROWS], more[ROWS];
        for (int64_t r = 0; r < u.count; ++r) rows[r] = before_all(a, u, r);
        for (int64_t d = 0; d < u.count * a.values.columns; d += W) store(room.out + d, zero());
        int64_t first, last;
        spans_of(a, u, first, last);
        for (int64_t span = first; span < last; ++span) {
            run_unit_span(a, u, room, span, more, room.part);
            for (int64_t r = 0; r < u.count; ++r)
                join(rows[r], room.out + r * a.values.columns, more[r], room.part + r * a.values.columns, a.values.columns);
        }
        write_rows(a, u, rows, room.out);
    });
}

/* Few units with many spans: threads share the spans, and then the units are joined in the same order. */
static void attend_spans(const Attention &a, int64_t spans, int thread, int threads) {
    const int64_t columns = a.values.columns, each = ROWS * (columns + 16);
    float *parts = (float *)a.c->shared((size_t)(spans * each) * 4);
    const Room room = room_of(a, (float *)a.c->scratch(thread, (size_t)room_floats(a) * 4));
    int64_t next = 0;
    each_unit(a, [&](const Unit &u, int64_t) OPTPIPE_BODY {
        int64_t first, last;
        spans_of(a, u, first, last);
        for (int64_t span = first; span < last; ++span, ++next)
            if (next % threads == thread)
                run_unit_span(a, u, room, span, (Running *)(parts + next * each), parts + next * each + ROWS * 16);
    });
    a.c->barrier();
    next = 0;
    each_unit(a, [&](const Unit &u, int64_t number) OPTPIPE_BODY {
        int64_t first, last;
        spans_of(a, u, first, last);
        const int64_t begin = next;
        next += last - first;
        if (number % threads != thread) return;
        Running rows[ROWS];
        for (int64_t r = 0; r < u.count; ++r) rows[r] = before_all(a, u, r);
        for (int64_t d = 0; d < u.count * columns; d += W) store(room.out + d, zero());
        for (int64_t at = begin; at < next; ++at)
            for (int64_t r = 0; r < u.count; ++r)
                join(rows[r], room.out + r * columns, ((Running *)(parts + at * each))[r],
                     parts + at * each + ROWS * 16 + r * columns, columns);
        write_rows(a, u, rows, room.out);
    });
}

static const char *check_paged_attention(const Call &c) {
    if (c.n != 9 || c.ints != 2 || c.floats != 2) return "takes 9 operands, window, chunk, scale and softcap";
    const char *wrong = check_heads(c, 0);
    if (wrong == nullptr) wrong = check_cache(c, 1);
    if (wrong == nullptr) wrong = check_cache(c, 2);
    if (wrong == nullptr) wrong = check_heads(c, 8);
    for (int k = 6; wrong == nullptr && k < 8; ++k) wrong = check_row(c, k, c.size(0, 1));
    if (wrong != nullptr) return wrong;
    if (c.size(1, 2) < 1 || c.size(0, 1) % c.size(1, 2) != 0 || c.size(2, 2) != c.size(1, 2))
        return "the query heads must be a multiple of the KV heads";
    if (c.size(0, 2) != c.size(1, 3) || c.size(8, 2) != c.size(2, 3) || c.size(8, 0) != c.size(0, 0) || c.size(8, 1) != c.size(0, 1))
        return "q, the caches and out disagree about the width of a head";
    if (c.t[1].dtype != c.t[2].dtype || c.size(1, 1) != c.size(2, 1)) return "the caches differ in type or block";
    for (int k = 3; k < 6; ++k)
        if (c.t[k].dtype != OPTPIPE_I32) return sentence("operand %d must be i32", k);
    if (c.t[5].rank != 2 || c.size(5, 0) != c.size(4, 0)) return "block_tables must be [B, M]";
    return nullptr;
}

/* Rows of no sequence are zero. */
static void clear_rows(const Call &c, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
        for (int64_t h = 0; h < c.size(8, 1); ++h)
            memset(c.at<float>(8) + t * c.stride(8, 0) + h * c.stride(8, 1), 0, (size_t)c.size(8, 2) * 4);
}

static void paged_attention(const Call &c, int thread, int threads) {
    const Attention a = attention_of(c);
    const int64_t sequences = c.size(4, 0);
    if (thread == 0) {
        const int32_t *starts = c.at<int32_t>(3);
        clear_rows(c, 0, sequences > 0 ? starts[0] : c.size(0, 0));
        if (sequences > 0) clear_rows(c, starts[sequences], c.size(0, 0));
    }
    int64_t units = 0, spans = 0;
    each_unit(a, [&](const Unit &u, int64_t) OPTPIPE_BODY {
        int64_t first, last;
        spans_of(a, u, first, last);
        ++units;
        spans += last - first;
    });
    if (threads > 1 && units < 4 * threads && spans > units)
        attend_spans(a, spans, thread, threads);
    else
        attend_units(a, thread, threads);
}

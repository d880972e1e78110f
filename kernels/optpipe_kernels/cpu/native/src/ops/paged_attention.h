/* paged_attention(q, k_cache, v_cache, query_start, context_lens, block_tables, sinks?, alibi?, out) | window chunk
 *                                                                                                    | scale softcap
 *
 *     score[i, j] = softcap(scale · q[i]·k[j]) + alibi · (j − i)     where j ≤ i, j > i − window, j and i in one chunk
 *     out[i] = Σ_j softmax_j(score[i, ·] and the sink) · v[j]
 *
 * q, out [T, H, D]; caches as kv_cache.h draws them; query_start [B + 1], context_lens [B], block_tables [B, M].
 * window and chunk −1 for none, softcap 0 for none. The dialect body is optpipe/dialect/paged_attention.py.
 *
 * The softmax runs over a tile of keys (attention_units.h) from nothing, and tiles are joined one after the other, from
 * the sink on. What is hidden from a row changes none of its bits, so its result is the same in a prompt, a chunk, a
 * decode step and a verification, in any batch, on any number of threads. When there are few units the tiles of one
 * are done by several threads, and joined the same way.
 *
 * Operations: 4·D a visible pair; bytes: keys and values once a unit.
 * Source: Kwon et al. 2023 (blocks); attention_softmax.h names the others.
 */

/* What a thread needs for a unit: the rows so far, the tile at hand, and a form's scratch. */
struct Room {
    Part rows, tile;
    char *scratch;
};

static OPTPIPE_INLINE int64_t form_bytes(const Attention &a) {
    switch (a.keys.dtype) {
    case OPTPIPE_F32: return FloatAttention::scratch_bytes(a);
    case OPTPIPE_BF16: return PairAttention::scratch_bytes(a);
    default: return Int8Attention::scratch_bytes(a);
    }
}
static OPTPIPE_INLINE Room room_of(const Attention &a, int thread) {
    const int64_t floats = part_floats(a);
    float *memory = (float *)a.c->scratch(thread, (size_t)(8 * floats + form_bytes(a)));
    return {part_at(memory), part_at(memory + floats), (char *)(memory + 2 * floats)};
}

/* Rows before their first tile. */
static OPTPIPE_INLINE void begin_rows(const Attention &a, const Unit &u, const Part &rows) {
    for (int64_t r = 0; r < u.count; ++r)
        rows.rows[r] = a.c->has(6) ? Running{a.c->at<float>(6)[u.query_head(r, a.groups)], 1.0f} : Running{-__builtin_inff(), 0.0f};
    for (int64_t d = 0; d < u.count * a.values.columns; d += W) store(rows.out + d, zero());
}

template <int R, class Form> static void attend_tiles(const Attention &a, const Room &room, const Job &job, const Job *next) {
    float slope[R];
    for (int r = 0; r < R; ++r) slope[r] = a.c->has(7) ? a.c->at<float>(7)[job.unit.query_head(r, a.groups)] : 0.0f;
    Form form;
    form.template begin<R>(a, job.unit, room.scratch);
    for (int64_t tile = job.tiles.begin; tile < job.tiles.end; ++tile) {
        const Part part = job.kept != nullptr ? part_at(job.kept + (tile - job.tiles.begin) * part_floats(a)) : room.tile;
        const Range blocks = blocks_of(a, job.unit, tile);
        form.template tile<R>(a, job.unit, slope, blocks, ahead_of(a, job, next, tile, blocks), part);
        if (job.kept == nullptr) join(room.rows, part, R, a.values.columns);
    }
}

template <class Form> static void attend_rows(const Attention &a, const Room &room, const Job &job, const Job *next) {
    switch (job.unit.count) {
    case 1: return attend_tiles<1, Form>(a, room, job, next);
    case 2: return attend_tiles<2, Form>(a, room, job, next);
    case 3: return attend_tiles<3, Form>(a, room, job, next);
    case 4: return attend_tiles<4, Form>(a, room, job, next);
    case 5: return attend_tiles<5, Form>(a, room, job, next);
    default: return attend_tiles<6, Form>(a, room, job, next);
    }
}

/* A row over its total. */
static OPTPIPE_INLINE void write_row(const Attention &a, const Unit &u, int64_t r, const Running &row, const float *out) {
    const Call &c = *a.c;
    float *to = c.at<float>(8) + u.row(r, a.groups) * c.stride(8, 0) + u.query_head(r, a.groups) * c.stride(8, 1);
    const V part = set1(1.0f / row.total);
    for (int64_t d = 0; d < a.values.width; d += W) store_n(to + d, load(out + d) * part, a.values.width - d);
}
static OPTPIPE_INLINE void write_rows(const Attention &a, const Unit &u, const Part &rows) {
    for (int64_t r = 0; r < u.count; ++r) write_row(a, u, r, rows.rows[r], rows.out + r * a.values.columns);
}

/* A job, and what comes after it, if anything: its keys may be asked for meanwhile. */
static void attend(const Attention &a, const Room &room, const Job &job, const Job *next) {
    if (job.kept == nullptr) begin_rows(a, job.unit, room.rows);
    switch (a.keys.dtype) {
    case OPTPIPE_F32: attend_rows<FloatAttention>(a, room, job, next); break;
    case OPTPIPE_BF16: attend_rows<PairAttention>(a, room, job, next); break;
    default: attend_rows<Int8Attention>(a, room, job, next);
    }
    if (job.kept == nullptr) write_rows(a, job.unit, room.rows);
}

/* The jobs of a thread: each is done when the one after it is known. */
struct Queue {
    const Attention &a;
    const Room room;
    Job waiting{};
    bool any = false;

    OPTPIPE_INLINE void put(const Job &job) {
        if (any) attend(a, room, waiting, &job);
        waiting = job;
        any = true;
    }
    OPTPIPE_INLINE void end() const {
        if (any) attend(a, room, waiting, nullptr);
    }
};

/* How the threads share the work: whole units, or, when there are few and some are long, neighbours among all tiles. */
struct Division {
    bool by_tiles;
    int64_t tiles; /* of all units */
};

static OPTPIPE_INLINE Division division_of(const Attention &a, int threads) {
    int64_t units = 0, tiles = 0;
    each_unit(a, [&](const Unit &u, int64_t) OPTPIPE_BODY {
        const Range all = tiles_of(a, u);
        ++units;
        tiles += all.end - all.begin;
    });
    return {threads > 1 && units < 4 * threads && tiles > units, tiles};
}

/* What a thread has to do: body(unit, its tiles, the number of the first among all units' tiles). */
template <class Body>
static OPTPIPE_INLINE void each_share(const Attention &a, const Division &division, int thread, int threads, Body &&body) {
    const Range mine = split(division.tiles, 1, thread, threads);
    int64_t before = 0; /* tiles of the units that came before */
    each_unit(a, [&](const Unit &u, int64_t number) OPTPIPE_BODY {
        const Range all = tiles_of(a, u);
        const int64_t shift = all.begin - before;
        const Range part = {most(all.begin, mine.begin + shift), least(all.end, mine.end + shift)};
        before += all.end - all.begin;
        if (division.by_tiles && part.begin < part.end) body(u, part, part.begin - shift);
        if (!division.by_tiles && number % threads == thread) body(u, all, all.begin - shift);
    });
}

/* The parts of each unit, joined in the order of its tiles, as a thread alone would. */
static void join_parts(const Attention &a, const Part &rows, float *parts, int thread, int threads) {
    int64_t before = 0;
    each_unit(a, [&](const Unit &u, int64_t number) OPTPIPE_BODY {
        const Range all = tiles_of(a, u);
        if (number % threads == thread) {
            begin_rows(a, u, rows);
            for (int64_t at = before; at < before + all.end - all.begin; ++at)
                join(rows, part_at(parts + at * part_floats(a)), u.count, a.values.columns);
            write_rows(a, u, rows);
        }
        before += all.end - all.begin;
    });
}

static void attend_all(const Attention &a, int thread, int threads) {
    const Division division = division_of(a, threads);
    float *parts = division.by_tiles ? (float *)a.c->shared((size_t)(division.tiles * part_floats(a)) * 4) : nullptr;
    Queue queue{a, room_of(a, thread)};
    each_share(a, division, thread, threads, [&](const Unit &u, const Range &tiles, int64_t first) OPTPIPE_BODY {
        queue.put({u, tiles, division.by_tiles ? parts + first * part_floats(a) : nullptr});
    });
    queue.end();
    if (!division.by_tiles) return;
    a.c->barrier();
    join_parts(a, queue.room.rows, parts, thread, threads);
}

/* The keys and values of sequences that decode. A prompt's own are not written yet; a few rows leave products no time
 * to ask for anything, as they read weights all the while. */
static void reads_of_attention(const Call &c, int thread, int threads, Upcoming &upcoming) {
    if (c.size(0, 0) <= QUANT_ROWS) return;
    const Attention a = attention_of(c);
    each_share(a, division_of(a, threads), thread, threads, [&](const Unit &u, const Range &tiles, int64_t) OPTPIPE_BODY {
        for (int64_t tile = tiles.begin; u.tokens <= FEW_TOKENS && tile < tiles.end; ++tile) {
            const Range blocks = blocks_of(a, u, tile);
            for (int64_t b = blocks.begin; b < blocks.end; ++b) {
                upcoming.add(a.keys.head(table_of(a, u)[b], u.head), a.keys.head_bytes);
                upcoming.add(a.values.head(table_of(a, u)[b], u.head), a.values.head_bytes);
            }
        }
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
    attend_all(a, thread, threads);
}

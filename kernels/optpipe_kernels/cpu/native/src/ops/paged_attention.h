/* paged_attention(q, k_cache, v_cache, query_start, context_lens, block_tables, sinks?, alibi?, out) | window chunk
 *                                                                                                    | scale softcap
 *
 *     score[i, j] = softcap(scale · q[i]·k[j]) + alibi · (j − i)     where j ≤ i, j > i − window, j and i in one chunk
 *     out[i] = Σ_j softmax_j(score[i, ·] and the sink) · v[j]
 *
 * q, out [T, H, D]; caches as kv_cache.h draws them; query_start [B + 1], context_lens [B], block_tables [B, M].
 * window and chunk −1 for none, softcap 0 for none. The dialect body is optpipe/dialect/paged_attention.py.
 *
 * Within a span (attention_units.h) the softmax runs online over its tiles; spans are joined one after the other, from
 * the sink on. What is hidden from a row changes none of its bits, so its result is the same in a prompt, a chunk, a
 * decode step and a verification, in any batch, on any number of threads. When there are few units the spans of one
 * are done by several threads, and joined the same way.
 *
 * Operations: 4·D a visible pair; bytes: keys and values once a unit.
 * Source: Kwon et al. 2023 (blocks); attention_softmax.h names the others.
 */

/* What a thread needs for a unit: a form's scratch, the span at hand and the rows so far [ROWS][columns]. */
struct Room {
    float *part, *out;
    char *scratch;
};

static OPTPIPE_INLINE int64_t form_bytes(const Attention &a) {
    return a.keys.dtype == OPTPIPE_I8 ? Int8Attention::scratch_bytes(a) : FloatAttention<CacheF32>::scratch_bytes(a);
}
static OPTPIPE_INLINE Room room_of(const Attention &a, int thread) {
    const int64_t floats = ROWS * a.values.columns;
    float *memory = (float *)a.c->scratch(thread, (size_t)(8 * floats + form_bytes(a)));
    return {memory, memory + floats, (char *)(memory + 2 * floats)};
}

/* One span of keys for the rows of a unit, from nothing. `out` [R][columns] and `rows` are its result. */
template <int R, class Form>
static void attend_span(const Attention &a, const Unit &u, char *scratch, int64_t span, Running *rows, float *out) {
    float slope[R];
    for (int r = 0; r < R; ++r) {
        slope[r] = a.c->has(7) ? a.c->at<float>(7)[u.query_head(r, a.groups)] : 0.0f;
        rows[r] = {-__builtin_inff(), 0.0f};
    }
    for (int64_t d = 0; d < R * a.values.columns; d += W) store(out + d, zero());
    Form form;
    form.template begin<R>(a, u, scratch);
    each_tile(a, u, span, [&](int64_t block, int64_t blocks)
                  OPTPIPE_BODY { form.template tile<R>(a, u, slope, block, blocks, rows, out); });
}

template <class Form>
static void attend_rows(const Attention &a, const Unit &u, char *scratch, int64_t span, Running *rows, float *out) {
    switch (u.count) {
    case 1: return attend_span<1, Form>(a, u, scratch, span, rows, out);
    case 2: return attend_span<2, Form>(a, u, scratch, span, rows, out);
    case 3: return attend_span<3, Form>(a, u, scratch, span, rows, out);
    case 4: return attend_span<4, Form>(a, u, scratch, span, rows, out);
    case 5: return attend_span<5, Form>(a, u, scratch, span, rows, out);
    default: return attend_span<6, Form>(a, u, scratch, span, rows, out);
    }
}
static void attend(const Attention &a, const Unit &u, char *scratch, int64_t span, Running *rows, float *out) {
    switch (a.keys.dtype) {
    case OPTPIPE_F32: return attend_rows<FloatAttention<CacheF32>>(a, u, scratch, span, rows, out);
    case OPTPIPE_BF16: return attend_rows<FloatAttention<CacheBf16>>(a, u, scratch, span, rows, out);
    default: return attend_rows<Int8Attention>(a, u, scratch, span, rows, out);
    }
}

/* A row before its first span. */
static OPTPIPE_INLINE Running before_all(const Attention &a, const Unit &u, int64_t r, float *out) {
    for (int64_t d = 0; d < a.values.columns; d += W) store(out + d, zero());
    if (!a.c->has(6)) return {-__builtin_inff(), 0.0f};
    return {a.c->at<float>(6)[u.query_head(r, a.groups)], 1.0f};
}

/* Divide a row by its total, and write it. */
static OPTPIPE_INLINE void write_row(const Attention &a, const Unit &u, int64_t r, const Running &row, const float *out) {
    const Call &c = *a.c;
    float *to = c.at<float>(8) + u.row(r, a.groups) * c.stride(8, 0) + u.query_head(r, a.groups) * c.stride(8, 1);
    for (int64_t d = 0; d < a.values.width; d += W) store_n(to + d, load(out + d) / set1(row.total), a.values.width - d);
}

/* Many units: each thread does whole ones, span after span. */
static void attend_units(const Attention &a, int thread, int threads) {
    const Room room = room_of(a, thread);
    const int64_t columns = a.values.columns;
    each_unit(a, [&](const Unit &u, int64_t number) OPTPIPE_BODY {
        if (number % threads != thread) return;
        Running rows[ROWS], more[ROWS];
        for (int64_t r = 0; r < u.count; ++r) rows[r] = before_all(a, u, r, room.out + r * columns);
        int64_t first, last;
        spans_of(a, u, first, last);
        for (int64_t span = first; span < last; ++span) {
            attend(a, u, room.scratch, span, more, room.part);
            for (int64_t r = 0; r < u.count; ++r) join(rows[r], room.out + r * columns, more[r], room.part + r * columns, columns);
        }
        for (int64_t r = 0; r < u.count; ++r) write_row(a, u, r, rows[r], room.out + r * columns);
    });
}

/* Few units with many spans: each thread takes neighbours among the spans, and then the rows are joined in the same
 * order as above. */
static void attend_spans(const Attention &a, int64_t spans, int thread, int threads) {
    const int64_t columns = a.values.columns, each = ROWS * (columns + 16);
    float *parts = (float *)a.c->shared((size_t)(spans * each) * 4);
    const Room room = room_of(a, thread);
    const Range mine = split(spans, 1, thread, threads);
    int64_t next = 0;
    each_unit(a, [&](const Unit &u, int64_t) OPTPIPE_BODY {
        int64_t first, last;
        spans_of(a, u, first, last);
        for (int64_t span = first; span < last; ++span, ++next)
            if (next >= mine.begin && next < mine.end)
                attend(a, u, room.scratch, span, (Running *)(parts + next * each), parts + next * each + ROWS * 16);
    });
    a.c->barrier();
    next = 0;
    int64_t row = 0;
    each_unit(a, [&](const Unit &u, int64_t) OPTPIPE_BODY {
        int64_t first, last;
        spans_of(a, u, first, last);
        for (int64_t r = 0; r < u.count; ++r, ++row) {
            if (row % threads != thread) continue;
            Running so_far = before_all(a, u, r, room.out);
            for (int64_t at = next; at < next + last - first; ++at)
                join(so_far, room.out, ((Running *)(parts + at * each))[r], parts + at * each + ROWS * 16 + r * columns, columns);
            write_row(a, u, r, so_far, room.out);
        }
        next += last - first;
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

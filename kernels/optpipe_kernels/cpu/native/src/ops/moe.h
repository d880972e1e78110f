/* moe(x, experts, weights, gate_up, down, gate_up_bias?, down_bias?, out)
 *     | E K I N bits group minimum kind gated interleaved [planes] | limit alpha up_offset
 *
 *     out[t] = Σ_s weights[t, s] · down[e] · act(gate_up[e] · x[t])        e = experts[t, s], outside [0, E) nothing
 *     act(g, u) = f(min(g, limit)) · (clamp(u, ±limit) + up_offset),       f of `kind`, or g · sigmoid(alpha · g)
 *
 * x [T, K] f32; experts [T, S]; weights [T, S] f32; gate_up, down E packed weights [2·I, K], [N, I] end to end (I rows
 * where not gated); biases [E, 2·I], [E, N]; out [T, N]. Gates are the first half of a row, or every second number when
 * interleaved. Quantized weights round x and the activations a token and group of 32, as quantize does,
 * in one plane or two (quantize.h).
 *
 * (token, slot) pairs are sorted by expert, so that a weight is read once for all its tokens of a chunk; each pair
 * has a row of its own until the sum over s in order, so tokens do not change each other. Bytes: the weights chosen.
 */

enum { MOE_TOKENS = 256 };

struct Experts {
    const Call *c;
    int64_t experts, inputs, inner, outputs, slots, hidden; /* E K I N S, rows of gate_up */
    bool quantized, gated, interleaved;
    int64_t kind, planes;
    float limit, alpha, offset;
    int64_t x_bytes, act_bytes; /* of a row as the products read it */

    OPTPIPE_INLINE uint8_t *matrix(int k, int64_t e) const {
        uint8_t *first = c->at<uint8_t>(k);
        return first + e * packed(first).head->bytes;
    }
};

/* What all threads share while a chunk of tokens goes through. */
struct Routed {
    int32_t *pair, *place, *start; /* by place: its pair; by pair: its place or −1; by expert: its first place */
    uint8_t *x, *act;
    float *hidden, *out;
};

static Experts experts_of(const Call &c) {
    Experts m;
    m.c = &c;
    m.experts = c.i[0];
    m.inputs = c.i[1];
    m.inner = c.i[2];
    m.outputs = c.i[3];
    m.slots = c.size(1, 1);
    m.quantized = c.i[5] != 0;
    m.kind = c.i[7];
    m.gated = c.i[8] != 0;
    m.interleaved = c.i[9] != 0;
    m.planes = c.ints > 10 ? c.i[10] : 1;
    m.hidden = m.gated ? 2 * m.inner : m.inner;
    m.limit = (float)c.f[0];
    m.alpha = (float)c.f[1];
    m.offset = (float)c.f[2];
    m.x_bytes = m.quantized ? m.planes * quantized_bytes(m.inputs) : round_up(4 * m.inputs, 64);
    m.act_bytes = m.quantized ? m.planes * quantized_bytes(m.inner) : round_up(4 * m.inner, 64);
    return m;
}

static Routed room_for(const Experts &m, int64_t pairs) {
    const int64_t index = round_up(4 * (2 * pairs + m.experts + 1), 64);
    const int64_t floats = round_up(4 * pairs * m.hidden, 64), outs = 4 * pairs * m.outputs;
    uint8_t *memory = (uint8_t *)m.c->shared((size_t)(index + pairs * (m.x_bytes + m.act_bytes) + floats + outs));
    Routed r;
    r.pair = (int32_t *)memory;
    r.place = r.pair + pairs;
    r.start = r.place + pairs;
    r.x = memory + index;
    r.act = r.x + pairs * m.x_bytes;
    r.hidden = (float *)(r.act + pairs * m.act_bytes);
    r.out = (float *)((uint8_t *)r.hidden + floats);
    return r;
}

static OPTPIPE_INLINE int64_t expert_at(const Experts &m, int64_t pair, int64_t first) {
    const optpipe_tensor &ids = m.c->t[1];
    return int_at((const char *)ids.data, ids.dtype, (first + pair / m.slots) * ids.stride[0] + pair % m.slots * ids.stride[1]);
}

/* Places of pairs, expert by expert, in the order of the tokens. */
static void sort_pairs(const Experts &m, const Routed &r, int64_t first, int64_t pairs) {
    for (int64_t e = 0; e <= m.experts; ++e) r.start[e] = 0;
    for (int64_t p = 0; p < pairs; ++p) {
        const int64_t e = expert_at(m, p, first);
        if (e >= 0 && e < m.experts) ++r.start[e + 1];
    }
    for (int64_t e = 0; e < m.experts; ++e) r.start[e + 1] += r.start[e];
    for (int64_t p = 0; p < pairs; ++p) {
        const int64_t e = expert_at(m, p, first);
        r.place[p] = e >= 0 && e < m.experts ? r.start[e]++ : -1;
        if (r.place[p] >= 0) r.pair[r.place[p]] = (int32_t)p;
    }
    for (int64_t e = m.experts; e > 0; --e) r.start[e] = r.start[e - 1];
    r.start[0] = 0;
}

/* One of the two products for all experts: rows of `from` times the expert's weight, plus its bias. */
static void multiply_experts(const Experts &m, const Routed &r, int weight, int bias, const uint8_t *from, int64_t row_bytes,
                             float *to, int64_t width, int thread, int threads) {
    for (int64_t e = 0; e < m.experts; ++e) {
        const int64_t first = r.start[e], rows = r.start[e + 1] - first;
        if (rows == 0) continue;
        const float *added = m.c->has(bias) ? m.c->at<float>(bias) + e * m.c->stride(bias, 0) : nullptr;
        const Ending end = {added, nullptr, to + first * width, 0, width, width, NONE};
        const uint8_t *begin = from + first * row_bytes;
        const auto finish = [&](int64_t row, int64_t tile, int64_t tiles, const float *sums, int64_t apart) {
            for (int64_t s = 0; s < tiles; ++s) end(row, tile + s, sums + s * apart);
        };
        if (m.quantized) {
            const QuantSource source = quant_source(m.matrix(weight, e), begin, row_bytes, m.planes, nullptr);
            sweep(source, split(source.w.count(), 1, thread, threads), {0, rows},
                  [&](int64_t row, int64_t tile, int64_t tiles, const float *sums) {
                      finish(row, tile, tiles, sums, QuantSource::ROWS * TILE);
                  });
        } else {
            const FloatSource source = float_source(m.matrix(weight, e), (const float *)begin, row_bytes / 4);
            sweep(source, split(source.w.count(), 1, thread, threads), {0, rows},
                  [&](int64_t row, int64_t tile, int64_t tiles, const float *sums) {
                      finish(row, tile, tiles, sums, FloatSource::ROWS * TILE);
                  });
        }
    }
}

/* act of one pair's hidden row [hidden] to y [I]. */
static OPTPIPE_INLINE void gate_row(const Experts &m, const float *h, float *y) {
    float gates[W], ups[W];
    for (int64_t i = 0; i < m.inner; i += W) {
        const int64_t held = least(W, m.inner - i);
        for (int64_t k = 0; k < held; ++k) {
            gates[k] = h[m.gated && m.interleaved ? 2 * (i + k) : i + k];
            ups[k] = !m.gated ? 1.0f : h[m.interleaved ? 2 * (i + k) + 1 : m.inner + i + k];
        }
        V g = load_n(gates, held), u = load_n(ups, held);
        if (m.gated) {
            g = choose(less(set1(m.limit), g), set1(m.limit), g);
            u = choose(less(set1(m.limit), u), set1(m.limit), u);
            u = choose(less(u, set1(-m.limit)), set1(-m.limit), u) + set1(m.offset);
        }
        const V f = m.alpha != 0.0f ? g * sigmoid(set1(m.alpha) * g) : activate(m.kind, g);
        store_n(y + i, m.gated ? f * u : f, held);
    }
}

static void place_row(const Experts &m, const float *x, int64_t n, uint8_t *to) {
    if (m.quantized)
        quantize_row(x, n, to, m.planes);
    else
        memcpy(to, x, (size_t)n * 4);
}

/* out[t] = Σ_s weight · its pair's row. */
static void sum_slots(const Experts &m, const Routed &r, int64_t t, int64_t first) {
    const Call &c = *m.c;
    float *to = c.at<float>(7) + t * c.stride(7, 0);
    for (int64_t n = 0; n < m.outputs; n += W) {
        V total = zero();
        for (int64_t s = 0; s < m.slots; ++s) {
            const int64_t place = r.place[(t - first) * m.slots + s];
            if (place < 0) continue;
            const float weight = c.at<float>(2)[t * c.stride(2, 0) + s * c.stride(2, 1)];
            total = total + load_n(r.out + place * m.outputs + n, m.outputs - n) * set1(weight);
        }
        store_n(to + n, total, m.outputs - n);
    }
}

static void moe(const Call &c, int thread, int threads) {
    const Experts m = experts_of(c);
    const int64_t tokens = c.size(0, 0);
    float *row = (float *)c.scratch(thread, (size_t)(m.inner + W) * 4);
    const Routed r = room_for(m, least(tokens, MOE_TOKENS) * m.slots);
    for (int64_t first = 0; first < tokens; first += MOE_TOKENS) {
        const int64_t last = least(tokens, first + MOE_TOKENS), pairs = (last - first) * m.slots;
        if (thread == 0) sort_pairs(m, r, first, pairs);
        c.barrier();
        const Range places = split(r.start[m.experts], 1, thread, threads);
        for (int64_t p = places.begin; p < places.end; ++p)
            place_row(m, c.at<float>(0) + (first + r.pair[p] / m.slots) * c.stride(0, 0), m.inputs, r.x + p * m.x_bytes);
        c.barrier();
        multiply_experts(m, r, 3, 5, r.x, m.x_bytes, r.hidden, m.hidden, thread, threads);
        c.barrier();
        for (int64_t p = places.begin; p < places.end; ++p) {
            gate_row(m, r.hidden + p * m.hidden, row);
            place_row(m, row, m.inner, r.act + p * m.act_bytes);
        }
        c.barrier();
        multiply_experts(m, r, 4, 6, r.act, m.act_bytes, r.out, m.outputs, thread, threads);
        c.barrier();
        const Range mine = split(last - first, 1, thread, threads);
        for (int64_t t = first + mine.begin; t < first + mine.end; ++t) sum_slots(m, r, t, first);
        c.barrier();
    }
}

static const char *check_stack(const Call &c, int k, int64_t experts, int64_t rows, int64_t inputs, bool quantized) {
    const char *wrong = check_packed(c, k, rows, inputs, quantized);
    if (wrong != nullptr) return wrong;
    if (c.t[k].size[0] < experts * packed(c.t[k].data).head->bytes) return sentence("operand %d has fewer experts", k);
    return nullptr;
}

static const char *check_moe(const Call &c) {
    if (c.n != 8 || c.ints < 10 || c.ints > 11 || c.floats != 3) return "takes 8 operands, 10 or 11 whole numbers and 3 numbers";
    if (c.ints > 10 && c.i[10] != 1 && c.i[10] != 2) return "rows have one plane or two";
    const Experts m = experts_of(c);
    const int64_t tokens = c.size(0, 0);
    const char *wrong = check_rows(c, 0, tokens, m.inputs);
    if (wrong == nullptr) wrong = check_rows(c, 7, tokens, m.outputs);
    if (wrong == nullptr) wrong = check_stack(c, 3, m.experts, m.hidden, m.inputs, m.quantized);
    if (wrong == nullptr) wrong = check_stack(c, 4, m.experts, m.outputs, m.inner, m.quantized);
    if (wrong == nullptr) wrong = check_rows(c, 5, m.experts, m.hidden);
    if (wrong == nullptr) wrong = check_rows(c, 6, m.experts, m.outputs);
    if (wrong != nullptr) return wrong;
    if (c.t[1].rank != 2 || is_float(c.t[1].dtype) || c.size(1, 0) != tokens) return "experts must be whole numbers [T, S]";
    if (c.t[2].rank != 2 || c.t[2].dtype != OPTPIPE_F32 || c.size(2, 0) != tokens || c.size(2, 1) != m.slots)
        return "weights must be f32 [T, S]";
    return nullptr;
}

/* quant_linear(q, w, bias?, residual?, out) | N K bits group has_minimum [activation]
 *
 *     out[t, n] = f(Σ_b s[t, b] · S[n, g(b)] · Σ_k c[t, k]·(u[n, k] − 2^(bits−1)) + bias[n]) + residual[t, n]
 *     with a minimum: Σ_b (s[t, b] · S[n, g] · Σ_k c·u + M[n, g] · s[t, b]·Σ_k c)
 *     rows of two planes: s/254 for s, 254·c + d for c
 *
 * b blocks of 32 inputs, c and s the quantized rows (quantize.h), u S M the packed weight (packed.h), f an activation
 * (vec/math.h). out [T, N] f32, may be residual itself. Equals the dialect's quant_linear on the rounded rows; the inner
 * sums are exact in int32 at every level, the outer ones fused multiply-adds in the order of b.
 *
 * Bytes: N·K·bits/8 + scales once per ROWS rows in the second-level cache, once in all from memory up to `chunk` rows.
 * Source of the layout and of unsigned codes without a sign trick: VPDPBUSD multiplies unsigned by signed bytes.
 */
/* A pass takes QUANT_ROWS rows, QUANT_TILES tiles, and QUANT_PARTS of the TILE / W vectors of a tile's outputs; its
 * sums of int32 and of float, codes and a quad stay in registers. */
#if defined(__AVX512F__)
enum { QUANT_ROWS = 6, QUANT_TILES = 2, QUANT_PARTS = 1 }; /* 12 and 12 of 32 registers */
#elif defined(__AVX2__)
enum { QUANT_ROWS = 3, QUANT_TILES = 1, QUANT_PARTS = 2 }; /* 6 and 6 of 16 */
#else
enum { QUANT_ROWS = 2, QUANT_TILES = 1, QUANT_PARTS = 1 };
#endif

/* Rows of one plane or two (quantize.h), the second `plane` bytes after the first. */
struct QuantRows {
    const uint8_t *q;
    int64_t stride, plane;
};

/* R rows against the part of a block that begins at p: one quad a row, the same for all outputs. */
template <int BITS, int R, int S>
static OPTPIPE_INLINE void dot_rows(typename Dot<BITS>::Sum (&dots)[R][S], const U *codes, const uint8_t *x, int64_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        int32_t quad;
        memcpy(&quad, x + r * stride, 4);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) dots[r][s] = Dot<BITS>::dot(dots[r][s], codes[s], quad);
    }
}

/* Block b of 32 inputs: dots[p][r][s] becomes its exact sum in P planes. `codes` begins at the block and the lane. */
template <int BITS, int P, int R, int S>
static OPTPIPE_INLINE void dot_block(typename Dot<BITS>::Sum (&dots)[P][R][S], const uint8_t *codes, int64_t tile_bytes,
                                     const uint8_t *x, const QuantRows &rows) {
    U held[S], part[S];
#pragma GCC unroll 8
    for (int j = 0; j < BITS; ++j) { /* a vector of nibbles is two quads, a vector of bytes one */
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s)
            held[s] = load_codes(codes + s / QUANT_PARTS * tile_bytes + s % QUANT_PARTS * W * 4 + 64 * j);
        if (BITS == 8) {
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) dot_rows<BITS, R, S>(dots[p], held, x + p * rows.plane + 4 * j, rows.stride);
            continue;
        }
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) part[s] = low_nibbles(held[s]);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) dot_rows<BITS, R, S>(dots[p], part, x + p * rows.plane + 8 * j, rows.stride);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) part[s] = high_nibbles(held[s]);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) dot_rows<BITS, R, S>(dots[p], part, x + p * rows.plane + 8 * j + 4, rows.stride);
    }
}

template <int BITS, int P, int R, int S>
static OPTPIPE_INLINE void begin_dots(typename Dot<BITS>::Sum (&dots)[P][R][S], const I (&offset)[R]) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < S; ++s) dots[p][r][s] = Dot<BITS>::begin(p + 1 == P ? offset[r] : seti(0));
}

static OPTPIPE_INLINE I times_254(I x) { return addi(shift_left<8>(x), negate(shift_left<1>(x))); }

/* R rows against S vectors of a block of 32 inputs: whole[r][s] = Σ (254·c + d)·w in two planes, Σ c·w in one. Both
 * planes at once where their sums fit into registers, else the first goes on in the second. */
template <int BITS, int PLANES, int R, int S>
static OPTPIPE_INLINE void whole_block(I (&whole)[R][S], const I (&offset)[R], const uint8_t *codes, int64_t tile_bytes,
                                       const uint8_t *x, const QuantRows &rows) {
    enum { P = PLANES * R <= QUANT_ROWS ? PLANES : 1 };
    typename Dot<BITS>::Sum dots[P][R][S];
    I before[R][S];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) before[r][s] = offset[r];
    if (P < PLANES) {
        I none[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) none[r] = seti(0);
        begin_dots<BITS, P, R, S>(dots, none);
        dot_block<BITS, P, R, S>(dots, codes, tile_bytes, x, rows);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < S; ++s) {
                before[r][s] = addi(times_254(Dot<BITS>::end(dots[0][r][s], seti(0))), before[r][s]);
                dots[0][r][s] = Dot<BITS>::begin(before[r][s]);
            }
        dot_block<BITS, P, R, S>(dots, codes, tile_bytes, x + rows.plane, rows);
    } else {
        begin_dots<BITS, P, R, S>(dots, offset);
        dot_block<BITS, P, R, S>(dots, codes, tile_bytes, x, rows);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) {
            whole[r][s] = Dot<BITS>::end(dots[P - 1][r][s], before[r][s]);
            if (P == 2) whole[r][s] = addi(times_254(Dot<BITS>::end(dots[0][r][s], seti(0))), whole[r][s]);
        }
}

enum { QUANT_ASKED = 4 }; /* lines of what is upcoming, a block: what memory gives while six rows meet two tiles */

/* R rows against S vectors of outputs. ahead: bytes from here to the weights that this thread needs next, or 0;
 * upcoming: what to ask for instead, or nullptr. */
template <int R, int S, int BITS, bool MINIMUM, int PLANES>
static void quant_tiles(const Packed &w, int64_t tile, const QuantRows &rows, int64_t ahead, Upcoming *upcoming, float *sums) {
    const int64_t tile_bytes = w.head->tile_bytes, blocks = w.blocks, every = w.head->group / 32;
    const bool wide = w.head->wide != 0;
    for (int lane = 0; lane < TILE; lane += QUANT_PARTS * W) {
        const uint8_t *codes = w.tile(tile) + lane * 4, *scales = w.tile(tile) + w.scales_at, *minima = w.tile(tile) + w.minima_at;
        V total[R][S], scale[S], minimum[S];
        for (int r = 0; r < R; ++r)
            for (int s = 0; s < S; ++s) total[r][s] = zero();
        int64_t left = 0; /* blocks that the scales still hold for */
        for (int64_t b = 0, g = 0; b < blocks; ++b, --left, codes += 64 * BITS) {
            if (left == 0) {
                for (int s = 0; s < S; ++s) {
                    const int64_t further = s / QUANT_PARTS * tile_bytes;
                    const int at = lane + s % QUANT_PARTS * W;
                    scale[s] = load_scales(scales + further, wide, g, at);
                    if (MINIMUM) minimum[s] = load_scales(minima + further, wide, g, at);
                    if (ahead != 0) prefetch(scales + further + g * w.scale_bytes() + ahead);
                }
                left = every;
                ++g;
            }
            if (ahead != 0)
                for (int s = 0; s < S; s += QUANT_PARTS)
                    for (int j = 0; j < BITS; ++j) prefetch(codes + s / QUANT_PARTS * tile_bytes + 64 * j + ahead);
            if (upcoming != nullptr) upcoming->ask<QUANT_ASKED>();
            const uint8_t *x = rows.q + b * 32, *rest = rows.q + (PLANES - 1) * rows.plane + blocks * 32 + b * 4;
            I offset[R], whole[R][S];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                int32_t eight;
                memcpy(&eight, rest + r * rows.stride + blocks * 4, 4);
                offset[r] = Dot<BITS>::offset(MINIMUM, eight);
            }
            whole_block<BITS, PLANES, R, S>(whole, offset, codes, tile_bytes, x, rows);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                float x_scale, x_sum;
                memcpy(&x_scale, rest + r * rows.stride, 4);
                memcpy(&x_sum, rest + r * rows.stride + blocks * 8, 4);
#pragma GCC unroll 4
                for (int s = 0; s < S; ++s) {
                    total[r][s] = fma(to_float(whole[r][s]), scale[s] * set1(x_scale), total[r][s]);
                    if (MINIMUM) total[r][s] = fma(minimum[s], set1(x_sum), total[r][s]);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int s = 0; s < S; ++s)
                store(sums + (s / QUANT_PARTS * QUANT_ROWS + r) * TILE + lane + s % QUANT_PARTS * W, total[r][s]);
    }
}

typedef void (*QuantTiles)(const Packed &, int64_t, const QuantRows &, int64_t, Upcoming *, float *);

template <int R, int TILES, int PLANES> static void quant_tiles_of(const Head &head, QuantTiles (*to)[QUANT_ROWS]) {
    enum { S = TILES * QUANT_PARTS };
    if (head.bits == 4) to[TILES - 1][R - 1] = head.minimum ? quant_tiles<R, S, 4, true, PLANES> : quant_tiles<R, S, 4, false, PLANES>;
    else to[TILES - 1][R - 1] = head.minimum ? quant_tiles<R, S, 8, true, PLANES> : quant_tiles<R, S, 8, false, PLANES>;
    if constexpr (R > 1) quant_tiles_of<R - 1, TILES, PLANES>(head, to);
    else if constexpr (TILES > 1) quant_tiles_of<QUANT_ROWS, TILES - 1, PLANES>(head, to);
}

/* Quantized rows times a packed weight, for sweep(). */
struct QuantSource {
    enum { ROWS = QUANT_ROWS, TILES = 4 };
    Packed w;
    QuantRows rows;
    int64_t chunk;
    Upcoming *upcoming; /* or nullptr */
    QuantTiles by_size[QUANT_TILES][QUANT_ROWS];

    /* The first rows of a chunk fetch the tiles after these: a tile is too short for the processor's own guesses. The
     * rows after them find their tiles in a cache, and fetch what is upcoming. */
    OPTPIPE_INLINE void block(int64_t tile, int64_t tiles, int64_t row, int64_t count, bool first, float *sums) const {
        const QuantRows from = {rows.q + row * rows.stride, rows.stride, rows.plane};
        const int64_t ahead = first ? 2 * w.head->tile_bytes : 0;
        for (int64_t s = 0; s < tiles; s += QUANT_TILES) {
            Upcoming *wanted = !first && upcoming != nullptr && upcoming->any() ? upcoming : nullptr;
            by_size[least(QUANT_TILES, tiles - s) - 1][count - 1](w, tile + s, from, ahead, wanted, sums + s * ROWS * TILE);
        }
    }
};

static QuantSource quant_source(void *blob, const uint8_t *q, int64_t row_bytes, int64_t planes, Upcoming *upcoming) {
    QuantSource it;
    it.w = packed(blob);
    it.rows = {q, row_bytes, quantized_bytes(it.w.head->inputs)};
    it.chunk = (384 << 10) / most(1, row_bytes); /* rows that leave room in a second-level cache of 1 MB */
    it.upcoming = upcoming;
    if (planes == 1) quant_tiles_of<QUANT_ROWS, QUANT_TILES, 1>(*it.w.head, it.by_size);
    else quant_tiles_of<QUANT_ROWS, QUANT_TILES, 2>(*it.w.head, it.by_size);
    return it;
}

static const char *check_quant_linear(const Call &c) {
    if (c.n != 5) return sentence("takes 5 operands, got %d", c.n);
    if (const char *words = check_weight(c, 1, c.ints > 0 ? c.i[0] : 0, true)) return words;
    const int64_t rows = c.size(4, 0);
    if (!c.has(4)) return "out must be there";
    if (const char *words = check_rows(c, 4, rows, c.i[0])) return words;
    if (const char *words = check_rows(c, 3, rows, c.i[0])) return words;
    if (const char *words = check_vector(c, 2, c.i[0])) return words;
    return check_quantized(c, 0, rows, c.i[1]);
}

static QuantSource quant_source_of(const Call &c, int thread) {
    const int64_t planes = planes_of(c, 0, c.i[1]), bytes = planes == 1 ? c.stride(0, 0) : 2 * quantized_bytes(c.i[1]);
    return quant_source(c.at<uint8_t>(1), c.at<uint8_t>(0), bytes, planes, c.upcoming(thread));
}

static void quant_linear(const Call &c, int thread, int threads) { run_linear(c, quant_source_of(c, thread), thread, threads); }

/* quant_linear_gated(q, w, bias?, out?, outq?) | I K bits group has_minimum kind: gated.h */
static const char *check_quant_linear_gated(const Call &c) {
    const char *words = check_gated(c, true);
    return words != nullptr ? words : check_quantized(c, 0, c.size(0, 0), c.i[1]);
}

static void quant_linear_gated(const Call &c, int thread, int threads) { run_gated(c, quant_source_of(c, thread), thread, threads); }

/* quant_linear_argmax(q, w, bias?, ids, best?) | N K bits group has_minimum: best.h */
static const char *check_quant_linear_argmax(const Call &c) {
    const char *words = check_best(c, true);
    return words != nullptr ? words : check_quantized(c, 0, c.size(0, 0), c.i[1]);
}

static void quant_linear_argmax(const Call &c, int thread, int threads) { run_best(c, quant_source_of(c, thread), thread, threads); }

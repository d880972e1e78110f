/* quant_linear(q, w, bias?, residual?, out) | N K bits group has_minimum [activation]
 *
 *     out[t, n] = f(Σ_b s[t, b] · S[n, g(b)] · Σ_k c[t, k]·(u[n, k] − 2^(bits−1)) + bias[n]) + residual[t, n]
 *     with a minimum: Σ_b (s[t, b] · S[n, g] · Σ_k c·u + M[n, g] · s[t, b]·Σ_k c)
 *
 * b blocks of 32 inputs, c and s the quantized rows (quantize.h), u S M the packed weight (packed.h), f an activation
 * (vec/math.h). out [T, N] f32, may be residual itself. Equals the dialect's quant_linear on the rounded rows; the inner
 * sums are exact in int32 at every level, the outer ones fused multiply-adds in the order of b (with groups wider
 * than a block: in the order of b within a group, then of groups).
 *
 * Bytes: N·K·bits/8 + scales once per ROWS rows in the second-level cache, once in all from memory up to `chunk` rows.
 * Source of the layout and of unsigned codes without a sign trick: VPDPBUSD multiplies unsigned by signed bytes.
 */
#if defined(__AVX512F__)
enum { QUANT_ROWS = 8 }; /* 8 sums of int32, 8 of float and a tile's codes in 32 registers */
#elif defined(__AVX2__)
enum { QUANT_ROWS = 4 };
#else
enum { QUANT_ROWS = 2 };
#endif

/* R rows against one tile. WIDE: scales hold for more than one block. */
template <int R, int BITS, bool MINIMUM, bool WIDE>
static void quant_tile(const Packed &w, int64_t tile, const uint8_t *q, int64_t stride, float *sums) {
    const uint8_t *codes = w.tile(tile), *scales = codes + w.scales_at, *minima = codes + w.minima_at;
    const int64_t blocks = w.blocks, wide = WIDE ? w.head->group / 32 : 1;
    const bool wide_scales = w.head->wide != 0;
    for (int lane = 0; lane < TILE; lane += W) {
        V total[R], part[R];
        for (int r = 0; r < R; ++r) total[r] = part[r] = zero();
        const uint8_t *at = codes + lane * 4;
        for (int64_t g = 0, b = 0; b < blocks; ++g) {
            const V scale = load_scales(scales, wide_scales, g, lane);
            const V minimum = MINIMUM ? load_scales(minima, wide_scales, g, lane) : zero();
            for (const int64_t end = WIDE ? least(b + wide, blocks) : b + 1; b < end; ++b, at += 64 * BITS) {
                const uint8_t *x = q + b * 32, *rest = q + blocks * 32 + b * 4;
                typename Dot<BITS>::Sum dots[R];
                I offset[R];
                for (int r = 0; r < R; ++r) {
                    int32_t eight;
                    memcpy(&eight, rest + r * stride + blocks * 4, 4);
                    offset[r] = Dot<BITS>::offset(MINIMUM, eight);
                    dots[r] = Dot<BITS>::begin(offset[r]);
                }
                /* A vector of nibbles is two quads, a vector of bytes one. */
#pragma GCC unroll 8
                for (int j = 0; j < BITS; ++j) {
                    const U held = load_codes(at + 64 * j);
                    const U first_codes = BITS == 4 ? low_nibbles(held) : held;
                    const int step = BITS == 4 ? 8 : 4;
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        int32_t quad;
                        memcpy(&quad, x + r * stride + j * step, 4);
                        dots[r] = Dot<BITS>::dot(dots[r], first_codes, quad);
                    }
                    if (BITS == 8) continue;
                    const U second_codes = high_nibbles(held);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        int32_t quad;
                        memcpy(&quad, x + r * stride + j * step + 4, 4);
                        dots[r] = Dot<BITS>::dot(dots[r], second_codes, quad);
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    float s, s_sum;
                    memcpy(&s, rest + r * stride, 4);
                    const V dot = to_float(Dot<BITS>::end(dots[r], offset[r]));
                    if (WIDE) part[r] = fma(dot, set1(s), part[r]);
                    else total[r] = fma(dot, scale * set1(s), total[r]);
                    if (!MINIMUM) continue;
                    memcpy(&s_sum, rest + r * stride + blocks * 8, 4);
                    total[r] = fma(minimum, set1(s_sum), total[r]);
                }
            }
            if (!WIDE) continue;
            for (int r = 0; r < R; ++r) {
                total[r] = fma(part[r], scale, total[r]);
                part[r] = zero();
            }
        }
        for (int r = 0; r < R; ++r) store(sums + r * TILE + lane, total[r]);
    }
}

typedef void (*QuantTile)(const Packed &, int64_t, const uint8_t *, int64_t, float *);

template <int R> static QuantTile quant_tile_of(const Head &head) {
    const bool wide = head.group > 32, minimum = head.minimum != 0;
    if (head.bits == 4)
        return wide ? (minimum ? quant_tile<R, 4, true, true> : quant_tile<R, 4, false, true>)
                    : (minimum ? quant_tile<R, 4, true, false> : quant_tile<R, 4, false, false>);
    return wide ? (minimum ? quant_tile<R, 8, true, true> : quant_tile<R, 8, false, true>)
                : (minimum ? quant_tile<R, 8, true, false> : quant_tile<R, 8, false, false>);
}

template <int R> static void quant_tiles_of(const Head &head, QuantTile *by_rows) {
    by_rows[R - 1] = quant_tile_of<R>(head);
    if constexpr (R > 1) quant_tiles_of<R - 1>(head, by_rows);
}

/* Quantized rows times a packed weight, for sweep(). */
struct QuantSource {
    enum { ROWS = QUANT_ROWS, TILES = 4 };
    Packed w;
    const uint8_t *q;
    int64_t stride, chunk;
    QuantTile by_rows[ROWS];

    OPTPIPE_INLINE void block(int64_t tile, int64_t tiles, int64_t row, int64_t rows, float *sums) const {
        for (int64_t s = 0; s < tiles; ++s) by_rows[rows - 1](w, tile + s, q + row * stride, stride, sums + s * ROWS * TILE);
    }
};

static QuantSource quant_source(void *blob, const uint8_t *q, int64_t stride) {
    QuantSource it;
    it.w = packed(blob);
    it.q = q;
    it.stride = stride;
    it.chunk = (384 << 10) / most(1, stride); /* rows that leave room in a second-level cache of 1 MB */
    quant_tiles_of<QUANT_ROWS>(*it.w.head, it.by_rows);
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

static QuantSource quant_source_of(const Call &c) { return quant_source(c.at<uint8_t>(1), c.at<uint8_t>(0), c.stride(0, 0)); }

static void quant_linear(const Call &c, int thread, int threads) { run_linear(c, quant_source_of(c), thread, threads); }

/* quant_linear_gated(q, w, bias?, out?, outq?) | I K bits group has_minimum kind: gated.h */
static const char *check_quant_linear_gated(const Call &c) {
    const char *words = check_gated(c, true);
    return words != nullptr ? words : check_quantized(c, 0, c.size(0, 0), c.i[1]);
}

static void quant_linear_gated(const Call &c, int thread, int threads) { run_gated(c, quant_source_of(c), thread, threads); }

/* quant_linear_argmax(q, w, bias?, ids, best?) | N K bits group has_minimum: best.h */
static const char *check_quant_linear_argmax(const Call &c) {
    const char *words = check_best(c, true);
    return words != nullptr ? words : check_quantized(c, 0, c.size(0, 0), c.i[1]);
}

static void quant_linear_argmax(const Call &c, int thread, int threads) { run_best(c, quant_source_of(c), thread, threads); }

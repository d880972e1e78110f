/* The endings of a gated pair of products, shared by quantized and float weights.
 *
 *     out[t, i] = f(gate[t, i] + bias[i]) · (up[t, i] + bias[I + i])
 *
 * Tiles alternate (packed.h): tile 2·j holds 16 gates, tile 2·j + 1 the 16 that they gate. Four tiles are 32 outputs,
 * one group of the next layer's quantized row (quantize.h), so outq needs no second look at the row.
 */
struct GatedEnding {
    const float *bias;
    float *out;
    uint8_t *outq;
    int64_t out_stride, outq_stride, outputs, kind, planes; /* of outq */

    /* 16 outputs, from output n. */
    OPTPIPE_INLINE void pair(const float *gate, const float *up, int64_t n, float *to) const {
        for (int64_t lane = 0; lane < TILE; lane += W) {
            const int64_t held = most(0, outputs - n - lane);
            V g = load(gate + lane), u = load(up + lane);
            if (bias != nullptr && held > 0) {
                g = g + load_n(bias + n + lane, held);
                u = u + load_n(bias + outputs + n + lane, held);
            }
            store(to + lane, activate(kind, g) * u);
        }
    }

    /* An even number of tiles, from an even one; a multiple of four where outq is wanted, but for the last. */
    OPTPIPE_INLINE void operator()(int64_t row, int64_t tile, int64_t tiles, const float *sums, int64_t apart) const {
        alignas(64) float held[2 * TILE];
        const int64_t n = tile / 2 * TILE, count = least(tiles / 2 * TILE, outputs - n);
        for (int64_t s = 0; s < tiles; s += 2) pair(sums + s * apart, sums + (s + 1) * apart, n + s / 2 * TILE, held + s / 2 * TILE);
        if (out != nullptr) memcpy(out + row * out_stride + n, held, (size_t)count * 4);
        if (outq != nullptr) quantize_planes(held, count, outq + row * outq_stride, outputs, planes, n / 32);
    }
};

/* Operands bias?, out?, outq? from the third; attributes I K bits group has_minimum kind. */
static const char *check_gated(const Call &c, bool quantized) {
    if (c.n != 5 || c.ints != 6) return "takes 5 operands and 6 whole numbers";
    const int64_t rows = c.size(0, 0), outputs = c.i[0];
    if (c.i[5] < NONE || c.i[5] >= ACTIVATIONS) return sentence("there is no activation %lld", (long long)c.i[5]);
    if (const char *words = check_packed(c, 1, 2 * round_up(outputs, TILE), c.i[1], quantized)) return words;
    if (const char *words = check_vector(c, 2, 2 * outputs)) return words;
    if (!c.has(3) && !c.has(4)) return "out or outq must be there";
    if (const char *words = check_rows(c, 3, rows, outputs)) return words;
    return c.has(4) ? check_quantized(c, 4, rows, outputs) : nullptr;
}

template <class Source> static void run_gated(const Call &c, const Source &source, int thread, int threads) {
    const GatedEnding end = {c.at<float>(2),
                             c.at<float>(3),
                             c.at<uint8_t>(4),
                             c.has(3) ? c.stride(3, 0) : 0,
                             c.has(4) ? c.stride(4, 0) : 0,
                             c.i[0],
                             c.i[5],
                             planes_of(c, 4, c.i[0])};
    sweep_share(source, c.has(4) ? 4 : 2, c.size(0, 0), thread, threads,
                [&](int64_t row, int64_t tile, int64_t tiles, const float *sums) {
                    end(row, tile, tiles, sums, Source::ROWS * TILE);
                });
}

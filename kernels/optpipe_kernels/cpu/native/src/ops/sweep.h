/* The order in which linear kernels walk a weight, whatever its form.
 *
 * A source multiplies: block(tile, tiles, row, rows, first, sums) gives the sums of up to TILES tiles for up to ROWS rows,
 * sums[tile][ROWS][16]. Rows are taken in chunks that stay in the second-level cache with the tile's weights, so that
 * a prompt reads its weights once a chunk; one to ROWS rows read them once. finish(row, tile, tiles, sums) is called
 * for each row of a block; its tiles are ROWS · 16 floats apart. The sum of an output depends on its row alone.
 */
template <class Source, class Finish>
static void sweep(const Source &source, Range tiles, Range rows, const Finish &finish) {
    enum { S = Source::TILES, N = Source::ROWS };
    const int64_t chunk = most(N, source.chunk / N * N);
    alignas(64) float sums[S * N * TILE];
    for (int64_t begin = rows.begin; begin < rows.end; begin += chunk) {
        const int64_t end = least(begin + chunk, rows.end);
        for (int64_t tile = tiles.begin; tile < tiles.end; tile += S) {
            const int64_t some = least(S, tiles.end - tile);
            for (int64_t row = begin; row < end; row += N) {
                const int64_t held = least(N, end - row);
                source.block(tile, some, row, held, row == begin, sums);
                for (int64_t r = 0; r < held; ++r) finish(row + r, tile, some, sums + r * TILE);
            }
        }
    }
}

/* A thread's share of a sweep: of the outputs, in multiples of `step` tiles; with many rows, of the rows, because the
 * ops before and after share those: what a thread reads is then in its own cache. */
enum { MANY_ROWS = 64 }; /* a thread; fewer do not pay for the weights that each of them then reads */

template <class Source, class Finish>
static void sweep_share(const Source &source, int64_t step, int64_t rows, int thread, int threads, const Finish &finish) {
    const int64_t tiles = source.w.count();
    if (rows >= MANY_ROWS * threads) sweep(source, {0, tiles}, split(rows, Source::ROWS, thread, threads), finish);
    else sweep(source, split(tiles, step, thread, threads), {0, rows}, finish);
}

/* out[row, n] = activate(sum + bias[n]) + residual[row, n] for the 16 outputs of a tile that exist. */
struct Ending {
    const float *bias, *residual;
    float *out;
    int64_t residual_stride, out_stride, outputs, kind;

    OPTPIPE_INLINE void operator()(int64_t row, int64_t tile, const float *sums) const {
        for (int64_t lane = 0; lane < TILE; lane += W) {
            const int64_t n = tile * TILE + lane, held = outputs - n;
            if (held <= 0) return;
            V y = load(sums + lane);
            if (bias != nullptr) y = y + load_n(bias + n, held);
            if (kind != NONE) y = activate(kind, y);
            if (residual != nullptr) y = y + load_n(residual + row * residual_stride + n, held);
            store_n(out + row * out_stride + n, y, held);
        }
    }
};

static const char *check_vector(const Call &c, int k, int64_t size) {
    if (!c.has(k) || (c.t[k].dtype == OPTPIPE_F32 && c.t[k].rank == 1 && c.size(k, 0) == size && c.stride(k, 0) == 1))
        return nullptr;
    return sentence("operand %d must be f32 [%lld], contiguous", k, (long long)size);
}

static const char *check_rows(const Call &c, int k, int64_t rows, int64_t columns) {
    if (!c.has(k)) return nullptr;
    const optpipe_tensor &t = c.t[k];
    if (t.dtype == OPTPIPE_F32 && t.rank == 2 && t.size[0] == rows && t.size[1] == columns &&
        (rows == 0 || columns < 2 || t.stride[1] == 1))
        return nullptr;
    return sentence("operand %d must be f32 [%lld, %lld] with stride 1 in the last dimension", k, (long long)rows, (long long)columns);
}

/* The first five attributes are N K bits group has_minimum; the weight's head has the last word on the last three. */
static const char *check_weight(const Call &c, int k, int64_t rows, bool quantized) {
    if (c.ints < 5) return sentence("takes at least 5 whole numbers, got %d", c.ints);
    return check_packed(c, k, rows, c.i[1], quantized);
}

/* Operands bias?, residual?, out from the third; attributes N K bits group has_minimum [activation]. */
template <class Source> static void run_linear(const Call &c, const Source &source, int thread, int threads) {
    const Ending end = {c.at<float>(2), c.at<float>(3), c.at<float>(4), c.has(3) ? c.stride(3, 0) : 0, c.stride(4, 0),
                        c.i[0],         c.ints > 5 ? c.i[5] : (int64_t)NONE};
    sweep_share(source, 1, c.size(4, 0), thread, threads, [&](int64_t row, int64_t tile, int64_t tiles, const float *sums) {
        for (int64_t s = 0; s < tiles; ++s) end(row, tile + s, sums + s * Source::ROWS * TILE);
    });
}

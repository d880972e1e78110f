/* The order in which linear kernels walk a weight, whatever its form.
 *
 * A source multiplies: block(tile, tiles, row, rows, sums) gives the sums of up to TILES tiles for up to ROWS rows,
 * sums[tile][ROWS][16]. Rows are taken in chunks that stay in the second-level cache with the tile's weights, so that
 * a prompt reads its weights once a chunk; one to ROWS rows read them once. finish(row, tile, tiles, sums) is called
 * for each row of a block; its tiles are ROWS · 16 floats apart. The sum of an output depends on its row alone.
 */
template <class Source, class Finish>
static void sweep(const Source &source, Range tiles, int64_t rows, const Finish &finish) {
    enum { S = Source::TILES, N = Source::ROWS };
    const int64_t chunk = most(N, source.chunk / N * N);
    alignas(64) float sums[S * N * TILE];
    for (int64_t begin = 0; begin < rows; begin += chunk) {
        const int64_t end = least(begin + chunk, rows);
        for (int64_t tile = tiles.begin; tile < tiles.end; tile += S) {
            const int64_t some = least(S, tiles.end - tile);
            for (int64_t row = begin; row < end; row += N) {
                const int64_t held = least(N, end - row);
                source.block(tile, some, row, held, sums);
                for (int64_t r = 0; r < held; ++r) finish(row + r, tile, some, sums + r * TILE);
            }
        }
    }
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

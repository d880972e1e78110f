/* Products of bfloat16 weights where the processor multiplies pairs of them (vec/pairs.h): twice the operations of float32.
 *
 *     sum[n] = Σ_j x[2j + 1]·w[n, 2j + 1] + x[2j]·w[n, 2j]        in the order of j, each step rounded to float32
 *
 * x is rounded to bfloat16, to nearest, ties to even: an error of at most 2^-9 of each input, which a model that was
 * trained and runs in bfloat16 makes at every operation. A block is ROWS rows × TILES tiles, all sums in registers.
 */

/* Whether rows are rounded for a weight of that many bits. */
static OPTPIPE_INLINE bool reads_pairs(int64_t bits) {
#ifdef OPTPIPE_PAIRS
    return bits == 16;
#else
    (void)bits;
    return false;
#endif
}

#ifdef OPTPIPE_PAIRS
enum { PAIR_ROWS = 6, PAIR_TILES = 4 }; /* 24 sums, 4 weights */

static OPTPIPE_INLINE int64_t pair_bytes(int64_t inputs) { return round_up(2 * inputs, 64); }

/* x [n] to bfloat16, zeros after them: pair_bytes(n) bytes. */
static OPTPIPE_INLINE void narrow_row(const float *x, int64_t n, uint8_t *to) {
    int64_t k = 0;
    for (; k + 2 * W <= n; k += 2 * W) store_pairs(to + 2 * k, narrow_pairs(load(x + k), load(x + k + W)));
    if (k == n) return;
    const V high = n > k + W ? load_n(x + k + W, n - k - W) : zero();
    store_pairs(to + 2 * k, narrow_pairs(load_n(x + k, n - k), high));
}

/* R rows against S tiles, tile_bytes apart. ahead: bytes from here to the weights that this thread needs next, or 0. */
template <int R, int S>
static void pair_tiles(const uint8_t *tiles, int64_t tile_bytes, const uint8_t *x, int64_t stride, int64_t pairs, int64_t ahead,
                       float *sums) {
    V total[S][R];
    for (int s = 0; s < S; ++s)
        for (int r = 0; r < R; ++r) total[s][r] = zero();
    for (int64_t j = 0; j < pairs; ++j) {
        P w[S];
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) {
            w[s] = load_pairs(tiles + s * tile_bytes + j * 64);
            if (ahead != 0) prefetch(tiles + s * tile_bytes + j * 64 + ahead);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const P pair = set1_pair(x + r * stride + 4 * j);
#pragma GCC unroll 4
            for (int s = 0; s < S; ++s) total[s][r] = dot_pairs(total[s][r], w[s], pair);
        }
    }
    for (int s = 0; s < S; ++s)
        for (int r = 0; r < R; ++r) store(sums + (s * PAIR_ROWS + r) * TILE, total[s][r]);
}

typedef void (*PairTiles)(const uint8_t *, int64_t, const uint8_t *, int64_t, int64_t, int64_t, float *);

template <int R, int S> static void pair_tiles_of(PairTiles (*to)[PAIR_ROWS]) {
    to[S - 1][R - 1] = pair_tiles<R, S>;
    if constexpr (R > 1) pair_tiles_of<R - 1, S>(to);
    else if constexpr (S > 1) pair_tiles_of<PAIR_ROWS, S - 1>(to);
}

/* Rows times a packed weight of bfloat16, for sweep(). Each thread rounds the rows of a chunk for itself as it first
 * meets them, which costs less than to wait for each other. */
struct PairSource {
    enum { ROWS = PAIR_ROWS, TILES = PAIR_TILES };
    Packed w;
    const float *x;
    int64_t stride;
    uint8_t *narrow; /* [chunk][row_bytes] */
    int64_t row_bytes, chunk;
    mutable int64_t begin, end; /* the rows that `narrow` holds */
    PairTiles by_size[PAIR_TILES][PAIR_ROWS];

    OPTPIPE_INLINE void block(int64_t tile, int64_t tiles, int64_t row, int64_t rows, bool first, float *sums) const {
        if (first && row != begin) begin = end = row; /* another chunk */
        for (; end < row + rows; ++end) narrow_row(x + end * stride, w.head->inputs, narrow + (end - begin) * row_bytes);
        const int64_t bytes = w.head->tile_bytes, pairs = (w.head->inputs + 1) / 2, ahead = first ? PAIR_TILES * bytes : 0;
        by_size[tiles - 1][rows - 1](w.tile(tile), bytes, narrow + (row - begin) * row_bytes, row_bytes, pairs, ahead, sums);
    }
};

static PairSource pair_source(void *blob, const float *x, int64_t stride) {
    PairSource it;
    it.w = packed(blob);
    it.x = x;
    it.stride = stride;
    it.narrow = nullptr; /* the caller's to give */
    it.row_bytes = pair_bytes(it.w.head->inputs);
    it.chunk = most(1, (384 << 10) / it.row_bytes / PAIR_ROWS) * PAIR_ROWS;
    it.begin = it.end = -1;
    pair_tiles_of<PAIR_ROWS, PAIR_TILES>(it.by_size);
    return it;
}
#endif

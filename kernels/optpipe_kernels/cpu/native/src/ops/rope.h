/* rope(x, cos, sin, out) | interleaved
 *
 *     out = x · cos + rotate(x) · sin     on the first R channels of every head; the others pass
 *     halves:       rotate(x)[d] = −x[d + R/2] for d < R/2, else x[d − R/2]
 *     interleaved:  rotate(x)[2i] = −x[2i + 1],  rotate(x)[2i + 1] = x[2i]
 *
 * x, out [T, H, D], strided in T and H; cos, sin [T, R]. The dialect body is optpipe/dialect/rope.py.
 */

static OPTPIPE_INLINE void rotate_halves(const float *x, const float *cos, const float *sin, int64_t half, float *y) {
    for (int64_t d = 0; d < half; d += W) {
        const int64_t n = half - d;
        const V a = load_n(x + d, n), b = load_n(x + half + d, n);
        const V low = a * load_n(cos + d, n) - b * load_n(sin + d, n);
        const V high = b * load_n(cos + half + d, n) + a * load_n(sin + half + d, n);
        store_n(y + d, low, n);
        store_n(y + half + d, high, n);
    }
}

static OPTPIPE_INLINE void rotate_pairs(const float *x, const float *cos, const float *sin, int64_t width, float *y) {
    for (int64_t d = 0; d + 1 < width; d += 2) {
        const float a = x[d], b = x[d + 1];
        y[d] = a * cos[d] - b * sin[d];
        y[d + 1] = b * cos[d + 1] + a * sin[d + 1];
    }
}

/* One head: D channels, R of them turned. */
static OPTPIPE_INLINE void rope_row(const float *x, const float *cos, const float *sin, int64_t turned, int64_t width,
                                    bool interleaved, float *y) {
    if (interleaved)
        rotate_pairs(x, cos, sin, turned, y);
    else
        rotate_halves(x, cos, sin, turned / 2, y);
    for (int64_t d = turned; d < width; ++d) y[d] = x[d];
}

/* NULL when operand x is heads [T, H, D] and cos, sin at `angles` fit them. */
static const char *check_heads(const Call &c, int x) {
    if (c.t[x].rank != 3) return sentence("operand %d must be [T, H, D]", x);
    return check_rows(c, x);
}
static const char *check_angles(const Call &c, int x, int angles) {
    for (int k = angles; k < angles + 2; ++k) {
        const char *wrong = check_rows(c, k);
        if (wrong != nullptr) return wrong;
        if (c.t[k].rank != 2 || c.size(k, 0) != c.size(x, 0) || c.size(k, 1) > c.size(x, 2) || c.size(k, 1) % 2 != 0)
            return sentence("operand %d must be [T, R] with an even R of at most %lld", k, (long long)c.size(x, 2));
    }
    return nullptr;
}

static const char *check_rope(const Call &c) {
    if (c.n != 4 || c.ints != 1) return "takes x, cos, sin, out and interleaved";
    const char *wrong = check_heads(c, 0);
    if (wrong == nullptr) wrong = check_heads(c, 3);
    if (wrong == nullptr) wrong = check_like(c, 3, 0);
    return wrong != nullptr ? wrong : check_angles(c, 0, 1);
}

static void rope(const Call &c, int thread, int threads) {
    const int64_t heads = c.size(0, 1), turned = c.size(1, 1);
    const Range rows = split(rows_of(c, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t t = r / heads;
        rope_row(c.at<float>(0) + row_at(c, 0, r), c.at<float>(1) + t * c.stride(1, 0), c.at<float>(2) + t * c.stride(2, 0),
                 turned, c.size(0, 2), c.i[0] != 0, c.at<float>(3) + row_at(c, 3, r));
    }
}

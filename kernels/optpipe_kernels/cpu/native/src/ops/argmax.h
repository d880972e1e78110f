/* argmax(x, ids)
 *
 *     ids[r] = the least v with x[r, v] = max over v of x[r, v]; a NaN counts as larger than every number
 *
 * x [R, V] f32; ids [R] i64. Bytes: 4·R·V read once.
 */

static const char *check_argmax(const Call &c) {
    if (c.n != 2) return sentence("takes 2 operands, got %d", c.n);
    if (c.t[0].dtype != OPTPIPE_F32 || c.t[0].rank != 2) return "x must be f32 [R, V]";
    if (c.size(0, 1) < 1 || c.stride(0, 1) != 1) return "x must have at least one column, and stride 1 along it";
    if (c.t[1].dtype != OPTPIPE_I64 || c.t[1].rank != 1 || c.size(1, 0) != c.size(0, 0)) return "ids must be i64 [R]";
    return nullptr;
}

/* First the maximum by vectors, then the first place that holds it. */
static int64_t place_of_largest(const float *x, int64_t n) {
    V best = load_n(x, n < W ? 0 : W), odd = zero();
    best = n < W ? set1(x[0]) : best;
    for (int64_t k = 0; k + W <= n; k += W) {
        const V it = load(x + k);
        best = vmax(best, it);
        odd = odd + choose(equal(it, it), zero(), set1(1.0f));
    }
    float top = largest(best);
    bool nan = sum(odd) != 0.0f;
    for (int64_t k = n / W * W; k < n; ++k) {
        nan |= x[k] != x[k];
        top = x[k] > top ? x[k] : top;
    }
    for (int64_t k = 0; k < n; ++k)
        if (nan ? x[k] != x[k] : x[k] == top) return k;
    return 0;
}

static void argmax(const Call &c, int thread, int threads) {
    const Range rows = split(c.size(0, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r)
        c.at<int64_t>(1)[r * c.stride(1, 0)] = place_of_largest(c.at<float>(0) + r * c.stride(0, 0), c.size(0, 1));
}

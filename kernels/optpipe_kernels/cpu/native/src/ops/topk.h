/* topk(x, values, ids) | k
 *
 *     values[r, j], ids[r, j] = the j-th largest of x[r] and its place; equal values by ascending place; a NaN counts as
 *     larger than every number
 *
 * x [R, V] f32; values [R, k] f32; ids [R, k] i64. One pass: what beats the least of the k held so far is put in its
 * place among them. Bytes: 4·R·V.
 */

static const char *check_topk(const Call &c) {
    if (c.n != 3 || c.ints != 1) return "takes 3 operands and k";
    if (c.t[0].dtype != OPTPIPE_F32 || c.t[0].rank != 2 || c.stride(0, 1) != 1) return "x must be f32 [R, V] with stride 1 along V";
    if (c.i[0] < 1 || c.i[0] > c.size(0, 1))
        return sentence("k is %lld of %lld columns", (long long)c.i[0], (long long)c.size(0, 1));
    if (const char *words = check_rows(c, 1, c.size(0, 0), c.i[0])) return words;
    const bool fits = c.has(2) && c.t[2].dtype == OPTPIPE_I64 && c.t[2].rank == 2 && c.size(2, 0) == c.size(0, 0) &&
                      c.size(2, 1) == c.i[0] && c.stride(2, 1) == 1;
    return fits && c.has(1) ? nullptr : "values must be f32 [R, k] and ids i64 [R, k]";
}

/* Puts (x, place) among the `held` largest; returns how many there are then, at most k. */
static OPTPIPE_INLINE int64_t insert_largest(float *values, int64_t *ids, int64_t held, int64_t k, float x, int64_t place) {
    if (held == k && !beats(x, values[k - 1])) return held;
    int64_t at = held < k ? held : k - 1;
    for (; at > 0 && beats(x, values[at - 1]); --at) {
        values[at] = values[at - 1];
        ids[at] = ids[at - 1];
    }
    values[at] = x;
    ids[at] = place;
    return held < k ? held + 1 : k;
}

static void largest_of_row(const float *x, int64_t columns, int64_t k, float *values, int64_t *ids) {
    int64_t held = 0;
    for (int64_t v = 0; v < columns; v += W) {
        const V some = load_n(x + v, columns - v);
        const bool full = held == k && !any(less(set1(values[k - 1]), some)) && all(equal(some, some));
        for (int64_t lane = 0; !full && lane < W && v + lane < columns; ++lane)
            held = insert_largest(values, ids, held, k, x[v + lane], v + lane);
    }
}

static void topk(const Call &c, int thread, int threads) {
    const Range rows = split(c.size(0, 0), 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r)
        largest_of_row(c.at<float>(0) + r * c.stride(0, 0), c.size(0, 1), c.i[0], c.at<float>(1) + r * c.stride(1, 0),
                       c.at<int64_t>(2) + r * c.stride(2, 0));
}

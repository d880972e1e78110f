/* embedding(ids, w, out) | V K bits group minimum        out[t] = row ids[t] of a packed weight [V, K] (packed.h)
 *
 * Float weights have group 0. Equals quant_embedding of the dialect; a tied LM head shares the blob. An id outside [0, V)
 * fails the step. Bytes: the rows read.
 */

static const char *check_embedding(const Call &c) {
    if (c.n != 3 || c.ints != 5) return "takes ids, w, out, V, K, bits, group and minimum";
    if (is_float(c.t[0].dtype) || c.t[0].rank + 1 != c.t[2].rank) return "ids must be whole numbers, one a row of out";
    const char *wrong = check_rows(c, 2);
    return wrong != nullptr ? wrong : check_packed(c, 1, c.i[0], c.i[1], c.i[3] != 0);
}

static void embedding(const Call &c, int thread, int threads) {
    const Packed w = packed(c.at<uint8_t>(1));
    const int64_t count = rows_of(c, 2);
    const Range rows = split(count, 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        int64_t at = 0, rest = r;
        for (int d = c.t[0].rank - 1; d >= 0; --d) {
            at += rest % c.size(0, d) * c.stride(0, d);
            rest /= c.size(0, d);
        }
        const int64_t id = int_at(c.at<char>(0), c.t[0].dtype, at);
        if (id < 0 || id >= c.i[0]) {
            c.fail("a token id lies outside the vocabulary");
            return;
        }
        unpack_row(w, id, c.at<float>(2) + row_at(c, 2, r));
    }
}

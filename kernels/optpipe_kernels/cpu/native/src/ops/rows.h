/* Rows: what the norms and rope share. A tensor of any rank is a list of rows along its last dimension. */

/* The element at which row k of operand `which` begins. */
static OPTPIPE_INLINE int64_t row_at(const Call &c, int which, int64_t k) {
    const optpipe_tensor &x = c.t[which];
    int64_t at = 0;
    for (int d = x.rank - 2; d >= 0; --d) {
        at += k % x.size[d] * x.stride[d];
        k /= x.size[d];
    }
    return at;
}
static OPTPIPE_INLINE int64_t rows_of(const Call &c, int which) {
    int64_t rows = 1;
    for (int d = 0; d + 1 < c.t[which].rank; ++d) rows *= c.size(which, d);
    return rows;
}
static OPTPIPE_INLINE int64_t width_of(const Call &c, int which) { return c.size(which, c.t[which].rank - 1); }

/* NULL when operand k is float32 rows with stride 1 along them. */
static const char *check_rows(const Call &c, int k) {
    const optpipe_tensor &x = c.t[k];
    if (x.rank < 1 || x.dtype != OPTPIPE_F32) return sentence("operand %d must be f32 of one dimension or more", k);
    if (x.size[x.rank - 1] > 1 && x.stride[x.rank - 1] != 1)
        return sentence("operand %d must have stride 1 along its last dimension", k);
    return nullptr;
}
/* NULL when operand k is absent or f32 [n]. */
static const char *check_row(const Call &c, int k, int64_t n) {
    if (!c.has(k)) return nullptr;
    const optpipe_tensor &w = c.t[k];
    if (w.rank == 1 && w.dtype == OPTPIPE_F32 && w.size[0] == n && (n == 1 || w.stride[0] == 1)) return nullptr;
    return sentence("operand %d must be f32 [%lld]", k, (long long)n);
}

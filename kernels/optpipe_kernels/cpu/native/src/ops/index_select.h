/* index_select(x, ids, out) | dim      out[a.., j, c..] = x[a.., ids[j], c..]      j over ids [n]
 * gather(x, ids, out) | dim            out[i..] = x[i.. with ids[i..] at dim]      sizes of 1 in x broadcast
 *
 * ids i64 or i32; a negative one counts from the end. One outside fails the step. Bytes: the rows read.
 */

/* The index, or −1 after failing the step. */
static OPTPIPE_INLINE int64_t index_of(const Call &c, int64_t id, int64_t size) {
    const int64_t at = id < 0 ? id + size : id;
    if (at >= 0 && at < size) return at;
    c.fail("an index lies outside the dimension that it selects from");
    return -1;
}

static const char *check_index_select(const Call &c) {
    if (c.n != 3 || c.ints != 1) return "takes x, ids, out and a dimension";
    const int64_t dim = c.i[0];
    if (dim < 0 || dim >= c.t[0].rank || c.t[2].rank != c.t[0].rank) return "out must have the dimensions of x";
    if (c.t[1].rank != 1 || is_float(c.t[1].dtype)) return "ids must be one list of whole numbers";
    for (int d = 0; d < c.t[0].rank; ++d)
        if (c.size(2, d) != (d == dim ? c.size(1, 0) : c.size(0, d)))
            return sentence("out has %lld elements along dimension %d", (long long)c.size(2, d), d);
    return check_written(c, 2);
}

/* Every (a.., j) is a part with the dimensions after dim, copied as a whole. */
static void index_select(const Call &c, int thread, int threads) {
    const optpipe_tensor &x = c.t[0], &ids = c.t[1], &y = c.t[2];
    const int dim = (int)c.i[0];
    int64_t parts = 1;
    for (int d = 0; d <= dim; ++d) parts *= y.size[d];
    const Range work = split(parts, 1, thread, threads);
    for (int64_t k = work.begin; k < work.end; ++k) {
        const int64_t j = k % y.size[dim];
        const int64_t id = index_of(c, int_at((const char *)ids.data, ids.dtype, j * ids.stride[0]), x.size[dim]);
        if (id < 0) return;
        int64_t from = id * x.stride[dim], to = j * y.stride[dim], rest = k / y.size[dim];
        for (int d = dim - 1; d >= 0; --d) {
            from += rest % x.size[d] * x.stride[d];
            to += rest % x.size[d] * y.stride[d];
            rest /= x.size[d];
        }
        optpipe_tensor part[2];
        for (int side = 0; side < 2; ++side) {
            const optpipe_tensor &whole = side == 0 ? x : y;
            part[side] = whole;
            part[side].rank = whole.rank - dim - 1;
            part[side].data = (char *)whole.data + (side == 0 ? from : to) * item_bytes(whole.dtype);
            for (int d = dim + 1; d < whole.rank; ++d) {
                part[side].size[d - dim - 1] = whole.size[d];
                part[side].stride[d - dim - 1] = whole.stride[d];
            }
        }
        const Call inner = {part, 2, nullptr, 0, nullptr, 0, c.team};
        copy(inner, 0, 1);
    }
}

static const char *check_gather(const Call &c) {
    if (c.n != 3 || c.ints != 1) return "takes x, ids, out and a dimension";
    if (c.i[0] < 0 || c.i[0] >= c.t[0].rank || c.t[0].rank != c.t[2].rank) return "out must have the dimensions of x";
    if (is_float(c.t[1].dtype)) return "ids must be whole numbers";
    const char *wrong = check_like(c, 1, 2);
    for (int d = 0; wrong == nullptr && d < c.t[0].rank; ++d)
        if (d != c.i[0] && c.size(0, d) < c.size(2, d)) wrong = "x has fewer elements than ids along another dimension";
    return wrong != nullptr ? wrong : check_written(c, 2);
}

static void gather(const Call &c, int thread, int threads) {
    const optpipe_tensor &x = c.t[0], &ids = c.t[1], &y = c.t[2];
    int64_t count = 1;
    for (int d = 0; d < y.rank; ++d) count *= y.size[d];
    const Range work = split(count, 1, thread, threads);
    for (int64_t k = work.begin; k < work.end; ++k) {
        int64_t from = 0, at = 0, to = 0, rest = k;
        for (int d = y.rank - 1; d >= 0; --d) {
            const int64_t index = rest % y.size[d];
            from += d == c.i[0] ? 0 : index * x.stride[d];
            at += index * ids.stride[d];
            to += index * y.stride[d];
            rest /= y.size[d];
        }
        const int64_t id = index_of(c, int_at((const char *)ids.data, ids.dtype, at), x.size[c.i[0]]);
        if (id < 0) return;
        from += id * x.stride[c.i[0]];
        if (is_float(x.dtype))
            put_float((char *)y.data, y.dtype, to, float_at((const char *)x.data, x.dtype, from));
        else
            put_int((char *)y.data, y.dtype, to, int_at((const char *)x.data, x.dtype, from));
    }
}

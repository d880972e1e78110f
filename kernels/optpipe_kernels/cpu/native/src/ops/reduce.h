/* sum(x, out) | n      mean  amax  amin        over the last n dimensions of x, of any strides
 *
 * out has the sizes of the others. An element's order of reduction is row-major: W running lanes over runs along
 * the last dimension, the rest of a run lane by lane from 0. In float32: whole numbers are exact up to 2^24. Bytes: x
 * read once.
 */

struct SumOf {
    static OPTPIPE_INLINE float start() { return 0.0f; }
    static OPTPIPE_INLINE float join(float a, float b) { return a + b; }
};
struct LargestOf {
    static OPTPIPE_INLINE float start() { return -__builtin_inff(); }
    static OPTPIPE_INLINE float join(float a, float b) { return a != a || a > b ? a : b; }
};
struct LeastOf {
    static OPTPIPE_INLINE float start() { return __builtin_inff(); }
    static OPTPIPE_INLINE float join(float a, float b) { return a != a || a < b ? a : b; }
};

static const char *check_reduce(const Call &c) {
    if (c.n != 2 || c.ints != 1) return "takes x, out and how many dimensions to reduce";
    const int64_t kept = c.t[0].rank - c.i[0];
    if (c.i[0] < 1 || kept < 0 || kept != c.t[1].rank) return "out must have the dimensions of x that stay";
    for (int d = 0; d < kept; ++d)
        if (c.size(0, d) != c.size(1, d)) return "out must have the sizes of x that stay";
    return check_written(c, 1);
}

/* The reduced elements that begin at element `at` of x. */
template <class F> static float reduce_from(const Call &c, int64_t at, int kept) {
    const optpipe_tensor &x = c.t[0];
    const int last = x.rank - 1;
    int64_t runs = 1;
    for (int d = kept; d < last; ++d) runs *= x.size[d];
    float lanes[W], total = F::start();
    for (int k = 0; k < W; ++k) lanes[k] = F::start();
    for (int64_t run = 0; run < runs; ++run) {
        int64_t begin = at, rest = run;
        for (int d = last - 1; d >= kept; --d) {
            begin += rest % x.size[d] * x.stride[d];
            rest /= x.size[d];
        }
        int64_t k = 0;
        for (; k + W <= x.size[last]; k += W)
            for (int lane = 0; lane < W; ++lane)
                lanes[lane] = F::join(lanes[lane], float_at((const char *)x.data, x.dtype, begin + (k + lane) * x.stride[last]));
        for (; k < x.size[last]; ++k)
            total = F::join(total, float_at((const char *)x.data, x.dtype, begin + k * x.stride[last]));
    }
    for (int lane = 0; lane < W; ++lane) total = F::join(total, lanes[lane]);
    return total;
}

template <class F, bool mean> static void reduce(const Call &c, int thread, int threads) {
    const int kept = c.t[1].rank;
    int64_t outs = 1, count = 1;
    for (int d = 0; d < c.t[0].rank; ++d) (d < kept ? outs : count) *= c.size(0, d);
    const Range work = split(outs, 1, thread, threads);
    for (int64_t k = work.begin; k < work.end; ++k) {
        int64_t from = 0, to = 0, rest = k;
        for (int d = kept - 1; d >= 0; --d) {
            from += rest % c.size(0, d) * c.stride(0, d);
            to += rest % c.size(0, d) * c.stride(1, d);
            rest /= c.size(0, d);
        }
        const float total = reduce_from<F>(c, from, kept);
        put_float((char *)c.t[1].data, c.t[1].dtype, to, mean ? total / (float)count : total);
    }
}

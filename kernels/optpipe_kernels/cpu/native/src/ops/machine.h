/* What the machine can do at most, measured as kernels run: for inspect --profile and the benchmarks.
 *
 * machine_read(x, out): every thread reads its share of x [n] f32 and adds it up. Bytes: 4·n.
 * machine_dots(out) | repeats: every thread does repeats × 12 × W × 8 multiplications and additions of int8, operands in
 * registers, in 12 independent sums.
 * machine_fmas(out) | repeats: every thread does repeats × 12 × W × 2 in float32.
 * machine_pairs(out) | repeats: every thread does repeats × 12 × W × 4 on bfloat16, as linear does: in pairs where the
 * processor has them, else widened.
 *
 * out [64] f32 takes what keeps the compiler from leaving the work out.
 */

static const char *check_machine(const Call &c) {
    if (c.n < 1 || c.n > 2) return "takes out, and x to read it";
    const optpipe_tensor &out = c.t[c.n - 1];
    if (out.dtype != OPTPIPE_F32 || out.rank != 1 || out.size[0] < 64 || out.stride[0] != 1) return "out must be f32 [64]";
    return c.n == 2 || c.ints == 1 ? nullptr : "takes the number of repeats";
}

static const char *check_machine_read(const Call &c) {
    if (c.n != 2 || c.t[0].dtype != OPTPIPE_F32 || c.t[0].rank != 1 || c.stride(0, 0) != 1) return "x must be f32 [n], contiguous";
    return check_machine(c);
}

static void machine_read(const Call &c, int thread, int threads) {
    enum { SUMS = 8 };
    const Range mine = split(c.size(0, 0), SUMS * W, thread, threads);
    const float *x = c.at<float>(0);
    V sums[SUMS];
    for (int k = 0; k < SUMS; ++k) sums[k] = zero();
    for (int64_t at = mine.begin; at + SUMS * W <= mine.end; at += SUMS * W)
        for (int k = 0; k < SUMS; ++k) sums[k] = sums[k] + load(x + at + k * W);
    for (int k = 1; k < SUMS; ++k) sums[0] = sums[0] + sums[k];
    c.at<float>(1)[thread % 64] = sum(sums[0]);
}

static void machine_dots(const Call &c, int thread, int) {
    enum { SUMS = 12 }; /* of 16 registers */
    uint8_t codes[sizeof(U)];
    for (size_t k = 0; k < sizeof codes; ++k) codes[k] = (uint8_t)(k & 15);
    const U w = load_codes(codes);
    typename Dot<4>::Sum sums[SUMS];
    for (int k = 0; k < SUMS; ++k) sums[k] = Dot<4>::begin(seti(k));
    int32_t quad = 0x01020304;
    for (int64_t n = 0; n < c.i[0]; ++n) {
        asm volatile("" : "+r"(quad));
#pragma GCC unroll 12
        for (int k = 0; k < SUMS; ++k) sums[k] = Dot<4>::dot(sums[k], w, quad);
    }
    V total = zero();
    for (int k = 0; k < SUMS; ++k) total = total + to_float(Dot<4>::end(sums[k], seti(0)));
    c.at<float>(0)[thread % 64] = sum(total);
}

static void machine_fmas(const Call &c, int thread, int) {
    enum { SUMS = 12 }; /* of 16 registers */
    V sums[SUMS];
    for (int k = 0; k < SUMS; ++k) sums[k] = set1((float)k);
    V factor = set1(0.5f), one = set1(1.0f);
    for (int64_t n = 0; n < c.i[0]; ++n) {
#ifdef __AVX2__
        asm volatile("" : "+x"(factor), "+x"(one)); /* in registers: a load for each sum would be measured instead */
#else
        asm volatile("" : "+m"(factor));
#endif
#pragma GCC unroll 12
        for (int k = 0; k < SUMS; ++k) sums[k] = fma(factor, one, sums[k]);
    }
    for (int k = 1; k < SUMS; ++k) sums[0] = sums[0] + sums[k];
    c.at<float>(0)[thread % 64] = sum(sums[0]);
}

static void machine_pairs(const Call &c, int thread, int threads) {
#ifdef OPTPIPE_PAIRS
    (void)threads;
    enum { SUMS = 12 }; /* of 16 registers */
    V sums[SUMS];
    for (int k = 0; k < SUMS; ++k) sums[k] = set1((float)k);
    uint32_t pair = 0x3f003f00; /* a half, twice */
    P w = set1_pair(&pair), x = w;
    for (int64_t n = 0; n < c.i[0]; ++n) {
        asm volatile("" : "+v"(w), "+v"(x));
#pragma GCC unroll 12
        for (int k = 0; k < SUMS; ++k) sums[k] = dot_pairs(sums[k], w, x);
    }
    for (int k = 1; k < SUMS; ++k) sums[0] = sums[0] + sums[k];
    c.at<float>(0)[thread % 64] = sum(sums[0]);
#else
    for (int half = 0; half < 2; ++half) machine_fmas(c, thread, threads);
#endif
}

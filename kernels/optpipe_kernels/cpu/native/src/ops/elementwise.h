/* Elementwise ops over tensors of one size, any strides (0 where an operand broadcasts):
 *
 *     name(x, out)                             neg abs sqrt rsqrt exp log sin cos tanh sigmoid silu relu square
 *                                              reciprocal floor round erf logical_not gelu gelu_tanh
 *     name(a?, b?, out) | | scalar             add sub mul div pow maximum minimum eq ne lt le gt ge
 *                                              logical_and logical_or bitwise_and bitwise_or
 *     clamp(x, out) | | low high
 *     where(condition, a?, b?, out) | | scalar
 *
 * The scalar stands for the operand left out. Two operands, clamp and where compute in int64 when every operand is
 * whole; the rest is float32, exact for whole numbers up to 2^24. A comparison gives 0 or 1. sin and cos are libm's:
 * arguments are as large as positions.
 */

/* What the lanes of one vector become. */
struct Neg { static OPTPIPE_INLINE V of(V x) { return zero() - x; } };
struct Abs { static OPTPIPE_INLINE V of(V x) { return vabs(x); } };
struct Sqrt { static OPTPIPE_INLINE V of(V x) { return vsqrt(x); } };
struct Rsqrt { static OPTPIPE_INLINE V of(V x) { return set1(1.0f) / vsqrt(x); } };
struct Exp { static OPTPIPE_INLINE V of(V x) { return vexp(x); } };
struct Tanh { static OPTPIPE_INLINE V of(V x) { return vtanh(x); } };
struct Sigmoid { static OPTPIPE_INLINE V of(V x) { return sigmoid(x); } };
struct Silu { static OPTPIPE_INLINE V of(V x) { return activate(SILU, x); } };
struct Relu { static OPTPIPE_INLINE V of(V x) { return activate(RELU, x); } };
struct Gelu { static OPTPIPE_INLINE V of(V x) { return activate(GELU, x); } };
struct GeluTanh { static OPTPIPE_INLINE V of(V x) { return activate(GELU_TANH, x); } };
struct Square { static OPTPIPE_INLINE V of(V x) { return x * x; } };
struct Reciprocal { static OPTPIPE_INLINE V of(V x) { return set1(1.0f) / x; } };
struct Floor { static OPTPIPE_INLINE V of(V x) { return down(x); } };
struct Round { static OPTPIPE_INLINE V of(V x) { return nearest(x); } };
struct Erf { static OPTPIPE_INLINE V of(V x) { return verf(x); } };
struct Not { static OPTPIPE_INLINE V of(V x) { return choose(equal(x, zero()), set1(1.0f), zero()); } };

/* One lane at a time, where no vector function is exact enough. */
template <float (*f)(float)> struct Lanes {
    static OPTPIPE_INLINE V of(V x) {
        float lanes[W];
        store(lanes, x);
        for (int k = 0; k < W; ++k) lanes[k] = f(lanes[k]);
        return load(lanes);
    }
};

static OPTPIPE_INLINE V truth(M m) { return choose(m, set1(1.0f), zero()); }
static OPTPIPE_INLINE V nonzero(V x) { return choose(equal(x, zero()), zero(), set1(1.0f)); }

struct Add {
    static OPTPIPE_INLINE V of(V a, V b) { return a + b; }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return (int64_t)((uint64_t)a + (uint64_t)b); }
};
struct Sub {
    static OPTPIPE_INLINE V of(V a, V b) { return a - b; }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)b); }
};
struct Mul {
    static OPTPIPE_INLINE V of(V a, V b) { return a * b; }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }
};
struct Div {
    static OPTPIPE_INLINE V of(V a, V b) { return a / b; }
};
/* Small whole powers by products, as models write them (x², x³); else libm. */
struct Pow {
    static OPTPIPE_INLINE V of(V a, V b) {
        float base[W], power[W];
        store(base, a);
        store(power, b);
        for (int k = 0; k < W; ++k)
            base[k] = power[k] == 2.0f   ? base[k] * base[k]
                      : power[k] == 3.0f ? base[k] * base[k] * base[k]
                                         : powf(base[k], power[k]);
        return load(base);
    }
};
/* A NaN on either side stays one. */
struct Maximum {
    static OPTPIPE_INLINE V of(V a, V b) { return choose(equal(a, a), choose(equal(b, b), vmax(a, b), b), a); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a > b ? a : b; }
};
struct Minimum {
    static OPTPIPE_INLINE V of(V a, V b) { return choose(equal(a, a), choose(equal(b, b), vmin(a, b), b), a); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a < b ? a : b; }
};
struct Eq {
    static OPTPIPE_INLINE V of(V a, V b) { return truth(equal(a, b)); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a == b; }
};
struct Ne {
    static OPTPIPE_INLINE V of(V a, V b) { return set1(1.0f) - truth(equal(a, b)); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a != b; }
};
struct Lt {
    static OPTPIPE_INLINE V of(V a, V b) { return truth(less(a, b)); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a < b; }
};
struct Le {
    static OPTPIPE_INLINE V of(V a, V b) { return vmax(truth(less(a, b)), truth(equal(a, b))); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a <= b; }
};
struct Gt {
    static OPTPIPE_INLINE V of(V a, V b) { return truth(less(b, a)); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a > b; }
};
struct Ge {
    static OPTPIPE_INLINE V of(V a, V b) { return vmax(truth(less(b, a)), truth(equal(a, b))); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a >= b; }
};
struct And {
    static OPTPIPE_INLINE V of(V a, V b) { return nonzero(a) * nonzero(b); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a != 0 && b != 0; }
};
struct Or {
    static OPTPIPE_INLINE V of(V a, V b) { return vmax(nonzero(a), nonzero(b)); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a != 0 || b != 0; }
};
struct BitAnd {
    static OPTPIPE_INLINE V of(V a, V b) { return And::of(a, b); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a & b; }
};
struct BitOr {
    static OPTPIPE_INLINE V of(V a, V b) { return Or::of(a, b); }
    static OPTPIPE_INLINE int64_t of(int64_t a, int64_t b) { return a | b; }
};

static const char *check_unary(const Call &c) { return check_copy(c); }

/* Puts n floats where the result lies. */
static OPTPIPE_INLINE void put_floats(char *p, int32_t dtype, int64_t step, int64_t n, const float *from) {
    if ((const char *)from == p) return;
    for (int64_t k = 0; k < n; ++k) put_float(p, dtype, k * step, from[k]);
}

template <class F> static void unary(const Call &c, int thread, int threads) {
    const int operands[] = {1, 0};
    const Walk w = walk_over(c, operands, 2);
    each_run(w, thread, threads, [=](char **p, const int64_t *step, int64_t n) OPTPIPE_BODY {
        float in[RUN], room[RUN];
        const float *x = as_floats(p[1], w.dtype[1], step[1], n, in);
        float *y = w.dtype[0] == OPTPIPE_F32 && step[0] == 1 ? (float *)p[0] : room;
        for (int64_t k = 0; k < n; k += W) store_n(y + k, F::of(load_n(x + k, n - k)), n - k);
        put_floats(p[0], w.dtype[0], step[0], n, y);
    });
}

static const char *check_clamp(const Call &c) {
    return c.floats != 2 ? "takes a low and a high bound" : check_copy(c);
}

/* A bound of whole numbers; beyond 2^62 there is none. */
static OPTPIPE_INLINE int64_t whole_bound(double x) {
    const double end = 4611686018427387904.0;
    return x >= end ? INT64_MAX : x <= -end ? INT64_MIN : (int64_t)x;
}

static void clamp(const Call &c, int thread, int threads) {
    const int operands[] = {1, 0};
    const Walk w = walk_over(c, operands, 2);
    const float low = (float)c.f[0], high = (float)c.f[1];
    const bool whole = !is_float(w.dtype[0]) && !is_float(w.dtype[1]);
    const int64_t least_whole = whole_bound(c.f[0]), most_whole = whole_bound(c.f[1]);
    each_run(w, thread, threads, [=](char **p, const int64_t *step, int64_t n) OPTPIPE_BODY {
        for (int64_t k = 0; k < n; ++k) {
            if (whole) {
                const int64_t x = int_at(p[1], w.dtype[1], k * step[1]);
                put_int(p[0], w.dtype[0], k * step[0], least(most(x, least_whole), most_whole));
                continue;
            }
            const float x = float_at(p[1], w.dtype[1], k * step[1]);
            put_float(p[0], w.dtype[0], k * step[0], x < low ? low : x > high ? high : x);
        }
    });
}

static const char *check_binary(const Call &c) {
    if (c.n != 3) return sentence("takes 3 operands, got %d", c.n);
    if (c.has(0) + c.has(1) + c.floats != 2) return "takes two operands, or one and a number";
    for (int k = 0; k < 2; ++k)
        if (const char *wrong = c.has(k) ? check_like(c, k, 2) : nullptr) return wrong;
    return check_written(c, 2);
}

/* n elements of an operand, or the scalar n times. */
static OPTPIPE_INLINE const float *floats_or(float scalar, const Walk &w, int place, char **p, const int64_t *step,
                                             int64_t n, float *room) {
    if (place >= 0) return as_floats(p[place], w.dtype[place], step[place], n, room);
    for (int64_t k = 0; k < n; ++k) room[k] = scalar;
    return room;
}
static OPTPIPE_INLINE int64_t int_or(int64_t scalar, const Walk &w, int place, char **p, const int64_t *step, int64_t k) {
    return place >= 0 ? int_at(p[place], w.dtype[place], k * step[place]) : scalar;
}

/* Whether a number is an int64 that a double holds exactly. */
static OPTPIPE_INLINE bool is_whole(double x) {
    return x > -9007199254740992.0 && x < 9007199254740992.0 && (double)(int64_t)x == x;
}

template <class F, bool whole_numbers = true> static void binary(const Call &c, int thread, int threads) {
    const int first = c.has(0) ? 1 : -1, second = !c.has(1) ? -1 : first < 0 ? 1 : 2;
    const int operands[] = {2, c.has(0) ? 0 : 1, 1};
    const Walk w = walk_over(c, operands, 1 + c.has(0) + c.has(1));
    const double given = c.floats > 0 ? c.f[0] : 0.0;
    const float scalar = (float)given;
    bool whole = whole_numbers && is_whole(given);
    for (int k = 1; k < w.count; ++k) whole = whole && !is_float(w.dtype[k]);
    each_run(w, thread, threads, [=](char **p, const int64_t *step, int64_t n) OPTPIPE_BODY {
        if constexpr (whole_numbers) {
            if (whole) {
                const int64_t number = (int64_t)given;
                for (int64_t k = 0; k < n; ++k)
                    put_int(p[0], w.dtype[0], k * step[0],
                            F::of(int_or(number, w, first, p, step, k), int_or(number, w, second, p, step, k)));
                return;
            }
        }
        float left[RUN], right[RUN], room[RUN];
        const float *a = floats_or(scalar, w, first, p, step, n, left), *b = floats_or(scalar, w, second, p, step, n, right);
        float *y = w.dtype[0] == OPTPIPE_F32 && step[0] == 1 ? (float *)p[0] : room;
        for (int64_t k = 0; k < n; k += W) store_n(y + k, F::of(load_n(a + k, n - k), load_n(b + k, n - k)), n - k);
        put_floats(p[0], w.dtype[0], step[0], n, y);
    });
}

static const char *check_where(const Call &c) {
    if (c.n != 4) return sentence("takes 4 operands, got %d", c.n);
    if (!c.has(0) || c.has(1) + c.has(2) + c.floats != 2) return "takes a condition and two operands, or one and a number";
    for (int k = 0; k < 3; ++k)
        if (const char *wrong = c.has(k) ? check_like(c, k, 3) : nullptr) return wrong;
    return check_written(c, 3);
}

static void where(const Call &c, int thread, int threads) {
    const int yes = c.has(1) ? 2 : -1, no = !c.has(2) ? -1 : yes < 0 ? 2 : 3;
    const int operands[] = {3, 0, c.has(1) ? 1 : 2, 2};
    const Walk w = walk_over(c, operands, 2 + c.has(1) + c.has(2));
    const double scalar = c.floats > 0 ? c.f[0] : 0.0;
    const bool whole = !is_float(w.dtype[0]);
    each_run(w, thread, threads, [=](char **p, const int64_t *step, int64_t n) OPTPIPE_BODY {
        for (int64_t k = 0; k < n; ++k) {
            const int place = int_at(p[1], w.dtype[1], k * step[1]) != 0 ? yes : no;
            if (whole)
                put_int(p[0], w.dtype[0], k * step[0], int_or((int64_t)scalar, w, place, p, step, k));
            else
                put_float(p[0], w.dtype[0], k * step[0],
                          place < 0 ? (float)scalar : float_at(p[place], w.dtype[place], k * step[place]));
        }
    });
}

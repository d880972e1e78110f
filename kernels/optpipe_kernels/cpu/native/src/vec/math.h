/* Functions of a vector that every level shares, written on its vector layer. */

/* e^x. Range reduction to r = x − n·ln 2, |r| ≤ ln 2 / 2, in two parts, then a polynomial of degree 7 (Taylor's
 * coefficients are within 1e-8 here). At most 2 ulp from −87 to 88; below it 0, above it +∞; NaN stays NaN. */
static OPTPIPE_INLINE V vexp(V x) {
    const V low = set1(-87.33654f), high = set1(88.72283f);
    const V held = vmin(high, vmax(low, x));
    const V n = nearest(held * set1(1.44269504f));
    V r = fma(n, set1(-0.693359375f), held);
    r = fma(n, set1(2.12194440e-4f), r);
    V p = set1(1.0f / 5040.0f);
    p = fma(p, r, set1(1.0f / 720.0f));
    p = fma(p, r, set1(1.0f / 120.0f));
    p = fma(p, r, set1(1.0f / 24.0f));
    p = fma(p, r, set1(1.0f / 6.0f));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    /* 2^n in two factors, because 2^128 is not a float and e^88.7 is. */
    const I half = to_int(down(n * set1(0.5f))), rest = addi(to_int(n), negate(half));
    V y = p * as_float(shift_left<23>(addi(half, seti(127)))) * as_float(shift_left<23>(addi(rest, seti(127))));
    y = choose(less(x, low), zero(), y);
    y = choose(less(high, x), set1(__builtin_inff()), y);
    return choose(equal(x, x), y, x);
}

/* e^x of x ≤ 0 for a softmax, in half the operations: 2^n·2^r with n + r = x·log₂e, |r| ≤ ½, and a polynomial of degree 5
 * for 2^r (minimax, 1 at 0, within 1e-7). Relative error at most (3 + |x|)·2^-24; 0 below −87.7; NaN stays NaN. */
static OPTPIPE_INLINE V vexp_below(V x) {
    const V log2e = set1(1.44269504f), n = nearest(x * log2e), r = fma(x, log2e, zero() - n);
    V p = set1(0.001326472724722541f);
    p = fma(p, r, set1(0.009671512688162732f));
    p = fma(p, r, set1(0.05550733743574093f));
    p = fma(p, r, set1(0.24022242084634943f));
    p = fma(p, r, set1(0.6931469775987171f));
    return scale_down(fma(p, r, set1(1.0f)), n);
}

static OPTPIPE_INLINE V sigmoid(V x) { return set1(1.0f) / (set1(1.0f) + vexp(zero() - x)); }

/* (1 − e^−2|x|) / (1 + e^−2|x|) with the sign of x, and x − x³/3 + 2x⁵/15 − 17x⁷/315 near 0 where that cancels. */
static OPTPIPE_INLINE V vtanh(V x) {
    const V a = vabs(x), e = vexp(a * set1(-2.0f)), square = x * x;
    const V far = (set1(1.0f) - e) / (set1(1.0f) + e);
    V near = fma(square, set1(62.0f / 2835.0f), set1(-17.0f / 315.0f));
    near = fma(near, square, set1(2.0f / 15.0f));
    near = fma(near, square, set1(-1.0f / 3.0f));
    near = fma(near * square, a, a);
    const V magnitude = choose(less(a, set1(0.3f)), near, far);
    return choose(less(x, zero()), zero() - magnitude, magnitude);
}

/* 1 − e^(−x²)·polynomial in 1/(1 + 0.3275911·|x|), with the sign of x; absolute error at most 1.5e-7 (and 5e-7 with
 * float's rounding). Source: Abramowitz and Stegun, 7.1.26. */
static OPTPIPE_INLINE V verf(V x) {
    const V a = vabs(x), t = set1(1.0f) / fma(a, set1(0.3275911f), set1(1.0f));
    V p = set1(1.061405429f);
    p = fma(p, t, set1(-1.453152027f));
    p = fma(p, t, set1(1.421413741f));
    p = fma(p, t, set1(-0.284496736f));
    p = fma(p, t, set1(0.254829592f));
    const V magnitude = set1(1.0f) - p * t * vexp(zero() - a * a);
    return choose(less(x, zero()), zero() - magnitude, magnitude);
}

/* The activations of optpipe/dialect/activations.py in its order; NONE leaves x as it is. */
enum Activation { NONE = 0, SILU = 1, GELU = 2, GELU_TANH = 3, RELU = 4, RELU2 = 5, SIGMOID = 6, TANH = 7, ACTIVATIONS = 8 };

static OPTPIPE_INLINE V activate(int64_t kind, V x) {
    switch (kind) {
    case SILU: return x * sigmoid(x);
    case GELU: return x * set1(0.5f) * (set1(1.0f) + verf(x * set1(0.70710678f)));
    case GELU_TANH: {
        const V inner = set1(0.79788456f) * fma(set1(0.044715f) * x * x, x, x);
        return x * set1(0.5f) * (set1(1.0f) + vtanh(inner));
    }
    case RELU: return vmax(zero(), x);
    case RELU2: {
        const V r = vmax(zero(), x);
        return r * r;
    }
    case SIGMOID: return sigmoid(x);
    case TANH: return vtanh(x);
    default: return x;
    }
}

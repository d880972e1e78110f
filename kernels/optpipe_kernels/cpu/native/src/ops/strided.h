/* Walking tensors of any strides and types: what the generic ops share.
 *
 * A walk goes through the elements of its first operand (the result) in row-major order, in runs along the last
 * dimension; every other operand has the same sizes, with stride 0 where it broadcasts. Runs are handed out in
 * pieces of at most RUN elements, converted to float or int64 on the way in and back on the way out.
 */

enum { RUN = 256, WALKED = 5 };

struct Walk {
    int count, rank; /* operands; dimensions after merging */
    int64_t size[OPTPIPE_MAX_RANK], stride[WALKED][OPTPIPE_MAX_RANK];
    char *data[WALKED];
    int32_t dtype[WALKED];
};

static OPTPIPE_INLINE bool is_float(int32_t dtype) { return dtype <= OPTPIPE_F16; }

/* Dimensions that lie one after the other in every operand become one; dimensions of one element go. */
static Walk walk_over(const Call &c, const int *operands, int count) {
    Walk w;
    w.count = count;
    w.rank = 0;
    const optpipe_tensor &lead = c.t[operands[0]];
    for (int k = 0; k < count; ++k) {
        w.data[k] = (char *)c.t[operands[k]].data;
        w.dtype[k] = c.t[operands[k]].dtype;
    }
    for (int d = 0; d < lead.rank; ++d) {
        if (lead.size[d] == 1) continue;
        bool joins = w.rank > 0;
        for (int k = 0; joins && k < count; ++k)
            joins = w.stride[k][w.rank - 1] == lead.size[d] * c.stride(operands[k], d);
        if (joins) {
            w.size[w.rank - 1] *= lead.size[d];
        } else {
            w.size[w.rank++] = lead.size[d];
        }
        for (int k = 0; k < count; ++k) w.stride[k][w.rank - 1] = c.stride(operands[k], d);
    }
    if (w.rank == 0) {
        w.rank = 1;
        w.size[0] = 1;
        for (int k = 0; k < count; ++k) w.stride[k][0] = 0;
    }
    return w;
}

/* On a body that each_run calls: no symbol of its own may be left for the linker to merge. */
#define OPTPIPE_BODY __attribute__((always_inline))

/* body(pointers, steps, n): n elements, operand k's at pointers[k], steps[k] elements apart. */
template <class Body> static OPTPIPE_INLINE void each_run(const Walk &w, int thread, int threads, Body &&body) {
    const int last = w.rank - 1;
    int64_t rows = 1;
    for (int d = 0; d < last; ++d) rows *= w.size[d];
    const int64_t pieces = (w.size[last] + RUN - 1) / RUN;
    const Range work = split(rows * pieces, 1, thread, threads);
    int64_t steps[WALKED];
    for (int k = 0; k < w.count; ++k) steps[k] = w.stride[k][last];
    for (int64_t at = work.begin; at < work.end; ++at) {
        const int64_t begin = at % pieces * RUN;
        int64_t row = at / pieces, offset[WALKED];
        for (int k = 0; k < w.count; ++k) offset[k] = begin * steps[k];
        for (int d = last - 1; d >= 0; --d) {
            const int64_t index = row % w.size[d];
            row /= w.size[d];
            for (int k = 0; k < w.count; ++k) offset[k] += index * w.stride[k][d];
        }
        char *pointers[WALKED];
        for (int k = 0; k < w.count; ++k) pointers[k] = w.data[k] + offset[k] * item_bytes(w.dtype[k]);
        body(pointers, steps, least(RUN, w.size[last] - begin));
    }
}

static OPTPIPE_INLINE float float_at(const char *p, int32_t dtype, int64_t k) {
    switch (dtype) {
    case OPTPIPE_F32: return ((const float *)p)[k];
    case OPTPIPE_BF16: {
        float lanes[W];
        store(lanes, load_bf16_n((const uint16_t *)p + k, 1));
        return lanes[0];
    }
    case OPTPIPE_F16: {
        float lanes[W];
        store(lanes, load_f16_n((const uint16_t *)p + k, 1));
        return lanes[0];
    }
    case OPTPIPE_I64: return (float)((const int64_t *)p)[k];
    case OPTPIPE_I32: return (float)((const int32_t *)p)[k];
    case OPTPIPE_I8: return (float)((const int8_t *)p)[k];
    case OPTPIPE_BOOL: return ((const uint8_t *)p)[k] != 0 ? 1.0f : 0.0f;
    default: return (float)((const uint8_t *)p)[k];
    }
}

static OPTPIPE_INLINE int64_t int_at(const char *p, int32_t dtype, int64_t k) {
    switch (dtype) {
    case OPTPIPE_I64: return ((const int64_t *)p)[k];
    case OPTPIPE_I32: return ((const int32_t *)p)[k];
    case OPTPIPE_I8: return ((const int8_t *)p)[k];
    case OPTPIPE_BOOL: return ((const uint8_t *)p)[k] != 0;
    case OPTPIPE_U8: return ((const uint8_t *)p)[k];
    default: return (int64_t)float_at(p, dtype, k);
    }
}

/* n elements as floats: where they lie when they already are, else in `room`. */
static OPTPIPE_INLINE const float *as_floats(const char *p, int32_t dtype, int64_t step, int64_t n, float *room) {
    if (dtype == OPTPIPE_F32 && step == 1) return (const float *)p;
    for (int64_t k = 0; k < n; ++k) room[k] = float_at(p, dtype, k * step);
    return room;
}

static OPTPIPE_INLINE void put_float(char *p, int32_t dtype, int64_t k, float x) {
    switch (dtype) {
    case OPTPIPE_F32: ((float *)p)[k] = x; break;
    case OPTPIPE_BF16: store_bf16_n((uint16_t *)p + k, set1(x), 1); break;
    case OPTPIPE_I64: ((int64_t *)p)[k] = (int64_t)x; break;
    case OPTPIPE_I32: ((int32_t *)p)[k] = (int32_t)x; break;
    case OPTPIPE_I8: ((int8_t *)p)[k] = (int8_t)x; break;
    case OPTPIPE_BOOL: ((uint8_t *)p)[k] = x != 0.0f; break;
    default: ((uint8_t *)p)[k] = (uint8_t)x; break;
    }
}

static OPTPIPE_INLINE void put_int(char *p, int32_t dtype, int64_t k, int64_t x) {
    switch (dtype) {
    case OPTPIPE_F32: ((float *)p)[k] = (float)x; break;
    case OPTPIPE_BF16: store_bf16_n((uint16_t *)p + k, set1((float)x), 1); break;
    case OPTPIPE_I64: ((int64_t *)p)[k] = x; break;
    case OPTPIPE_I32: ((int32_t *)p)[k] = (int32_t)x; break;
    case OPTPIPE_I8: ((int8_t *)p)[k] = (int8_t)x; break;
    case OPTPIPE_BOOL: ((uint8_t *)p)[k] = x != 0; break;
    default: ((uint8_t *)p)[k] = (uint8_t)x; break;
    }
}

/* NULL when operand k has the sizes of operand `like` and a type the walk writes (float16 is read only). */
static const char *check_like(const Call &c, int k, int like) {
    const optpipe_tensor &a = c.t[k], &b = c.t[like];
    if (a.rank != b.rank) return sentence("operands %d and %d have %d and %d dimensions", k, like, a.rank, b.rank);
    for (int d = 0; d < a.rank; ++d)
        if (a.size[d] != b.size[d])
            return sentence("operands %d and %d have %lld and %lld elements along dimension %d", k, like,
                            (long long)a.size[d], (long long)b.size[d], d);
    return nullptr;
}
static const char *check_written(const Call &c, int k) {
    return c.t[k].dtype == OPTPIPE_F16 ? "no op writes float16" : nullptr;
}

/* The first n lanes of x, zeros after them. */
static OPTPIPE_INLINE V first_lanes(V x, int64_t n) {
    float lanes[W];
    store(lanes, x);
    return load_n(lanes, n);
}

/* How the paged cache lies in memory, and the ops that write it.
 *
 * An operand says [P, block, H, D]. Let S = block and E = D, rounded up to 16. A block holds, head by head,
 *
 *     float32     keys    [D][S]           a token's key is a column: 16 tokens' scores are one vector
 *                 values  [S][E]           a token's value is a row
 *     bfloat16    keys    [⌈D/2⌉][S][2]    two channels of a token, or two tokens of a channel, lie together
 *                 values  [S/2][E][2]      for products of pairs (vec/pairs.h)
 *     int8        keys    [⌈D/4⌉][S][4]    four of them
 *                 values  [S/4][E][4]      for dot products of bytes (vec/dot.h)
 *                 scales  [S] f32          one a token
 *
 * int8: a token and head's numbers ÷ their largest / 127, and 128 added, so that a byte has no sign (vec/dot.h).
 *
 * kv_write(k, v, slots, k_cache, v_cache)
 * rope_kv_write(q?, k, v, cos, sin, slots, q_out?, k_cache, v_cache) | interleaved
 *
 * k, v [T, H, D]; slots [T], block · index + row, negative for none; a slot past the cache fails the step.
 */

struct Cache {
    char *data;
    int32_t dtype;
    int64_t blocks, block, heads, width;
    int64_t slots, columns;              /* S, E */
    int64_t item, head_bytes, block_bytes;
    bool keys;

    /* One head of one block. */
    OPTPIPE_INLINE char *head(int64_t at, int64_t h) const { return data + at * block_bytes + h * head_bytes; }
    /* How many numbers that meet in one product lie together. */
    OPTPIPE_INLINE int64_t together() const { return dtype == OPTPIPE_I8 ? 4 : dtype == OPTPIPE_BF16 ? 2 : 1; }
    /* Channels that a slot takes. */
    OPTPIPE_INLINE int64_t rows() const { return keys ? round_up(width, together()) : columns; }
    OPTPIPE_INLINE float *scales(char *head) const { return (float *)(head + rows() * slots * item); }
};

static OPTPIPE_INLINE Cache cache_of(const Call &c, int k, bool keys) {
    Cache it;
    it.data = c.at<char>(k);
    it.dtype = c.t[k].dtype;
    it.blocks = c.size(k, 0);
    it.block = c.size(k, 1);
    it.heads = c.size(k, 2);
    it.width = c.size(k, 3);
    it.slots = round_up(it.block, 16);
    it.columns = round_up(it.width, 16);
    it.item = item_bytes(it.dtype);
    it.keys = keys;
    it.head_bytes = it.slots * it.rows() * it.item + (it.dtype == OPTPIPE_I8 ? it.slots * 4 : 0);
    it.block_bytes = round_up(it.head_bytes * it.heads, 64);
    return it;
}

static const char *check_cache(const Call &c, int k) {
    const optpipe_tensor &it = c.t[k];
    if (it.rank != 4) return sentence("operand %d must be a cache [P, block, H, D]", k);
    if (it.dtype != OPTPIPE_F32 && it.dtype != OPTPIPE_BF16 && it.dtype != OPTPIPE_I8)
        return sentence("operand %d must be a cache of f32, bf16 or i8", k);
    return nullptr;
}

/* n numbers as bfloat16, two of them every `step` words; the last pair is filled up with zero. */
static OPTPIPE_INLINE void put_pairs(const float *x, int64_t n, uint32_t *to, int64_t step) {
    uint32_t pairs[W / 2];
    for (int64_t d = 0; d < n; d += W) {
        store_bf16((uint16_t *)pairs, load_n(x + d, n - d));
        for (int64_t k = 0; k < least(W / 2, (n - d + 1) / 2); ++k) to[(d / 2 + k) * step] = pairs[k];
    }
}

/* n numbers as codes, number d to byte d / group · step + d % group · near; their scale. */
static OPTPIPE_INLINE float put_codes(const float *x, int64_t n, uint8_t *to, int64_t group, int64_t step, int64_t near) {
    V top = zero(), odd = zero();
    for (int64_t d = 0; d < n; d += W) {
        const V it = load_n(x + d, n - d);
        top = vmax(top, vabs(it));
        odd = odd + (it - it);
    }
    const float most_of_all = largest(top), inverse = most_of_all > 0.0f ? 127.0f / most_of_all : 0.0f;
    int8_t codes[W];
    for (int64_t d = 0; d < n; d += W) {
        store_i8(codes, load_n(x + d, n - d) * set1(inverse));
        for (int64_t k = 0; k < least(W, n - d); ++k)
            to[(d + k) / group * step + (d + k) % group * near] = (uint8_t)(codes[k] ^ 0x80);
    }
    return most_of_all * (1.0f / 127.0f) + sum(odd);
}

static OPTPIPE_INLINE void put_key(const Cache &cache, int64_t slot, int64_t h, const float *x) {
    char *head = cache.head(slot / cache.block, h);
    const int64_t row = slot % cache.block, n = cache.width;
    if (cache.dtype == OPTPIPE_I8)
        cache.scales(head)[row] = put_codes(x, n, (uint8_t *)head + row * 4, 4, cache.slots * 4, 1);
    else if (cache.dtype == OPTPIPE_BF16)
        put_pairs(x, n, (uint32_t *)head + row, cache.slots);
    else
        for (int64_t d = 0; d < n; ++d) ((float *)head)[d * cache.slots + row] = x[d];
}
static OPTPIPE_INLINE void put_value(const Cache &cache, int64_t slot, int64_t h, const float *x) {
    char *head = cache.head(slot / cache.block, h);
    const int64_t row = slot % cache.block, n = cache.width, columns = cache.columns;
    if (cache.dtype == OPTPIPE_I8)
        cache.scales(head)[row] = put_codes(x, n, (uint8_t *)head + row / 4 * columns * 4 + row % 4, 1, 4, 0);
    else if (cache.dtype == OPTPIPE_BF16)
        for (int64_t d = 0; d < n; d += W)
            store_every_other((uint16_t *)head + (row / 2 * columns + d) * 2 + row % 2, load_n(x + d, n - d), n - d);
    else
        memcpy((float *)head + row * columns, x, (size_t)n * 4);
}

/* The slot of a token, or −1 where there is none. */
static OPTPIPE_INLINE int64_t slot_of(const Call &c, int slots, int64_t t, const Cache &cache) {
    const int64_t slot = int_at(c.at<char>(slots), c.t[slots].dtype, t * c.stride(slots, 0));
    if (slot < cache.blocks * cache.block) return slot;
    c.fail("a slot lies outside the cache");
    return -1;
}

static const char *check_written_heads(const Call &c, int k, int slots, int cache) {
    const char *wrong = check_heads(c, k);
    if (wrong == nullptr) wrong = check_cache(c, cache);
    if (wrong != nullptr) return wrong;
    if (c.size(k, 1) != c.size(cache, 2) || c.size(k, 2) != c.size(cache, 3))
        return sentence("operand %d and its cache disagree about heads or their width", k);
    if (c.t[slots].rank != 1 || is_float(c.t[slots].dtype) || c.size(slots, 0) != c.size(k, 0))
        return "slots must be whole numbers, one a token";
    return nullptr;
}

static const char *check_kv_write(const Call &c) {
    if (c.n != 5) return "takes k, v, slots, k_cache and v_cache";
    const char *wrong = check_written_heads(c, 0, 2, 3);
    return wrong != nullptr ? wrong : check_written_heads(c, 1, 2, 4);
}

static void kv_write(const Call &c, int thread, int threads) {
    const Cache keys = cache_of(c, 3, true), values = cache_of(c, 4, false);
    const Range rows = split(c.size(0, 0) * keys.heads, 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t t = r / keys.heads, h = r % keys.heads, slot = slot_of(c, 2, t, keys);
        if (slot < 0) continue;
        put_key(keys, slot, h, c.at<float>(0) + t * c.stride(0, 0) + h * c.stride(0, 1));
        put_value(values, slot, h, c.at<float>(1) + t * c.stride(1, 0) + h * c.stride(1, 1));
    }
}

static const char *check_rope_kv_write(const Call &c) {
    if (c.n != 9 || c.ints != 1) return "takes q?, k, v, cos, sin, slots, q_out?, k_cache, v_cache and interleaved";
    const char *wrong = check_written_heads(c, 1, 5, 7);
    if (wrong == nullptr) wrong = check_written_heads(c, 2, 5, 8);
    if (wrong == nullptr) wrong = check_angles(c, 1, 3);
    if (wrong == nullptr && c.has(0) != c.has(6)) wrong = "q and its result come together";
    if (wrong != nullptr || !c.has(0)) return wrong;
    wrong = check_heads(c, 0);
    if (wrong == nullptr) wrong = check_heads(c, 6);
    if (wrong == nullptr) wrong = check_like(c, 6, 0);
    return wrong != nullptr ? wrong : check_angles(c, 0, 3);
}

/* Rows are the heads of q, then those of k with their v, token by token. */
static void rope_kv_write(const Call &c, int thread, int threads) {
    const Cache keys = cache_of(c, 7, true), values = cache_of(c, 8, false);
    const int64_t queries = c.has(0) ? c.size(0, 1) : 0, each = queries + keys.heads;
    const int64_t turned = c.size(3, 1);
    float *room = (float *)c.scratch(thread, (size_t)round_up(keys.width, 16) * 4);
    const Range rows = split(c.size(1, 0) * each, 1, thread, threads);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const int64_t t = r / each, h = r % each - queries;
        const float *cos = c.at<float>(3) + t * c.stride(3, 0), *sin = c.at<float>(4) + t * c.stride(4, 0);
        if (h < 0) {
            const int64_t q = h + queries;
            rope_row(c.at<float>(0) + t * c.stride(0, 0) + q * c.stride(0, 1), cos, sin, turned, c.size(0, 2), c.i[0] != 0,
                     c.at<float>(6) + t * c.stride(6, 0) + q * c.stride(6, 1));
            continue;
        }
        const int64_t slot = slot_of(c, 5, t, keys);
        if (slot < 0) continue;
        rope_row(c.at<float>(1) + t * c.stride(1, 0) + h * c.stride(1, 1), cos, sin, turned, keys.width, c.i[0] != 0, room);
        put_key(keys, slot, h, room);
        put_value(values, slot, h, c.at<float>(2) + t * c.stride(2, 0) + h * c.stride(2, 1));
    }
}

/* How the linear kernels store a weight [N, K], the same at every instruction set.
 *
 *     ┌ head, 64 bytes ┬ tile 0 ┬ tile 1 ┬ …   16 outputs a tile, ⌈N/16⌉ tiles, each a multiple of 64 bytes
 *
 * A tile of 4 or 8 bits, K rounded up to blocks of 32 inputs:
 *
 *     ┌ block 0 ┬ block 1 ┬ … ┬ scales [groups][16] ┬ minima [groups][16]      f16, or f32 where f16 is not exact
 *     4 bits: 4 × 64 bytes. Byte 4·n + c of vector j: low nibble input 8·j + c of output n, high nibble input 8·j + 4 + c
 *     8 bits: 8 × 64 bytes. Byte 4·n + c of vector j: input 4·j + c of output n
 *
 * A tile of 16 bits (bf16), K rounded up to 2: [K/2][16][2]. A tile of 32 bits (f32): [K][16].
 *
 * A gated weight joins two matrices [I, K]: even tiles are the gate's, odd tiles the other's.
 *
 * pack(weight, scale?, minimum?, blob) | first step: rows of an artifact's tensor to places of a blob whose head is
 * written and whose other bytes are zero. Row n goes to tile first/16 + step·(n/16): step 1, or 2 for gated.
 */

enum { PACKED_MAGIC = 0x31504f43 /* "COP1" */, TILE = 16 };

struct Head {
    int32_t magic, bits;
    int32_t minimum, wide; /* whether there are minima; whether scales are f32 */
    int64_t rows, inputs;  /* N, K */
    int64_t group;         /* inputs a scale; 0 for float weights */
    int64_t tile_bytes, bytes;
};

struct Packed {
    const Head *head;
    uint8_t *tiles;
    int64_t blocks, groups; /* of 32 inputs; of inputs that share a scale */
    int64_t scales_at, minima_at;

    OPTPIPE_INLINE const uint8_t *tile(int64_t t) const { return tiles + t * head->tile_bytes; }
    OPTPIPE_INLINE int64_t scale_bytes() const { return head->wide ? 4 * TILE : 2 * TILE; }
    OPTPIPE_INLINE int64_t count() const { return (head->rows + TILE - 1) / TILE; }
};

static OPTPIPE_INLINE Packed packed(void *blob) {
    Packed it = {(const Head *)blob, (uint8_t *)blob + 64, 0, 0, 0, 0};
    if (it.head->group == 0) return it;
    it.blocks = quantized_groups(it.head->inputs);
    it.groups = (it.head->inputs + it.head->group - 1) / it.head->group;
    it.scales_at = it.blocks * 64 * it.head->bits;
    it.minima_at = it.scales_at + it.groups * it.scale_bytes();
    return it;
}

/* W scales or minima that begin at output `lane` of group g. */
static OPTPIPE_INLINE V load_scales(const uint8_t *p, bool wide, int64_t g, int lane) {
    return wide ? load((const float *)p + g * TILE + lane) : load_f16((const uint16_t *)p + g * TILE + lane);
}

/* Whether a head says what its own fields imply, so that a kernel that trusts it stays inside `bytes` bytes. */
static bool head_is_sound(const Head &head, int64_t bytes) {
    const bool codes = head.bits == 4 || head.bits == 8, values = head.bits == 16 || head.bits == 32;
    const int64_t limit = (int64_t)1 << 31, inputs = head.inputs, group = head.group;
    if (head.magic != PACKED_MAGIC || head.rows < 1 || head.rows > limit || inputs < 1 || inputs > limit) return false;
    if ((head.minimum | head.wide) & ~1 || !(values ? group == 0 : codes && group > 0 && group % 32 == 0)) return false;
    const int64_t scales = codes ? (inputs + group - 1) / group * TILE * (head.wide ? 4 : 2) * (1 + head.minimum) : 0;
    const int64_t rounded = codes ? round_up(inputs, 32) : head.bits == 16 ? round_up(inputs, 2) : inputs;
    const int64_t tile = round_up(rounded * TILE * head.bits / 8 + scales, 64);
    return head.tile_bytes == tile && head.bytes == 64 + (head.rows + TILE - 1) / TILE * tile && bytes >= head.bytes;
}

/* NULL when operand k is a blob of such a weight. */
static const char *check_packed(const Call &c, int k, int64_t rows, int64_t inputs, bool quantized) {
    const optpipe_tensor &w = c.t[k];
    if (w.rank != 1 || w.dtype != OPTPIPE_U8 || w.size[0] < 64 || (uintptr_t)w.data % 64 != 0)
        return sentence("operand %d must be a packed weight: u8 [bytes], aligned to 64 bytes", k);
    const Head &head = *(const Head *)w.data;
    if (!head_is_sound(head, w.size[0])) return sentence("operand %d is no packed weight, or a part of one", k);
    if (head.rows == rows && head.inputs == inputs && quantized == (head.group != 0)) return nullptr;
    return sentence("the weight is a packed [%lld, %lld] of %d bits, expected [%lld, %lld] of %s", (long long)head.rows,
                    (long long)head.inputs, head.bits, (long long)rows, (long long)inputs,
                    quantized ? "4 or 8 bits" : "bf16 or f32");
}

/* Eight codes of 4 bits, first to last in nibbles, to two quads in bytes: 76543210 → 73 62 51 40. */
static OPTPIPE_INLINE uint32_t spread_nibbles(uint32_t x) {
    x = (x | x << 8) & 0x00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f;
}
static OPTPIPE_INLINE uint32_t pair_quads(uint32_t word) { return spread_nibbles(word & 0xffff) | spread_nibbles(word >> 16) << 4; }

/* The codes of output `lane` from input k, a multiple of 8, to k + 7 as floats. */
static OPTPIPE_INLINE void eight_codes(const uint8_t *tile, int64_t bits, int64_t lane, int64_t k, float *to) {
    uint8_t bytes[8];
    if (bits == 4) {
        uint32_t pair;
        memcpy(&pair, tile + k / 8 * 64 + lane * 4, 4);
        const uint32_t lower = pair & 0x0f0f0f0f, upper = pair >> 4 & 0x0f0f0f0f;
        memcpy(bytes, &lower, 4);
        memcpy(bytes + 4, &upper, 4);
    } else {
        memcpy(bytes, tile + k / 4 * 64 + lane * 4, 4);
        memcpy(bytes + 4, tile + k / 4 * 64 + 64 + lane * 4, 4);
    }
    for (int c = 0; c < 8; ++c) to[c] = (float)bytes[c];
}

static float one_scale(const Packed &w, const uint8_t *scales, int64_t g, int64_t lane) {
    float held[TILE];
    for (int l = 0; l < TILE; l += W) store(held + l, load_scales(scales, w.head->wide != 0, g, l));
    return held[lane];
}

/* Output n's weights as floats [K]: for embeddings that share a tied head's blob. */
static void unpack_row(const Packed &w, int64_t n, float *out) {
    const uint8_t *tile = w.tile(n / TILE);
    const int64_t lane = n % TILE, inputs = w.head->inputs, bits = w.head->bits;
    for (int64_t k = 0; bits == 32 && k < inputs; ++k) memcpy(out + k, tile + (k * TILE + lane) * 4, 4);
    for (int64_t k = 0; bits == 16 && k < inputs; ++k) {
        uint32_t word = 0;
        memcpy((char *)&word + 2, tile + ((k / 2 * TILE + lane) * 2 + k % 2) * 2, 2);
        memcpy(out + k, &word, 4);
    }
    if (bits >= 16) return;
    const float middle = w.head->minimum ? 0.0f : bits == 4 ? 8.0f : 128.0f;
    for (int64_t g = 0; g < w.groups; ++g) {
        const V scale = set1(one_scale(w, tile + w.scales_at, g, lane));
        const V minimum = set1(w.head->minimum ? one_scale(w, tile + w.minima_at, g, lane) : 0.0f);
        const int64_t end = least((g + 1) * w.head->group, inputs);
        for (int64_t k = g * w.head->group; k < end; k += 16) {
            alignas(64) float codes[16];
            eight_codes(tile, bits, lane, k, codes);
            eight_codes(tile, bits, lane, k + 8, codes + 8); /* there: K is rounded up to 32 */
            for (int at = 0; at < 16 && k + at < end; at += W)
                store_n(out + k + at, (load(codes + at) - set1(middle)) * scale + minimum, end - k - at);
        }
    }
}

static const char *check_pack(const Call &c) {
    if (c.n != 4 || c.ints != 2) return "takes weight, scale?, minimum?, blob and 2 whole numbers";
    if (c.t[3].rank != 1 || c.t[3].dtype != OPTPIPE_U8 || c.size(3, 0) < 64) return "the blob must be u8 [bytes]";
    const Head &head = *c.at<Head>(3);
    if (!head_is_sound(head, c.size(3, 0))) return "the blob has no head, or lacks bytes";
    if (c.t[0].rank != 2 || c.stride(0, 1) != 1) return "the weight must be [N, K] with stride 1 along K";
    const int64_t columns = head.group != 0 ? head.inputs * head.bits / 32 : head.inputs;
    const int dtype = head.group != 0 ? OPTPIPE_I32 : head.bits == 16 ? OPTPIPE_BF16 : OPTPIPE_F32;
    if (c.size(0, 1) != columns || c.t[0].dtype != dtype)
        return sentence("the weight has %lld columns of type %d, expected %lld of type %d", (long long)c.size(0, 1),
                        c.t[0].dtype, (long long)columns, dtype);
    const int64_t last = c.i[0] / TILE + (c.i[0] % TILE + c.size(0, 0) - 1) / TILE * c.i[1];
    if (c.i[0] < 0 || c.i[1] < 1 || c.size(0, 0) < 1 || last >= (head.rows + TILE - 1) / TILE)
        return "the rows do not fit the blob";
    for (int k = 1; head.group != 0 && k < 2 + head.minimum; ++k) {
        const bool fits = c.has(k) && c.t[k].rank == 2 && c.size(k, 0) == c.size(0, 0) && c.stride(k, 1) == 1 &&
                          c.size(k, 1) == (head.inputs + head.group - 1) / head.group &&
                          c.t[k].dtype == (head.wide ? OPTPIPE_F32 : OPTPIPE_F16);
        if (!fits) return sentence("operand %d must be [N, groups] in the blob's type of scales", k);
    }
    return nullptr;
}

static void pack_row(const Call &c, const Packed &w, int64_t n) {
    const int64_t place = c.i[0] % TILE + n, lane = place % TILE;
    uint8_t *tile = (uint8_t *)w.tile(c.i[0] / TILE + place / TILE * c.i[1]);
    const int64_t inputs = w.head->inputs;
    if (w.head->bits == 32) {
        const float *from = c.at<float>(0) + n * c.stride(0, 0);
        for (int64_t k = 0; k < inputs; ++k) ((float *)tile)[k * TILE + lane] = from[k];
    } else if (w.head->bits == 16) {
        const uint16_t *from = c.at<uint16_t>(0) + n * c.stride(0, 0);
        for (int64_t k = 0; k < inputs; ++k) ((uint16_t *)tile)[(k / 2 * TILE + lane) * 2 + k % 2] = from[k];
    } else { /* words of 8 or 4 codes */
        const int32_t *from = c.at<int32_t>(0) + n * c.stride(0, 0);
        for (int64_t k = 0; k < c.size(0, 1); ++k) {
            const uint32_t word = w.head->bits == 4 ? pair_quads((uint32_t)from[k]) : (uint32_t)from[k];
            memcpy(tile + k * 64 + lane * 4, &word, 4);
        }
    }
    for (int64_t g = 0; g < w.groups; ++g)
        for (int k = 0; k < 1 + w.head->minimum; ++k) {
            const int64_t item = w.head->wide ? 4 : 2;
            const uint8_t *from = c.at<uint8_t>(1 + k) + (n * c.stride(1 + k, 0) + g) * item;
            memcpy(tile + (k ? w.minima_at : w.scales_at) + (g * TILE + lane) * item, from, (size_t)item);
        }
}

static void pack(const Call &c, int thread, int threads) {
    const Packed w = packed(c.at<uint8_t>(3));
    const Range rows = split(c.size(0, 0), TILE, thread, threads);
    for (int64_t n = rows.begin; n < rows.end; ++n) pack_row(c, w, n);
}

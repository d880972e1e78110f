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

/* NULL when operand k is a blob of such a weight. */
static const char *check_packed(const Call &c, int k, int64_t rows, int64_t inputs, bool quantized) {
    const optpipe_tensor &w = c.t[k];
    if (w.rank != 1 || w.dtype != OPTPIPE_U8 || w.size[0] < 64 || (uintptr_t)w.data % 64 != 0)
        return sentence("operand %d must be a packed weight: u8 [bytes], aligned to 64 bytes", k);
    const Head &head = *(const Head *)w.data;
    if (head.magic != PACKED_MAGIC || w.size[0] < head.bytes)
        return sentence("operand %d is no packed weight, or a part of one", k);
    if (head.rows == rows && head.inputs == inputs && quantized == (head.group != 0)) return nullptr;
    return sentence("the weight is a packed [%lld, %lld] of %d bits, expected [%lld, %lld] of %s", (long long)head.rows,
                    (long long)head.inputs, head.bits, (long long)rows, (long long)inputs,
                    quantized ? "4 or 8 bits" : "bf16 or f32");
}

/* Output n's weights as floats [K]: for embeddings that share a tied head's blob. */
static void unpack_row(const Packed &w, int64_t n, float *out) {
    const uint8_t *tile = w.tile(n / TILE);
    const int64_t lane = n % TILE, inputs = w.head->inputs, bits = w.head->bits;
    for (int64_t k = 0; k < inputs; k += W) {
        float part[W] = {};
        const int64_t held = least(W, inputs - k);
        for (int64_t c = 0; c < held; ++c) {
            const int64_t at = k + c;
            if (bits == 32) memcpy(part + c, tile + (at * TILE + lane) * 4, 4);
            if (bits == 16) {
                uint32_t word = 0;
                memcpy((char *)&word + 2, tile + ((at / 2 * TILE + lane) * 2 + at % 2) * 2, 2);
                memcpy(part + c, &word, 4);
            }
            if (bits == 8) part[c] = tile[at / 4 * 64 + lane * 4 + at % 4];
            if (bits == 4) part[c] = tile[at / 8 * 64 + lane * 4 + at % 4] >> (at % 8 / 4 * 4) & 15;
        }
        if (bits >= 16) {
            store_n(out + k, load(part), held);
            continue;
        }
        /* A vector never spans two groups: groups are multiples of 32. */
        const int64_t g = k / w.head->group;
        float scales[TILE], minima[TILE];
        for (int l = 0; l < TILE; l += W) {
            store(scales + l, load_scales(tile + w.scales_at, w.head->wide, g, l));
            if (w.head->minimum) store(minima + l, load_scales(tile + w.minima_at, w.head->wide, g, l));
        }
        const V codes = load(part), scale = set1(scales[lane]);
        const V value = w.head->minimum ? codes * scale + set1(minima[lane]) : (codes - set1(bits == 4 ? 8.0f : 128.0f)) * scale;
        store_n(out + k, value, held);
    }
}

static const char *check_pack(const Call &c) {
    if (c.n != 4 || c.ints != 2) return "takes weight, scale?, minimum?, blob and 2 whole numbers";
    if (c.t[3].rank != 1 || c.t[3].dtype != OPTPIPE_U8 || c.size(3, 0) < 64) return "the blob must be u8 [bytes]";
    const Head &head = *c.at<Head>(3);
    if (head.magic != PACKED_MAGIC || c.size(3, 0) < head.bytes) return "the blob has no head, or lacks bytes";
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
    } else if (w.head->bits == 8) {
        const uint8_t *from = (const uint8_t *)(c.at<int32_t>(0) + n * c.stride(0, 0));
        for (int64_t k = 0; k < inputs; ++k) tile[k / 4 * 64 + lane * 4 + k % 4] = from[k];
    } else {
        const uint8_t *from = (const uint8_t *)(c.at<int32_t>(0) + n * c.stride(0, 0));
        for (int64_t k = 0; k < inputs; ++k)
            tile[k / 8 * 64 + lane * 4 + k % 4] |= (uint8_t)((from[k / 2] >> (k % 2 * 4) & 15) << (k % 8 / 4 * 4));
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

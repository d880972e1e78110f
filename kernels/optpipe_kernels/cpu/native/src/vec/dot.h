/* Dot products of unsigned codes with signed activations, four along K at a time, exact in int32.
 *
 * A vector of codes U holds W outputs × 4 inputs: byte 4·n + c is output n's code for input c. A quad is four
 * activations, −127 … 127, the same for all outputs. For one output and a block of 32 inputs:
 *
 *     end(dot(dot(begin(o), w0, x0), w1, x1) …, o) = Σ (w − c)·x      o = offset(…), the same in every lane
 *
 * with c = 0 for a grid with a minimum and else the middle of the codes, 8 or 128; offset takes −8·Σx.
 * Dot<4> takes codes 0 … 15 and at most 8 quads, Dot<8> codes 0 … 255. */

template <int BITS> struct Dot;

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

#ifdef __AVX512VNNI__
typedef __m512i U;
static OPTPIPE_INLINE U load_codes(const uint8_t *p) { return _mm512_loadu_si512(p); }
static OPTPIPE_INLINE U low_nibbles(U w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static OPTPIPE_INLINE U high_nibbles(U w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
/* Not the intrinsic: GCC 12 copies the sum before each one, and runs out of registers. */
static OPTPIPE_INLINE I dot_quads(I sum, U w, int32_t quad) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(_mm512_set1_epi32(quad)));
    return sum;
}
#else
typedef __m256i U;
static OPTPIPE_INLINE U load_codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static OPTPIPE_INLINE U low_nibbles(U w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static OPTPIPE_INLINE U high_nibbles(U w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }
static OPTPIPE_INLINE I dot_quads(I sum, U w, int32_t quad) { return _mm256_dpbusd_avx_epi32(sum, w, _mm256_set1_epi32(quad)); }
#endif

/* VPDPBUSD does all of it. */
template <int BITS> struct Dot {
    typedef I Sum;
    static OPTPIPE_INLINE I offset(bool minimum, int32_t eight) {
        return minimum ? seti(0) : BITS == 4 ? seti(eight) : shift_left<4>(seti(eight));
    }
    static OPTPIPE_INLINE Sum begin(I offset) { return offset; }
    static OPTPIPE_INLINE Sum dot(Sum sum, U w, int32_t quad) { return dot_quads(sum, w, quad); }
    static OPTPIPE_INLINE I end(Sum sum, I) { return sum; }
};

#elif defined(__AVX2__)

typedef __m256i U;
static OPTPIPE_INLINE U load_codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static OPTPIPE_INLINE U low_nibbles(U w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static OPTPIPE_INLINE U high_nibbles(U w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }

/* VPMADDUBSW saturates at 2^15. Codes of 4 bits: a pair is at most 2 · 15 · 127 = 3,810 and eight of them 30,480. */
template <> struct Dot<4> {
    typedef __m256i Sum; /* 16 × int16: two halves of each output */
    static OPTPIPE_INLINE I offset(bool minimum, int32_t eight) { return seti(minimum ? 0 : eight); }
    static OPTPIPE_INLINE Sum begin(I) { return _mm256_setzero_si256(); }
    static OPTPIPE_INLINE Sum dot(Sum sum, U w, int32_t quad) {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, _mm256_set1_epi32(quad)));
    }
    static OPTPIPE_INLINE I end(Sum sum, I offset) {
        return _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), offset);
    }
};

/* Codes of 8 bits: |w − 128| · ±x, a pair at most 2 · 128 · 127 = 32,512. The 128 is taken off here, so a grid with a
 * minimum needs +128·Σx. */
template <> struct Dot<8> {
    typedef __m256i Sum;
    static OPTPIPE_INLINE I offset(bool minimum, int32_t eight) {
        return minimum ? negate(shift_left<4>(seti(eight))) : seti(0);
    }
    static OPTPIPE_INLINE Sum begin(I) { return _mm256_setzero_si256(); }
    static OPTPIPE_INLINE Sum dot(Sum sum, U w, int32_t quad) {
        const U centred = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        const U pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(_mm256_set1_epi32(quad), centred));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static OPTPIPE_INLINE I end(Sum sum, I offset) { return addi(sum, offset); }
};

#else

typedef uint8_t U __attribute__((vector_size(16)));
static OPTPIPE_INLINE U load_codes(const uint8_t *p) {
    U x;
    memcpy(&x, p, sizeof x);
    return x;
}
static OPTPIPE_INLINE U low_nibbles(U w) { return w & 15; }
static OPTPIPE_INLINE U high_nibbles(U w) { return w >> 4; }

/* Products of 16 bits, summed in 32: even and odd bytes of each output's four, as shifts and masks of its word. */
template <int BITS> struct Dot {
    typedef I Sum;
    static OPTPIPE_INLINE I offset(bool minimum, int32_t eight) {
        return minimum ? seti(0) : BITS == 4 ? seti(eight) : shift_left<4>(seti(eight));
    }
    static OPTPIPE_INLINE Sum begin(I offset) { return offset; }
    static OPTPIPE_INLINE Sum dot(Sum sum, U w, int32_t quad) {
        const I words = (I)w;
        sum += (words & 255) * (int32_t)(int8_t)quad;
        sum += (words >> 8 & 255) * (int32_t)(int8_t)(quad >> 8);
        sum += (words >> 16 & 255) * (int32_t)(int8_t)(quad >> 16);
        return sum + (words >> 24 & 255) * (quad >> 24);
    }
    static OPTPIPE_INLINE I end(Sum sum, I) { return sum; }
};

#endif

/* Products of bfloat16 pairs, summed in float32: 2·W multiplications an instruction where the processor has them, which
 * OPTPIPE_PAIRS says; elsewhere the few functions that attention needs, on widened values.
 *
 * A P is 2·W bfloat16 in W words; a word holds two neighbours, the first in its lower half.
 *
 * What differs from fma() on widened values: denormal inputs count as zero and denormal results become zero; each
 * step rounds to nearest, ties to even, whatever the thread's rounding mode; there are no exceptions. Values that
 * are no numbers, and infinities, go the usual way. narrow_pairs() and narrow_fast() round as store_bf16 does, but
 * a denormal float becomes zero.
 *
 * Source: Intel SDM volume 2, VDPBF16PS, VCVTNE2PS2BF16, VCVTNEPS2BF16. */
#ifdef __AVX512BF16__
#define OPTPIPE_PAIRS 1

typedef __m512i P;

static OPTPIPE_INLINE P load_pairs(const void *p) { return _mm512_loadu_si512(p); }
static OPTPIPE_INLINE void store_pairs(void *p, P x) { _mm512_storeu_si512(p, x); }
/* The same pair, the four bytes at p, in every word. */
static OPTPIPE_INLINE P set1_pair(const void *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

/* sum[i] + a[2i+1]·b[2i+1] + a[2i]·b[2i], in the processor's order. Not the intrinsic: GCC 12 copies the sum before each
 * one, and runs out of registers. */
static OPTPIPE_INLINE V dot_pairs(V sum, P a, P b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

/* 16 floats, and 16 after them, to 32 bfloat16 in the same order. */
static OPTPIPE_INLINE P narrow_pairs(V low, V high) { return (P)_mm512_cvtne2ps_pbh(high, low); }
static OPTPIPE_INLINE __m256i narrow_fast(V x) { return (__m256i)_mm512_cvtneps_pbh(x); }
/* As store_bf16, but a denormal float becomes zero. */
static OPTPIPE_INLINE void store_halves(uint16_t *p, V x) { _mm256_storeu_si256((__m256i *)p, narrow_fast(x)); }
/* The first of each pair, and zero beside it. */
static OPTPIPE_INLINE P first_of_pairs(P x) { return _mm512_and_si512(x, _mm512_set1_epi32(0xffff)); }

#else

/* Both widened: a word's lower half is the first. */
struct P {
    V first, second;
};

static OPTPIPE_INLINE V upper_half(I words) { return as_float(bits_and(words, seti(-65536))); }
static OPTPIPE_INLINE P widen_pairs(I words) { return {as_float(shift_left<16>(words)), upper_half(words)}; }
static OPTPIPE_INLINE P load_pairs(const void *p) { return widen_pairs(as_int(load((const float *)p))); }
static OPTPIPE_INLINE P set1_pair(const void *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return widen_pairs(seti(word));
}
static OPTPIPE_INLINE V dot_pairs(V sum, P a, P b) { return fma(a.first, b.first, fma(a.second, b.second, sum)); }
static OPTPIPE_INLINE void store_halves(uint16_t *p, V x) { store_bf16(p, x); }
static OPTPIPE_INLINE P first_of_pairs(P x) { return {x.first, zero()}; }
#endif

/* The first n of x, rounded, to every other bfloat16 from p on; what lies between them is not touched, for another
 * thread may be writing it. */
static OPTPIPE_INLINE void store_every_other(uint16_t *p, V x, int64_t n) {
#ifdef OPTPIPE_PAIRS
    const __mmask32 even = 0x55555555u & (n >= W ? ~0u : (1u << 2 * n) - 1);
    _mm512_mask_storeu_epi16(p, even, _mm512_cvtepu16_epi32(narrow_fast(x)));
#else
    uint16_t halves[W];
    store_bf16(halves, x);
    for (int64_t k = 0; k < W && k < n; ++k) p[2 * k] = halves[k];
#endif
}

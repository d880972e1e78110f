/* The vector layer on AVX-512: W = 16 floats. vec/portable.h says what each function means. */

typedef __m512 V;
typedef __m512i I;
typedef __mmask16 M;
static constexpr int W = 16;

static OPTPIPE_INLINE M first(int64_t n) { return n >= W ? M(0xffff) : M((1u << n) - 1); }

static OPTPIPE_INLINE V zero() { return _mm512_setzero_ps(); }
static OPTPIPE_INLINE V set1(float x) { return _mm512_set1_ps(x); }
static OPTPIPE_INLINE V load(const float *p) { return _mm512_loadu_ps(p); }
static OPTPIPE_INLINE V load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
static OPTPIPE_INLINE void store(float *p, V x) { _mm512_storeu_ps(p, x); }
static OPTPIPE_INLINE void store_n(float *p, V x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }

static OPTPIPE_INLINE V widen_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static OPTPIPE_INLINE __m256i narrow_bf16(V x) {
    const I bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const I quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const M nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(even, nan, quiet), 16));
}
static OPTPIPE_INLINE V load_bf16(const uint16_t *p) { return widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
static OPTPIPE_INLINE V load_bf16_n(const uint16_t *p, int64_t n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
static OPTPIPE_INLINE void store_bf16(uint16_t *p, V x) { _mm256_storeu_si256((__m256i *)p, narrow_bf16(x)); }
static OPTPIPE_INLINE void store_bf16_n(uint16_t *p, V x, int64_t n) { _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(x)); }
static OPTPIPE_INLINE V load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static OPTPIPE_INLINE V load_f16_n(const uint16_t *p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
static OPTPIPE_INLINE V load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
static OPTPIPE_INLINE V load_i8_n(const int8_t *p, int64_t n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}
static OPTPIPE_INLINE void store_i8(int8_t *p, V x) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}
static OPTPIPE_INLINE void store_i8_n(int8_t *p, V x, int64_t n) {
    _mm_mask_storeu_epi8(p, first(n), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

static OPTPIPE_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static OPTPIPE_INLINE V vmin(V a, V b) { return _mm512_min_ps(a, b); }
static OPTPIPE_INLINE V vmax(V a, V b) { return _mm512_max_ps(a, b); }
static OPTPIPE_INLINE V vabs(V a) { return _mm512_abs_ps(a); }
static OPTPIPE_INLINE V vsqrt(V a) { return _mm512_sqrt_ps(a); }
static OPTPIPE_INLINE V nearest(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static OPTPIPE_INLINE V down(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
static OPTPIPE_INLINE M less(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static OPTPIPE_INLINE M equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static OPTPIPE_INLINE V choose(M m, V yes, V no) { return _mm512_mask_blend_ps(m, no, yes); }
static OPTPIPE_INLINE bool any(M m) { return m != 0; }
static OPTPIPE_INLINE bool all(M m) { return m == 0xffff; }
static OPTPIPE_INLINE I to_int(V a) { return _mm512_cvtps_epi32(a); }
static OPTPIPE_INLINE V to_float(I a) { return _mm512_cvtepi32_ps(a); }
static OPTPIPE_INLINE V as_float(I a) { return _mm512_castsi512_ps(a); }
static OPTPIPE_INLINE I as_int(V a) { return _mm512_castps_si512(a); }
static OPTPIPE_INLINE I seti(int x) { return _mm512_set1_epi32(x); }
static OPTPIPE_INLINE I addi(I a, I b) { return _mm512_add_epi32(a, b); }
static OPTPIPE_INLINE I bits_and(I a, I b) { return _mm512_and_si512(a, b); }
static OPTPIPE_INLINE I negate(I a) { return _mm512_sub_epi32(_mm512_setzero_si512(), a); }
template <int n> static OPTPIPE_INLINE I shift_left(I a) { return _mm512_slli_epi32(a, n); }
static OPTPIPE_INLINE V scale_down(V a, V n) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, set1(-126.0f), _CMP_NLT_UQ), a, n);
}

static OPTPIPE_INLINE float sum(V x) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static OPTPIPE_INLINE float largest(V x) {
    const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

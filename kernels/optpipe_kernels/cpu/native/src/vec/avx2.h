/* The vector layer on AVX2 and FMA: W = 8 floats. vec/portable.h says what each function means. */

typedef __m256 V;
typedef __m256i I;
typedef __m256 M; /* all ones or all zeros a lane */
static constexpr int W = 8;

static OPTPIPE_INLINE I first(int64_t n) {
    const int count = n >= W ? W : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static OPTPIPE_INLINE V zero() { return _mm256_setzero_ps(); }
static OPTPIPE_INLINE V set1(float x) { return _mm256_set1_ps(x); }
static OPTPIPE_INLINE V load(const float *p) { return _mm256_loadu_ps(p); }
static OPTPIPE_INLINE V load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
static OPTPIPE_INLINE void store(float *p, V x) { _mm256_storeu_ps(p, x); }
static OPTPIPE_INLINE void store_n(float *p, V x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }

/* Short loads and stores of narrow types go through memory: AVX2 masks only 32-bit lanes. */
static OPTPIPE_INLINE __m128i short_load(const void *p, int64_t n, int64_t item) {
    char bytes[16] = {};
    memcpy(bytes, p, (size_t)((n < W ? n : W) * item));
    return _mm_loadu_si128((const __m128i *)bytes);
}
static OPTPIPE_INLINE void short_store(void *p, __m128i x, int64_t n, int64_t item) {
    char bytes[16];
    _mm_storeu_si128((__m128i *)bytes, x);
    memcpy(p, bytes, (size_t)((n < W ? n : W) * item));
}

static OPTPIPE_INLINE V widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
static OPTPIPE_INLINE __m128i narrow_bf16(V x) {
    const I bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const V quiet = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
    const V whole = _mm256_blendv_ps(_mm256_castsi256_ps(even), quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const I words = _mm256_srli_epi32(_mm256_castps_si256(whole), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
static OPTPIPE_INLINE V load_bf16(const uint16_t *p) { return widen_bf16(_mm_loadu_si128((const __m128i *)p)); }
static OPTPIPE_INLINE V load_bf16_n(const uint16_t *p, int64_t n) { return widen_bf16(short_load(p, n, 2)); }
static OPTPIPE_INLINE void store_bf16(uint16_t *p, V x) { _mm_storeu_si128((__m128i *)p, narrow_bf16(x)); }
static OPTPIPE_INLINE void store_bf16_n(uint16_t *p, V x, int64_t n) { short_store(p, narrow_bf16(x), n, 2); }
static OPTPIPE_INLINE V load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static OPTPIPE_INLINE V load_f16_n(const uint16_t *p, int64_t n) { return _mm256_cvtph_ps(short_load(p, n, 2)); }
static OPTPIPE_INLINE V load_i8(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
static OPTPIPE_INLINE V load_i8_n(const int8_t *p, int64_t n) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(short_load(p, n, 1))); }
static OPTPIPE_INLINE __m128i narrow_i8(V x) {
    const I words = _mm256_cvtps_epi32(x);
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    return _mm_packs_epi16(pairs, pairs);
}
static OPTPIPE_INLINE void store_i8(int8_t *p, V x) { _mm_storel_epi64((__m128i *)p, narrow_i8(x)); }
static OPTPIPE_INLINE void store_i8_n(int8_t *p, V x, int64_t n) { short_store(p, narrow_i8(x), n, 1); }

static OPTPIPE_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static OPTPIPE_INLINE V vmin(V a, V b) { return _mm256_min_ps(a, b); }
static OPTPIPE_INLINE V vmax(V a, V b) { return _mm256_max_ps(a, b); }
static OPTPIPE_INLINE V vabs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static OPTPIPE_INLINE V vsqrt(V a) { return _mm256_sqrt_ps(a); }
static OPTPIPE_INLINE V nearest(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static OPTPIPE_INLINE V down(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
static OPTPIPE_INLINE M less(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static OPTPIPE_INLINE M equal(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static OPTPIPE_INLINE V choose(M m, V yes, V no) { return _mm256_blendv_ps(no, yes, m); }
static OPTPIPE_INLINE bool any(M m) { return _mm256_movemask_ps(m) != 0; }
static OPTPIPE_INLINE bool all(M m) { return _mm256_movemask_ps(m) == 255; }
static OPTPIPE_INLINE I to_int(V a) { return _mm256_cvtps_epi32(a); }
static OPTPIPE_INLINE V to_float(I a) { return _mm256_cvtepi32_ps(a); }
static OPTPIPE_INLINE V as_float(I a) { return _mm256_castsi256_ps(a); }
static OPTPIPE_INLINE I as_int(V a) { return _mm256_castps_si256(a); }
static OPTPIPE_INLINE I seti(int x) { return _mm256_set1_epi32(x); }
static OPTPIPE_INLINE I addi(I a, I b) { return _mm256_add_epi32(a, b); }
static OPTPIPE_INLINE I bits_and(I a, I b) { return _mm256_and_si256(a, b); }
static OPTPIPE_INLINE I negate(I a) { return _mm256_sub_epi32(_mm256_setzero_si256(), a); }
template <int n> static OPTPIPE_INLINE I shift_left(I a) { return _mm256_slli_epi32(a, n); }
static OPTPIPE_INLINE V scale_down(V a, V n) {
    const I exponent = to_int(vmax(n, set1(-126.0f)));
    return choose(less(n, set1(-126.0f)), zero(), a * as_float(shift_left<23>(addi(exponent, seti(127)))));
}

static OPTPIPE_INLINE float sum(V x) {
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static OPTPIPE_INLINE float largest(V x) {
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

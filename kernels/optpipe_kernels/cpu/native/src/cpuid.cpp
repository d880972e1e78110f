/* Which instruction sets the processor has, and which registers the operating system saves.
 *
 * Source: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E. */
#include "levels.h"

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace optpipe {

#if defined(__x86_64__)
namespace {

struct Leaf {
    uint32_t a = 0, b = 0, c = 0, d = 0;
};

Leaf leaf(uint32_t number, uint32_t sub) {
    Leaf it;
    if (__get_cpuid_count(number, sub, &it.a, &it.b, &it.c, &it.d) == 0) it = Leaf{};
    return it;
}

bool bit(uint32_t word, int place) { return (word >> place & 1) != 0; }

/* The register state that the operating system saves: bits 1-2 SSE and AVX, 5-7 AVX-512. */
uint32_t saved_state(const Leaf &one) {
    if (!bit(one.c, 27)) return 0; /* OSXSAVE */
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

} // namespace

bool processor_runs(const char *level) {
    if (std::strcmp(level, "scalar") == 0) return true;
    const Leaf one = leaf(1, 0), seven = leaf(7, 0), more = leaf(7, 1);
    const uint32_t state = saved_state(one);
    const bool fma = bit(one.c, 12), f16c = bit(one.c, 29), avx2 = bit(seven.b, 5), bmi2 = bit(seven.b, 8);
    const bool base = (state & 0x06) == 0x06 && fma && f16c && avx2 && bmi2;
    if (std::strcmp(level, "avx2") == 0) return base;
    if (std::strcmp(level, "avxvnni") == 0) return base && bit(more.a, 4);
    const bool bf16 = std::strcmp(level, "avx512bf16") == 0;
    if (!bf16 && std::strcmp(level, "avx512vnni") != 0) return false;
    const bool f = bit(seven.b, 16), dq = bit(seven.b, 17), bw = bit(seven.b, 30), vl = bit(seven.b, 31);
    return base && (state & 0xe6) == 0xe6 && f && dq && bw && vl && bit(seven.c, 11) && (!bf16 || bit(more.a, 5));
}

#else

bool processor_runs(const char *level) { return std::strcmp(level, "scalar") == 0; }

#endif

} // namespace optpipe

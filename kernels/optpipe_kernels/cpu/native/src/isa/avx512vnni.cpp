/* The level 'avx512vnni': AVX-512 F, BW, VL, DQ and VNNI. */
#include "kernel.h"

/* Headers of the system come first, outside the namespace. */
#include <float.h>
#include <math.h>
#include <string.h>
#include <immintrin.h>

namespace optpipe {
namespace avx512vnni {
#include "vec/avx512.h"

#include "vec/math.h"

#include "vec/dot.h"

#include "vec/pairs.h"

#include "ops/all.h"
} // namespace avx512vnni
} // namespace optpipe

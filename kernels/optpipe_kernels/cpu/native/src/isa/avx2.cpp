/* The level 'avx2': AVX2 and FMA, without a dot product instruction. */
#include "kernel.h"

/* Headers of the system come first, outside the namespace. */
#include <float.h>
#include <math.h>
#include <string.h>
#include <immintrin.h>

namespace optpipe {
namespace avx2 {
#include "vec/avx2.h"

#include "vec/math.h"

#include "vec/dot.h"

#include "vec/pairs.h"

#include "ops/all.h"
} // namespace avx2
} // namespace optpipe

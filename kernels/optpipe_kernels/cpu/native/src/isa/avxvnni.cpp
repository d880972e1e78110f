/* The level 'avxvnni': AVX2 with the 256-bit VNNI of AVX-VNNI. */
#include "kernel.h"

/* Headers of the system come first, outside the namespace. */
#include <float.h>
#include <math.h>
#include <string.h>
#include <immintrin.h>

namespace optpipe {
namespace avxvnni {
#include "vec/avx2.h"

#include "vec/math.h"

#include "vec/dot.h"

#include "vec/pairs.h"

#include "ops/all.h"
} // namespace avxvnni
} // namespace optpipe

/* The level 'avx512vnni': AVX-512 F, BW, VL, DQ and VNNI. */
#include "kernel.h"

/* Headers of the system come first, outside the namespace. */
#include <float.h>
#include <math.h>
#include <string.h>
/* GCC 12 warns of its own header, where an undefined vector is one that is initialized with itself. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace optpipe {
namespace avx512vnni {
#include "vec/avx512.h"

#include "vec/math.h"

#include "vec/dot.h"

#include "vec/pairs.h"

#include "ops/all.h"
} // namespace avx512vnni
} // namespace optpipe

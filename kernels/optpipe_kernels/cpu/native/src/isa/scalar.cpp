/* The level 'scalar': portable C++: any processor, and what Arm gets until it has a level of its own. */
#include "kernel.h"

/* Headers of the system come first, outside the namespace. */
#include <float.h>
#include <math.h>
#include <string.h>

namespace optpipe {
namespace scalar {
#include "vec/portable.h"

#include "vec/math.h"

#include "vec/dot.h"

#include "vec/pairs.h"

#include "ops/all.h"
} // namespace scalar
} // namespace optpipe

/* The instruction sets that kernels are compiled for, widest first. */
#ifndef OPTPIPE_LEVELS_H
#define OPTPIPE_LEVELS_H

namespace optpipe {
/* Whether this processor and its operating system run the level of that name; false for an unknown one. */
bool processor_runs(const char *level);
} // namespace optpipe
#endif

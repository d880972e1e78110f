/* The C ABI of optpipe's CPU kernels and of the plan that runs them.
 *
 * A plan is a list of instructions over buffers. An instruction names a kernel, its operands (tensors whose
 * sizes may be multiples of T, R or B, which are known only when a step runs) and its attributes. One call of
 * optpipe_cpu_run runs a whole step inside one parallel region.
 *
 *   T tokens this step · R logit rows · B sequences · M columns of the block tables · P cache blocks · all sizes and strides count elements, not bytes
 *
 * Every function that can fail returns 0 for success and otherwise a code whose sentence
 * optpipe_cpu_error() gives, for the calling thread, until its next call.
 */
#ifndef OPTPIPE_CPU_H
#define OPTPIPE_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OPTPIPE_CPU_ABI 2   /* changes whenever anything below does; the loader compares it */
#define OPTPIPE_MAX_RANK 6
#define OPTPIPE_API __attribute__((visibility("default")))

typedef enum { OPTPIPE_F32 = 0, OPTPIPE_BF16 = 1, OPTPIPE_F16 = 2, OPTPIPE_I64 = 3, OPTPIPE_I32 = 4,
               OPTPIPE_I8 = 5, OPTPIPE_U8 = 6, OPTPIPE_BOOL = 7 } optpipe_dtype;

/* A tensor as a kernel sees it. An operand that is absent has data == NULL and rank -1. */
typedef struct {
    void *data;
    int32_t dtype;
    int32_t rank;
    int64_t size[OPTPIPE_MAX_RANK];
    int64_t stride[OPTPIPE_MAX_RANK];
} optpipe_tensor;

/* A number that a step decides: factor × (1, T, R, B, M or P). Only the first four have arenas. */
typedef enum { OPTPIPE_ONE = 0, OPTPIPE_T = 1, OPTPIPE_R = 2, OPTPIPE_B = 3, OPTPIPE_M = 4, OPTPIPE_P = 5 } optpipe_unit;
#define OPTPIPE_ARENAS 4
#define OPTPIPE_UNITS 6
typedef struct { int64_t factor; int64_t unit; } optpipe_extent;

/* Where an operand lives. A buffer of the arena of unit u begins at offset × u bytes (offset a multiple of 64), so
 * that one liveness plan serves every T, R and B. Externals are bound by number: weights, caches, a step's inputs
 * and outputs. */
typedef enum { OPTPIPE_ABSENT = 0, OPTPIPE_ARENA = 1, OPTPIPE_EXTERNAL = 2 } optpipe_place;
typedef struct {
    int32_t place;
    int32_t dtype;
    int32_t unit;      /* ARENA: which arena */
    int32_t index;     /* EXTERNAL: which */
    int64_t offset;    /* ARENA: bytes, times the unit; EXTERNAL: bytes */
    optpipe_extent start;  /* elements to skip, for slices */
    int32_t rank;
    int32_t reserved;
    optpipe_extent size[OPTPIPE_MAX_RANK];
    optpipe_extent stride[OPTPIPE_MAX_RANK];
} optpipe_operand;

typedef struct {
    int32_t kernel;        /* optpipe_cpu_kernel(name) */
    int32_t operands, first_operand;   /* into the plan's arrays */
    int32_t ints, first_int;
    int32_t floats, first_float;
} optpipe_instruction;

typedef struct optpipe_pool optpipe_pool;
typedef struct optpipe_plan optpipe_plan;

OPTPIPE_API int optpipe_cpu_abi(void);
OPTPIPE_API const char *optpipe_cpu_error(void);
OPTPIPE_API const char *optpipe_cpu_isa(void);          /* the level in use: "avx512bf16", "avx512vnni", "avxvnni", "avx2", "scalar" */
OPTPIPE_API const char *optpipe_cpu_isas(void);         /* every level that this machine can run, comma between, widest first */
OPTPIPE_API int optpipe_cpu_use_isa(const char *name);  /* for later calls and plans; a plan keeps its own */
OPTPIPE_API int optpipe_cpu_kernel(const char *name);   /* number, or -1 */
OPTPIPE_API const char *optpipe_cpu_kernels(void);      /* every name, comma between */

/* One pool a process is meant; threads includes the caller. cpus: one a thread to pin it, or NULL; the first
 * is the caller's, which is left where it is. */
OPTPIPE_API optpipe_pool *optpipe_cpu_pool_new(int threads, const int *cpus);
OPTPIPE_API void optpipe_cpu_pool_free(optpipe_pool *);
OPTPIPE_API int optpipe_cpu_pool_threads(const optpipe_pool *);

/* One kernel alone: tests, and torch's dispatcher. */
OPTPIPE_API int optpipe_cpu_call(optpipe_pool *, int kernel, const optpipe_tensor *operands, int count,
                                 const int64_t *ints, int n_ints, const double *floats, int n_floats);

OPTPIPE_API optpipe_plan *optpipe_cpu_plan_new(const optpipe_instruction *, int n, const optpipe_operand *, int n_operands,
                                               const int64_t *ints, int n_ints, const double *floats, int n_floats,
                                               int externals, const int64_t arena_bytes[OPTPIPE_ARENAS] /* a unit */);
OPTPIPE_API void optpipe_cpu_plan_free(optpipe_plan *);
/* externals: data pointers by number; a NULL pointer that an instruction needs is an error. counts: {1, T, R, B, M, P}.
 * begin, end: which instructions, so that a segment of another runtime can stand between. nanoseconds: [n]
 * time of each instruction is added, or NULL. Grows the arenas when the counts need it. */
OPTPIPE_API int optpipe_cpu_run(optpipe_plan *, optpipe_pool *, void *const *externals, const int64_t counts[OPTPIPE_UNITS],
                                int begin, int end, int64_t *nanoseconds);
/* Where an arena operand lies in the step that runs or ran last: for segments of another runtime. */
OPTPIPE_API int optpipe_cpu_locate(optpipe_plan *, int operand, optpipe_tensor *out);

#ifdef __cplusplus
}
#endif
#endif

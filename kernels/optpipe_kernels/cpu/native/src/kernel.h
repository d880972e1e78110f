/* What a kernel is, and what it may use.
 *
 *     void op(const Call &c, int thread, int threads)
 *
 * Every thread of the pool calls it; it divides its work by `thread` and `threads`. Its rules:
 *
 * - Each output element has one order of reduction, whatever T, R, B and the number of threads: rows are bit-equal
 *   alone and in a batch.
 * - Operands may be strided in all but their last dimension, unless the op says otherwise.
 * - Nothing is allocated but by scratch() and shared(); no libm in hot loops; a fused multiply-add is written fma().
 * - What the operands must be is checked by the op's check(), on one thread, before the threads start.
 *
 * This header and everything in ops/ and vec/ is compiled once an instruction set. An inline function with external
 * linkage would be merged by the linker into whichever copy comes first, possibly one that the machine cannot run.
 * So: functions here are OPTPIPE_INLINE (never emitted) or defined in pool.cpp; those of ops/ and vec/ are `static`;
 * no templates of the standard library.
 */
#ifndef OPTPIPE_KERNEL_H
#define OPTPIPE_KERNEL_H

#include "optpipe_cpu.h"

#define OPTPIPE_INLINE inline __attribute__((always_inline))

namespace optpipe {

struct Team; /* the threads that run a kernel together: pool.h */

/* Grown as needed, 64-byte aligned, contents undefined. */
void *team_scratch(Team *, int thread, size_t bytes);
void *team_shared(Team *, size_t bytes);
void team_barrier(Team *);
void team_fail(Team *, const char *sentence);
/* printf into a buffer of the calling thread, for check(). */
const char *sentence(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Memory that a later instruction of the plan will read on this thread. A product whose weights are in a cache by now
 * asks for it while it multiplies: memory would rest meanwhile. Pieces beyond MOST are left to their reader. */
struct Upcoming {
    enum { MOST = 1024 };
    struct Piece {
        const char *begin, *end;
    } pieces[MOST];
    int64_t count, next;

    OPTPIPE_INLINE void clear() { count = next = 0; }
    OPTPIPE_INLINE void add(const char *begin, int64_t bytes) {
        if (count < MOST) pieces[count++] = {begin, begin + bytes};
    }
    OPTPIPE_INLINE bool any() const { return next < count; }
    /* Ask for the next LINES cache lines, into the second-level cache. */
    template <int LINES> OPTPIPE_INLINE void ask() {
        if (!any()) return;
        Piece &piece = pieces[next];
        for (int line = 0; line < LINES; ++line) __builtin_prefetch(piece.begin + 64 * line, 0, 2);
        piece.begin += 64 * LINES;
        next += piece.begin >= piece.end;
    }
};
Upcoming *team_upcoming(Team *, int thread);

struct Call {
    const optpipe_tensor *t; /* [n] operands */
    int n;
    const int64_t *i; /* [ints] attributes */
    int ints;
    const double *f; /* [floats] */
    int floats;
    Team *team;

    OPTPIPE_INLINE bool has(int k) const { return k < n && t[k].rank >= 0; }
    template <class T> OPTPIPE_INLINE T *at(int k) const { return has(k) ? static_cast<T *>(t[k].data) : nullptr; }
    OPTPIPE_INLINE int64_t size(int k, int d) const { return t[k].size[d]; }
    OPTPIPE_INLINE int64_t stride(int k, int d) const { return t[k].stride[d]; }

    /* This thread's own memory until the kernel returns; a second call gives the same memory again. */
    OPTPIPE_INLINE void *scratch(int thread, size_t bytes) const { return team_scratch(team, thread, bytes); }
    /* Memory of all threads: each asks for the same number of bytes, once a kernel. */
    OPTPIPE_INLINE void *shared(size_t bytes) const { return team_shared(team, bytes); }
    OPTPIPE_INLINE Upcoming *upcoming(int thread) const { return team_upcoming(team, thread); }
    /* All threads reach it, or none. */
    OPTPIPE_INLINE void barrier() const { team_barrier(team); }
    /* What only the data can show (an id outside its table): the run goes on and then fails with this sentence. */
    OPTPIPE_INLINE void fail(const char *words) const { team_fail(team, words); }
};

using Kernel = void (*)(const Call &, int thread, int threads);
/* NULL, or a whole sentence without the op's name: "w is [%d, %d], expected …" from sentence(). */
using Check = const char *(*)(const Call &);
/* Adds what the op reads on this thread, and what other instructions may ask for before its turn. */
using Reads = void (*)(const Call &, int thread, int threads, Upcoming &);

struct Entry {
    const char *name;
    Kernel run;
    Check check; /* or nullptr */
    Reads reads = nullptr;
};

struct Range {
    int64_t begin, end;
};

/* This thread's share of n items in whole multiples of `step` (the last may be short). */
static OPTPIPE_INLINE Range split(int64_t n, int64_t step, int thread, int threads) {
    const int64_t chunks = (n + step - 1) / step;
    const int64_t begin = chunks * thread / threads * step, end = chunks * (thread + 1) / threads * step;
    return {begin < n ? begin : n, end < n ? end : n};
}

/* Bring a cache line near; an address that does not exist does no harm. */
static OPTPIPE_INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

static OPTPIPE_INLINE int64_t item_bytes(int32_t dtype) {
    switch (dtype) {
    case OPTPIPE_F32:
    case OPTPIPE_I32: return 4;
    case OPTPIPE_BF16:
    case OPTPIPE_F16: return 2;
    case OPTPIPE_I64: return 8;
    default: return 1;
    }
}

static OPTPIPE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static OPTPIPE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static OPTPIPE_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

} // namespace optpipe
#endif

/* Threads that wait for work: spinning for a moment, then asleep in the kernel, so that an idle pool costs nothing
 * and two pools on the same cores do not fight. After a fork the child has no workers: they are made anew. */
#include "pool.h"

#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

/* A pause is 20 to 45 ns on the machines of today: about 2 µs of pauses, then about 50 µs at a barrier and 150 µs
 * between pieces of work (longer than the gap between two steps of a decoding loop in Python) of offering the
 * processor to others, among them the thread that is waited for, if it was put on the same one. Then sleep. */
constexpr int PAUSES = 60;
constexpr int BARRIER_SPINS = 2000;
constexpr int IDLE_SPINS = 5000;
constexpr int PAUSES_A_YIELD = 20;

std::atomic<unsigned> forks{0};
pthread_once_t fork_once = PTHREAD_ONCE_INIT;

void watch_forks() {
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
}

inline void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

void futex_wait(std::atomic<uint32_t> &word, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t> &word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

/* Returns once word != value. sleepers is raised before the kernel compares word again, and whoever changes word
 * reads sleepers afterwards: one of the two sees the other. */
void wait_for_change(std::atomic<uint32_t> &word, uint32_t value, std::atomic<uint32_t> &sleepers, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (word.load(std::memory_order_acquire) != value) return;
        pause_cpu();
        if (i > PAUSES && i % PAUSES_A_YIELD == 0) sched_yield();
    }
    sleepers.fetch_add(1);
    while (word.load() == value) futex_wait(word, value);
    sleepers.fetch_sub(1);
}

void change(std::atomic<uint32_t> &word, std::atomic<uint32_t> &sleepers) {
    word.fetch_add(1);
    if (sleepers.load() != 0) futex_wake_all(word);
}

/* Rounding to nearest, no flush to zero: results do not depend on what the caller's thread was set to. */
class PlainFloats {
  public:
#if defined(__x86_64__)
    PlainFloats() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~PlainFloats() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    PlainFloats() {}
#endif
};

/* Nanoseconds between two attempts of a thread to leave a processor that it shares. */
constexpr int64_t APART_EVERY = 5'000'000;

int64_t nanoseconds() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

int cpus_allowed() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

} // namespace

namespace optpipe {

Memory::Memory(Memory &&other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
}

Memory::~Memory() { std::free(data_); }

void *Memory::atleast(size_t bytes) {
    if (bytes <= bytes_) return data_;
    std::free(data_);
    bytes_ = 0;
    const size_t huge = size_t{2} << 20, unit = bytes >= huge ? huge : 4096;
    const size_t rounded = (bytes + unit - 1) / unit * unit;
    data_ = rounded >= bytes ? std::aligned_alloc(unit, rounded) : nullptr;
    if (data_ == nullptr) return nullptr;
    if (unit == huge) madvise(data_, rounded, MADV_HUGEPAGE);
    bytes_ = rounded;
    return data_;
}

void Barrier::wait(int threads, int spins) {
    if (threads == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(threads)) {
        arrived_.store(0, std::memory_order_relaxed);
        change(phase_, sleepers_);
    } else {
        wait_for_change(phase_, phase, sleepers_, spins);
    }
}

void Barrier::reset() {
    arrived_ = 0;
    sleepers_ = 0;
}

void *team_scratch(Team *team, int thread, size_t bytes) {
    void *memory = team->scratch[thread].atleast(bytes);
    if (memory == nullptr && bytes != 0) { /* a step without rows needs none */
        std::fprintf(stderr, "optpipe: no memory for %zu bytes of scratch\n", bytes);
        std::abort();
    }
    return memory;
}

void *team_shared(Team *team, size_t bytes) {
    while (team->common_lock.test_and_set(std::memory_order_acquire)) pause_cpu();
    void *memory = team->common.atleast(bytes);
    team->common_lock.clear(std::memory_order_release);
    if (memory == nullptr && bytes != 0) { /* a step without rows needs none */
        std::fprintf(stderr, "optpipe: no memory for %zu bytes of shared scratch\n", bytes);
        std::abort();
    }
    return memory;
}

Upcoming *team_upcoming(Team *team, int thread) { return &team->upcoming[thread]; }

void team_barrier(Team *team) { team->barrier.wait(team->threads, team->spins); }

void team_fail(Team *team, const char *words) {
    if (!team->failed.exchange(true)) std::snprintf(team->failure, sizeof team->failure, "%s", words);
}

const char *sentence(const char *format, ...) {
    static thread_local char words[512];
    va_list list;
    va_start(list, format);
    std::vsnprintf(words, sizeof words, format, list);
    va_end(list);
    return words;
}

} // namespace optpipe

optpipe_pool::optpipe_pool(int threads, const int *cpus) : running_on_(threads) {
    pthread_once(&fork_once, watch_forks);
    pthread_mutex_init(&busy, nullptr);
    team.threads = threads;
    team.scratch.resize(threads);
    team.upcoming.resize(threads);
    if (cpus != nullptr) cpus_.assign(cpus, cpus + threads);
    for (int i = 0; i < threads; ++i) seats_.push_back({this, i});
}

optpipe_pool::~optpipe_pool() {
    if (forks_ == forks.load()) stop();
    pthread_mutex_destroy(&busy);
}

/* With more threads than processors a spinning thread only keeps the one it waits for from running. */
bool optpipe_pool::start() {
    team.spins = team.threads <= cpus_allowed() ? BARRIER_SPINS : 0;
    forks_ = forks.load();
    turn_ = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads that Python knows */
    for (int i = 1; i < team.threads; ++i) {
        pthread_t worker;
        if (pthread_create(&worker, nullptr, serve, &seats_[i]) != 0) break;
        workers_.push_back(worker);
        if (cpus_.empty()) continue;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus_[i], &set);
        pthread_setaffinity_np(worker, sizeof set, &set);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return static_cast<int>(workers_.size()) + 1 == team.threads;
}

void optpipe_pool::stop() {
    leave_ = true;
    change(turn_, sleepers_);
    for (pthread_t worker : workers_) pthread_join(worker, nullptr);
    workers_.clear();
}

/* In a child of fork(): its workers are gone, and a lock may have been held by a thread that is gone too. */
void optpipe_pool::revive() {
    workers_.clear();
    pthread_mutex_init(&busy, nullptr);
    team.barrier.reset();
    sleepers_ = 0;
    if (!start()) std::abort();
}

/* The scheduler likes to wake a thread where its waker runs, and takes its time to part two that wait for each other.
 * A worker that finds itself on the processor of another one of the pool moves to one that none of them is on, and
 * is free to be moved again. Measured on two processors with one competitor: an empty kernel 2.0 µs, 8.1 without. */
void optpipe_pool::keep_apart(int thread, int64_t &last) {
    const int here = sched_getcpu();
    running_on_[thread].store(here, std::memory_order_relaxed);
    bool shared = false;
    for (int other = 0; other < thread; ++other) shared |= running_on_[other].load(std::memory_order_relaxed) == here;
    if (!shared || !cpus_.empty() || team.spins == 0 || nanoseconds() - last < APART_EVERY) return;
    last = nanoseconds();
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t free = allowed;
    for (const std::atomic<int> &other : running_on_) CPU_CLR(other.load(std::memory_order_relaxed), &free);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &free)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (sched_setaffinity(0, sizeof one, &one) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
        running_on_[thread].store(cpu, std::memory_order_relaxed);
        return;
    }
}

void *optpipe_pool::serve(void *argument) {
    Seat *seat = static_cast<Seat *>(argument);
    optpipe_pool *pool = seat->pool;
    PlainFloats plain;
    int64_t last = 0;
    for (uint32_t seen = 0;; ++seen) {
        wait_for_change(pool->turn_, seen, pool->sleepers_, pool->team.spins ? IDLE_SPINS : 0);
        if (pool->leave_.load()) return nullptr;
        pool->keep_apart(seat->thread, last);
        pool->work_(pool->context_, seat->thread, pool->team.threads);
        pool->team.barrier.wait(pool->team.threads, pool->team.spins);
    }
}

void optpipe_pool::run(Work work, void *context) {
    if (forks_ != forks.load()) revive();
    PlainFloats plain;
    pthread_mutex_lock(&busy);
    work_ = work;
    context_ = context;
    running_on_[0].store(sched_getcpu(), std::memory_order_relaxed);
    if (team.threads > 1) change(turn_, sleepers_);
    work(context, 0, team.threads);
    team.barrier.wait(team.threads, team.spins);
    pthread_mutex_unlock(&busy);
}

int optpipe_pool::report(const char *who) {
    if (!team.failed.load()) return 0;
    optpipe::set_error("%s: %s", who, team.failure);
    team.failed = false;
    return 1;
}

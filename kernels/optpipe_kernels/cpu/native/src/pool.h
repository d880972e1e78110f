/* A pool of threads that live as long as it does, and the team state that kernels see. */
#ifndef OPTPIPE_POOL_H
#define OPTPIPE_POOL_H

#include "kernel.h"

#include <atomic>
#include <pthread.h>
#include <vector>

namespace optpipe {

/* Memory that only grows. Touched pages stay; contents are lost when it grows. */
class Memory {
  public:
    Memory() = default;
    Memory(const Memory &) = delete;
    Memory(Memory &&other) noexcept;
    ~Memory();
    void *atleast(size_t bytes); /* nullptr when there is none */

  private:
    void *data_ = nullptr;
    size_t bytes_ = 0;
};

/* All threads arrive before any goes on. Spins for a while, then sleeps in the kernel. */
class Barrier {
  public:
    void wait(int threads, int spins);
    void reset();

  private:
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<uint32_t> sleepers_{0};
};

struct Team {
    int threads = 1;
    int spins = 0;
    Barrier barrier;
    std::vector<Memory> scratch;
    std::vector<Upcoming> upcoming;
    Memory common;
    std::atomic_flag common_lock = ATOMIC_FLAG_INIT;
    std::atomic<bool> failed{false};
    char failure[256] = {};
};

} // namespace optpipe

/* work(context, thread, threads) on every thread of the pool; the caller is thread 0. */
struct optpipe_pool {
    using Work = void (*)(void *context, int thread, int threads);

    optpipe_pool(int threads, const int *cpus);
    ~optpipe_pool();
    optpipe_pool(const optpipe_pool &) = delete;
    bool start();
    void run(Work work, void *context);
    int report(const char *who); /* 0, or 1 with the error that a kernel left */

    optpipe::Team team;
    pthread_mutex_t busy; /* one run at a time */

  private:
    struct Seat {
        optpipe_pool *pool;
        int thread;
    };
    static void *serve(void *seat);
    void keep_apart(int thread, int64_t &last);
    void stop();
    void revive();

    std::vector<int> cpus_;
    std::vector<pthread_t> workers_;
    std::vector<Seat> seats_;
    std::vector<std::atomic<int>> running_on_; /* the processor of each thread when it last began work */
    alignas(64) std::atomic<uint32_t> turn_{0}; /* one more for each piece of work */
    std::atomic<uint32_t> sleepers_{0};
    Work work_ = nullptr;
    void *context_ = nullptr;
    std::atomic<bool> leave_{false};
    unsigned forks_ = 0; /* forks of the process when the workers were made */
};

namespace optpipe {
void set_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
const Entry *kernel_entry(int number);   /* of the level in use; nullptr when there is none */
/* Check the operands, naming the op in the error. */
bool check_call(const Entry &, const Call &);
} // namespace optpipe
#endif

/* The levels that were compiled in, the one in use, and the C ABI's plain functions. */
#include "levels.h"
#include "pool.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

namespace optpipe {

#define OPTPIPE_LEVEL(name)                                                                                            \
    namespace name {                                                                                                   \
    extern const Entry *const table;                                                                                   \
    extern const int count;                                                                                            \
    }
OPTPIPE_LEVEL(scalar)
OPTPIPE_LEVEL(avx2)
OPTPIPE_LEVEL(avxvnni)
OPTPIPE_LEVEL(avx512vnni)
OPTPIPE_LEVEL(avx512bf16)
#undef OPTPIPE_LEVEL

namespace {

struct Level {
    const char *name;
    const Entry *const *table;
    const int *count;
};

const Level LEVELS[] = {
#ifdef OPTPIPE_WITH_AVX512BF16
    {"avx512bf16", &avx512bf16::table, &avx512bf16::count},
#endif
#ifdef OPTPIPE_WITH_AVX512VNNI
    {"avx512vnni", &avx512vnni::table, &avx512vnni::count},
#endif
#ifdef OPTPIPE_WITH_AVXVNNI
    {"avxvnni", &avxvnni::table, &avxvnni::count},
#endif
#ifdef OPTPIPE_WITH_AVX2
    {"avx2", &avx2::table, &avx2::count},
#endif
    {"scalar", &scalar::table, &scalar::count},
};

thread_local char error_words[640];

const Level *widest() {
    const Level *it = LEVELS;
    while (!processor_runs(it->name)) ++it; /* scalar runs everywhere */
    return it;
}

std::atomic<const Level *> &current() {
    static std::atomic<const Level *> level{widest()};
    return level;
}

} // namespace

void set_error(const char *format, ...) {
    va_list list;
    va_start(list, format);
    std::vsnprintf(error_words, sizeof error_words, format, list);
    va_end(list);
}

const Entry *kernel_entry(int number) {
    const Level *level = current().load();
    return number >= 0 && number < *level->count ? *level->table + number : nullptr;
}

bool check_call(const Entry &entry, const Call &call) {
    const char *words = entry.check != nullptr ? entry.check(call) : nullptr;
    if (words != nullptr) set_error("%s: %s", entry.name, words);
    return words == nullptr;
}

} // namespace optpipe

using namespace optpipe;

int optpipe_cpu_abi(void) { return OPTPIPE_CPU_ABI; }

const char *optpipe_cpu_error(void) { return error_words; }

const char *optpipe_cpu_isa(void) { return current().load()->name; }

const char *optpipe_cpu_isas(void) {
    static const std::string names = [] {
        std::string all;
        for (const Level &it : LEVELS)
            if (processor_runs(it.name)) all += (all.empty() ? "" : ",") + std::string(it.name);
        return all;
    }();
    return names.c_str();
}

int optpipe_cpu_use_isa(const char *name) {
    for (const Level &it : LEVELS) {
        if (std::strcmp(it.name, name) != 0) continue;
        if (processor_runs(name)) {
            current() = &it;
            return 0;
        }
        set_error("this processor does not run '%s'; it runs %s", name, optpipe_cpu_isas());
        return 1;
    }
    set_error("'%s' is not an instruction set that this library was built for; this machine runs %s", name,
              optpipe_cpu_isas());
    return 1;
}

int optpipe_cpu_kernel(const char *name) {
    for (int k = 0; const Entry *entry = kernel_entry(k); ++k)
        if (std::strcmp(entry->name, name) == 0) return k;
    set_error("there is no kernel '%s'", name);
    return -1;
}

const char *optpipe_cpu_kernels(void) {
    static const std::string names = [] {
        std::string all;
        for (int k = 0; const Entry *entry = kernel_entry(k); ++k) all += (k ? "," : "") + std::string(entry->name);
        return all;
    }();
    return names.c_str();
}

optpipe_pool *optpipe_cpu_pool_new(int threads, const int *cpus) {
    if (threads < 1 || threads > 1024) {
        set_error("a pool has 1 to 1024 threads, got %d", threads);
        return nullptr;
    }
    auto *pool = new optpipe_pool(threads, cpus);
    if (pool->start()) return pool;
    set_error("the system gave no more threads; %d were wanted", threads);
    delete pool;
    return nullptr;
}

void optpipe_cpu_pool_free(optpipe_pool *pool) { delete pool; }

int optpipe_cpu_pool_threads(const optpipe_pool *pool) { return pool->team.threads; }

int optpipe_cpu_call(optpipe_pool *pool, int kernel, const optpipe_tensor *operands, int count, const int64_t *ints,
                     int n_ints, const double *floats, int n_floats) {
    const Entry *entry = kernel_entry(kernel);
    if (entry == nullptr) {
        set_error("there is no kernel number %d", kernel);
        return 1;
    }
    static thread_local optpipe_pool alone(1, nullptr);
    if (pool == nullptr) pool = &alone;
    struct Job {
        Call call;
        const Entry *entry;
    } job{{operands, count, ints, n_ints, floats, n_floats, &pool->team}, entry};
    if (!check_call(*entry, job.call)) return 1;
    pool->run(
        [](void *context, int thread, int threads) {
            const Job &it = *static_cast<Job *>(context);
            it.entry->run(it.call, thread, threads);
        },
        &job);
    return pool->report(entry->name);
}

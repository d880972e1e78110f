/* A plan: instructions whose operands are worked out when the counts of a step change, and run in one region.
 *
 * Arena of unit u: one block of memory of bytes[u] × count[u]; operand at offset × count[u], sizes factor × count.
 */
#include "pool.h"

#include <chrono>
#include <cstring>

using namespace optpipe;

struct optpipe_plan {
    std::vector<optpipe_instruction> instructions;
    std::vector<optpipe_operand> operands;
    std::vector<int64_t> ints;
    std::vector<double> floats;
    std::vector<const Entry *> entries;
    std::vector<int> reader;             /* the next instruction that says what it reads (Entry::reads), or none: −1 */
    std::vector<optpipe_tensor> tensors; /* the operands of the counts below */
    std::vector<char *> externals;       /* as they are in the tensors */
    std::vector<std::vector<int>> readers; /* the operands of each external */
    std::vector<bool> bound;             /* an instruction's operands have been checked for these counts */
    int64_t arena_bytes[OPTPIPE_ARENAS];
    int64_t counts[OPTPIPE_UNITS] = {1, -1, -1, -1, -1, -1};
    Memory arenas[OPTPIPE_ARENAS];
    char *arena[OPTPIPE_ARENAS] = {};
};

namespace {

int64_t value(const optpipe_extent &it, const int64_t *counts) { return it.factor * counts[it.unit]; }

bool extent_is_sound(const optpipe_extent &it) { return it.unit >= 0 && it.unit < OPTPIPE_UNITS; }

bool operand_is_sound(const optpipe_operand &it, int externals) {
    if (it.place == OPTPIPE_ABSENT) return true;
    if (it.rank < 0 || it.rank > OPTPIPE_MAX_RANK || it.dtype < 0 || it.dtype > OPTPIPE_BOOL) return false;
    if (it.place == OPTPIPE_ARENA && (it.unit < 0 || it.unit >= OPTPIPE_ARENAS || it.offset < 0 || it.offset % 64 != 0)) return false;
    if (it.place == OPTPIPE_EXTERNAL && (it.index < 0 || it.index >= externals)) return false;
    if (it.place != OPTPIPE_ARENA && it.place != OPTPIPE_EXTERNAL) return false;
    for (int d = 0; d < it.rank; ++d)
        if (!extent_is_sound(it.size[d]) || !extent_is_sound(it.stride[d])) return false;
    return extent_is_sound(it.start);
}

bool span_is_sound(int first, int count, size_t size) {
    return first >= 0 && count >= 0 && static_cast<size_t>(first) + static_cast<size_t>(count) <= size;
}

/* Sizes, strides and the address of one operand. */
void resolve(const optpipe_plan &plan, const optpipe_operand &from, optpipe_tensor &to) {
    to.data = nullptr;
    to.dtype = from.dtype;
    to.rank = from.place == OPTPIPE_ABSENT ? -1 : from.rank;
    if (from.place == OPTPIPE_ABSENT) return;
    for (int d = 0; d < from.rank; ++d) {
        to.size[d] = value(from.size[d], plan.counts);
        to.stride[d] = value(from.stride[d], plan.counts);
    }
    const bool arena = from.place == OPTPIPE_ARENA;
    char *base = arena ? plan.arena[from.unit] : plan.externals[from.index];
    const int64_t offset = from.offset * (arena ? plan.counts[from.unit] : 1);
    if (base != nullptr) to.data = base + offset + value(from.start, plan.counts) * item_bytes(from.dtype);
}

bool take_counts(optpipe_plan &plan, const int64_t *counts) {
    if (std::memcmp(plan.counts, counts, sizeof plan.counts) == 0) return true;
    for (int unit = 0; unit < OPTPIPE_UNITS; ++unit)
        if (counts[unit] < 0 || counts[0] != 1) {
            set_error("a step's counts must be 1, T, R, B, M and P, none negative");
            return false;
        }
    for (int unit = 0; unit < OPTPIPE_ARENAS; ++unit) {
        plan.arena[unit] = static_cast<char *>(plan.arenas[unit].atleast(plan.arena_bytes[unit] * counts[unit]));
        if (plan.arena_bytes[unit] * counts[unit] > 0 && plan.arena[unit] == nullptr) {
            plan.counts[1] = -1;
            set_error("no memory for an arena of %lld bytes", static_cast<long long>(plan.arena_bytes[unit] * counts[unit]));
            return false;
        }
    }
    std::memcpy(plan.counts, counts, sizeof plan.counts);
    for (size_t k = 0; k < plan.operands.size(); ++k) resolve(plan, plan.operands[k], plan.tensors[k]);
    plan.bound.assign(plan.instructions.size(), false);
    return true;
}

void take_externals(optpipe_plan &plan, void *const *externals) {
    for (size_t k = 0; k < plan.externals.size(); ++k) {
        char *now = static_cast<char *>(externals[k]);
        if (plan.externals[k] == now) continue;
        plan.externals[k] = now;
        for (int operand : plan.readers[k]) resolve(plan, plan.operands[operand], plan.tensors[operand]);
    }
}

bool elements_exist(const optpipe_tensor &it) {
    for (int d = 0; d < it.rank; ++d)
        if (it.size[d] == 0) return false;
    return true;
}

Call call_of(const optpipe_plan &plan, int k, Team *team) {
    const optpipe_instruction &it = plan.instructions[k];
    return {plan.tensors.data() + it.first_operand, it.operands, plan.ints.data() + it.first_int, it.ints,
            plan.floats.data() + it.first_float,    it.floats,   team};
}

/* Every pointer is there, and the op agrees with its operands. */
bool bind(optpipe_plan &plan, int k) {
    const Call call = call_of(plan, k, nullptr);
    for (int operand = 0; operand < call.n; ++operand) {
        if (call.t[operand].rank < 0 || call.t[operand].data != nullptr || !elements_exist(call.t[operand])) continue;
        set_error("instruction %d, %s: operand %d has no data", k, plan.entries[k]->name, operand);
        return false;
    }
    if (plan.bound[k]) return true;
    plan.bound[k] = true;
    if (check_call(*plan.entries[k], call)) return true;
    plan.bound[k] = false;
    return false;
}

struct Step {
    const optpipe_plan *plan;
    Team *team;
    int begin, end;
    int64_t *nanoseconds;
};

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* What the next reader of the plan will read becomes known as soon as the one before it has run. */
void look_ahead(const Step &it, int k, int thread, int threads) {
    const std::vector<int> &reader = it.plan->reader;
    if (k > it.begin && reader[k] == reader[k - 1]) return;
    Upcoming &upcoming = it.team->upcoming[thread];
    upcoming.clear();
    if (reader[k] < 0 || reader[k] >= it.end) return;
    it.plan->entries[reader[k]]->reads(call_of(*it.plan, reader[k], it.team), thread, threads, upcoming);
}

/* The region: what each thread of the pool does. The end of the region is a barrier too. */
void step(void *context, int thread, int threads) {
    const Step &it = *static_cast<Step *>(context);
    int64_t *times = thread == 0 ? it.nanoseconds : nullptr;
    int64_t before = times != nullptr ? now() : 0;
    for (int k = it.begin; k < it.end; ++k) {
        look_ahead(it, k, thread, threads);
        it.plan->entries[k]->run(call_of(*it.plan, k, it.team), thread, threads);
        const bool last = k + 1 == it.end;
        if (!last || it.nanoseconds != nullptr) team_barrier(it.team);
        if (times == nullptr) continue;
        const int64_t after = now();
        times[k] += after - before;
        before = after;
    }
}

} // namespace

optpipe_plan *optpipe_cpu_plan_new(const optpipe_instruction *instructions, int n, const optpipe_operand *operands,
                                   int n_operands, const int64_t *ints, int n_ints, const double *floats, int n_floats,
                                   int externals, const int64_t arena_bytes[OPTPIPE_ARENAS]) {
    std::vector<const Entry *> entries;
    for (int k = 0; k < n; ++k) {
        const optpipe_instruction &it = instructions[k];
        entries.push_back(kernel_entry(it.kernel));
        if (entries.back() == nullptr || !span_is_sound(it.first_operand, it.operands, n_operands) ||
            !span_is_sound(it.first_int, it.ints, n_ints) || !span_is_sound(it.first_float, it.floats, n_floats)) {
            set_error("instruction %d of the plan names a kernel, operands or attributes that do not exist", k);
            return nullptr;
        }
    }
    for (int k = 0; k < n_operands; ++k) {
        if (operand_is_sound(operands[k], externals)) continue;
        set_error("operand %d of the plan is malformed", k);
        return nullptr;
    }
    auto *plan = new optpipe_plan;
    plan->instructions.assign(instructions, instructions + n);
    plan->operands.assign(operands, operands + n_operands);
    plan->ints.assign(ints, ints + n_ints);
    plan->floats.assign(floats, floats + n_floats);
    plan->entries = entries;
    plan->reader.assign(n, -1);
    for (int k = n - 2; k >= 0; --k) plan->reader[k] = entries[k + 1]->reads != nullptr ? k + 1 : plan->reader[k + 1];
    plan->tensors.resize(n_operands);
    plan->externals.assign(externals, nullptr);
    plan->readers.resize(externals);
    for (int k = 0; k < n_operands; ++k)
        if (operands[k].place == OPTPIPE_EXTERNAL) plan->readers[operands[k].index].push_back(k);
    std::memcpy(plan->arena_bytes, arena_bytes, sizeof plan->arena_bytes);
    return plan;
}

void optpipe_cpu_plan_free(optpipe_plan *plan) {
    delete plan;
}

int optpipe_cpu_run(optpipe_plan *plan, optpipe_pool *pool, void *const *externals, const int64_t counts[OPTPIPE_UNITS],
                    int begin, int end, int64_t *nanoseconds) {
    if (begin < 0 || end < begin || static_cast<size_t>(end) > plan->instructions.size()) {
        set_error("a plan of %zu instructions cannot run from %d to %d", plan->instructions.size(), begin, end);
        return 1;
    }
    if (!take_counts(*plan, counts)) return 1;
    take_externals(*plan, externals);
    for (int k = begin; k < end; ++k)
        if (!bind(*plan, k)) return 1;
    Step it{plan, &pool->team, begin, end, nanoseconds};
    pool->run(step, &it);
    return pool->report("plan");
}

int optpipe_cpu_locate(optpipe_plan *plan, int operand, optpipe_tensor *out) {
    if (operand < 0 || static_cast<size_t>(operand) >= plan->operands.size() || plan->counts[1] < 0) {
        set_error("operand %d of the plan has no place yet", operand);
        return 1;
    }
    *out = plan->tensors[operand];
    return 0;
}

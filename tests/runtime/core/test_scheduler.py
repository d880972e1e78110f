"""The scheduler by example. ``lengths`` reads: sequence id → tokens in this step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optpipe.errors import CapacityError, RequestError
from optpipe_runtime.core import Outcome, Sequence, Status
from optpipe_runtime.core.prefix_cache import PrefixCache

from .driving import answer, lengths, prompt, scheduler, step


def test_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, optpipe_runtime.core; print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_prompt_runs_in_chunks_and_only_the_last_is_sampled() -> None:
    books = scheduler(max_num_batched_tokens=4)
    one = Sequence(0, prompt(10), max_len=20)
    books.add(one)
    parts = [step(books).steps[0] for _ in range(4)]
    assert [(part.begin, len(part.tokens), part.rows, part.samples) for part in parts] == [
        (0, 4, 0, False),
        (4, 4, 0, False),
        (8, 2, 1, True),
        (10, 1, 1, True),
    ]
    assert parts[2].tokens == (1008, 1009)
    assert one.tokens == [*prompt(10), 7, 7] and one.computed == 11


def test_decoding_goes_on_beside_a_long_prompt_under_one_budget() -> None:
    books = scheduler(max_num_batched_tokens=8)
    books.add(Sequence(0, prompt(3), max_len=30, arrival=0))
    step(books)
    books.add(Sequence(1, prompt(20, 50), max_len=30, arrival=1))
    assert [lengths(step(books)) for _ in range(4)] == [
        {0: 1, 1: 7},
        {0: 1, 1: 7},
        {0: 1, 1: 6},
        {0: 1, 1: 1},
    ]


def test_every_running_sequence_gets_a_token_even_when_the_first_wants_them_all() -> None:
    books = scheduler(max_num_batched_tokens=8, policy="priority")
    for number in (1, 2):
        books.add(Sequence(number, prompt(2, 10 * number), max_len=30, priority=5))
    step(books)
    books.add(Sequence(0, prompt(40), max_len=50, priority=0))
    assert lengths(step(books)) == {0: 6, 1: 1, 2: 1}
    assert lengths(step(books)) == {0: 6, 1: 1, 2: 1}


def test_no_more_run_than_the_limits_give_a_token_and_a_row() -> None:
    for limits in ({"max_num_seqs": 2}, {"max_num_batched_tokens": 2}, {"max_logit_rows": 2}):
        books = scheduler(**limits)
        for number in range(4):
            books.add(Sequence(number, [number], max_len=9, arrival=number))
        step(books)
        assert [sequence.id for sequence in books.running] == [0, 1]
        assert lengths(step(books)) == {0: 1, 1: 1}


def test_first_come_first_served_looks_at_arrival_only() -> None:
    books = scheduler(max_num_seqs=1)
    books.add(Sequence(5, [1], max_len=9, arrival=2, priority=-9))
    books.add(Sequence(6, [1], max_len=9, arrival=1, priority=9))
    assert list(lengths(step(books))) == [6]


def test_nobody_overtakes_the_head_of_the_line() -> None:
    books = scheduler(num_blocks=8, watermark=0)
    books.add(Sequence(0, prompt(20), max_len=24, arrival=0))
    step(books)
    books.add(Sequence(1, prompt(16, 50), max_len=20, arrival=1))  # 4 blocks; 3 are free
    books.add(Sequence(2, [1], max_len=4, arrival=2))  # would fit
    assert lengths(step(books)) == {0: 1}


def test_admission_keeps_the_watermark_free() -> None:
    for watermark, admitted in ((0.0, True), (0.2, True), (0.3, False)):
        books = scheduler(num_blocks=10, watermark=watermark)
        books.add(Sequence(0, prompt(16), max_len=16 + 4, arrival=0))
        step(books)
        books.add(
            Sequence(1, prompt(12, 50), max_len=20, arrival=1)
        )  # 10 - 4 - 1 (0 decodes) - 3 = 2 stay free
        assert (1 in lengths(step(books))) is admitted


def test_alone_a_sequence_may_use_what_the_watermark_keeps() -> None:
    books = scheduler(num_blocks=4, watermark=0.9)
    books.add(Sequence(0, prompt(16), max_len=17))
    assert lengths(step(books)) == {0: 16}


def test_admission_counts_the_blocks_that_running_prompts_have_yet_to_get() -> None:
    books = scheduler(num_blocks=10, watermark=0, max_num_batched_tokens=8)
    books.add(Sequence(0, prompt(28), max_len=32, arrival=0))  # 7 blocks, 2 of them in the first step
    step(books)
    books.add(Sequence(1, prompt(16, 50), max_len=20, arrival=1))  # 4 blocks
    assert [lengths(step(books)) for _ in range(3)] == [{0: 8}, {0: 8}, {0: 4}]
    assert books.stats().preemptions == 0


def test_the_latest_arrival_is_preempted_first_and_starts_over() -> None:
    books = scheduler(num_blocks=6, watermark=0, prefix_caching=False)
    sequences = [Sequence(number, prompt(8, 50 * number), max_len=16, arrival=number) for number in range(3)]
    for sequence in sequences:
        books.add(sequence)
    assert lengths(step(books)) == {0: 8, 1: 8, 2: 8}
    plan = step(books)  # 0 and 1 need a third block each: the last in line gives up both of its own
    assert plan.preempted == (2,) and lengths(plan) == {0: 1, 1: 1}
    last = sequences[2]
    assert (last.status, last.preemptions, last.computed, last.blocks) == (Status.WAITING, 1, 0, [])
    assert last.tokens == [*prompt(8, 100), 7]  # what was generated is kept
    for _ in range(3):
        step(books)
    plan = step(books)
    assert plan.preempted == (1,) and lengths(plan) == {0: 1}
    while sequences[0].status is Status.RUNNING:
        step(books)
    assert lengths(step(books)) == {1: 13}  # it is the head of the line, and has its generated tokens


def test_the_lowest_priority_is_preempted_first_whenever_it_came() -> None:
    books = scheduler(num_blocks=6, watermark=0, policy="priority")
    for number, priority in enumerate((3, 1, 2)):
        books.add(Sequence(number, prompt(8, 50 * number), max_len=16, arrival=number, priority=priority))
    assert list(lengths(step(books))) == [1, 2, 0]
    plan = step(books)
    assert plan.preempted == (0,) and lengths(plan) == {1: 1, 2: 1}


def test_a_better_priority_takes_the_place_of_a_running_one() -> None:
    books = scheduler(max_num_seqs=2, policy="priority")
    for number, priority in enumerate((2, 3, 3)):
        books.add(Sequence(number, [number], max_len=30, arrival=number, priority=priority))
    assert lengths(step(books)) == {0: 1, 1: 1}
    books.add(Sequence(3, [3], max_len=30, arrival=3, priority=1))
    plan = step(books)
    assert plan.preempted == (1,) and lengths(plan) == {3: 1, 0: 1}


@pytest.mark.parametrize(("length", "makes_way"), [(16, (1,)), (20, ())])
def test_what_a_better_prompt_has_yet_to_get_is_not_to_be_had(
    length: int, makes_way: tuple[int, ...]
) -> None:
    books = scheduler(num_blocks=10, watermark=0, max_num_batched_tokens=9, max_num_seqs=2, policy="priority")
    books.add(Sequence(1, prompt(2, 50), max_len=20, priority=2))
    step(books)
    books.add(Sequence(0, prompt(24), max_len=30, priority=0))
    assert lengths(step(books)) == {0: 8, 1: 1}  # 3 blocks are used, 4 are promised
    books.add(Sequence(2, prompt(length, 90), max_len=30, priority=1))
    assert step(books).preempted == makes_way


@pytest.mark.parametrize(("length", "makes_way"), [(12, (1,)), (16, ())])
def test_nobody_makes_way_to_below_the_watermark(length: int, makes_way: tuple[int, ...]) -> None:
    books = scheduler(num_blocks=10, watermark=0.2, max_num_seqs=2, policy="priority")
    books.add(Sequence(0, prompt(17), max_len=30, priority=0))
    books.add(Sequence(1, prompt(2, 50), max_len=20, priority=2))
    step(books)  # 6 blocks are used, and 2 have to stay free beside the first
    books.add(Sequence(2, prompt(length, 90), max_len=30, priority=1))
    assert step(books).preempted == makes_way


def test_only_those_after_it_make_way() -> None:
    books = scheduler(num_blocks=8, watermark=0, policy="priority")
    for number, priority in enumerate((0, 2)):
        books.add(Sequence(number, prompt(17), max_len=30, priority=priority))
        step(books)
    assert books.stats().blocks_used == 6  # four of them are shared
    books.add(Sequence(2, prompt(16, 50), max_len=19, priority=1))
    plan = step(books)  # the last in line gives up one block of its own; one more is missing
    assert plan.preempted == (1,) and lengths(plan) == {0: 1}


def test_an_equal_priority_takes_nobody_s_place() -> None:
    books = scheduler(max_num_seqs=1, policy="priority")
    books.add(Sequence(0, [0], max_len=30, arrival=0, priority=1))
    step(books)
    books.add(Sequence(1, [1], max_len=30, arrival=1, priority=1))
    assert lengths(step(books)) == {0: 1}


def test_nobody_is_preempted_for_a_sequence_that_would_not_fit_even_then() -> None:
    books = scheduler(num_blocks=8, watermark=0, policy="priority")
    books.add(Sequence(0, prompt(20), max_len=24, priority=0))
    books.add(Sequence(1, prompt(4, 50), max_len=8, priority=2))
    step(books)
    books.add(Sequence(2, prompt(20, 90), max_len=24, priority=1))
    plan = step(books)
    assert plan.preempted == () and lengths(plan) == {0: 1, 1: 1}


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_oldest_moves_in_every_step_until_it_is_done(policy: str) -> None:
    books = scheduler(num_blocks=6, max_num_batched_tokens=3, watermark=0, policy=policy)
    for number in range(8):
        books.add(Sequence(number, prompt(9, 20 * number), max_len=24, arrival=number))
    steps = 0
    for oldest in range(8):
        while (plan := books.plan()) is not None and plan.steps[0].sequence.id == oldest:
            books.commit(plan, [answer(part) for part in plan.steps])
            books.check_integrity()
            steps += 1
        if plan is not None:
            books.rollback(plan)
    assert books.stats().running == books.stats().waiting == 0
    assert books.stats().preemptions > 0
    assert steps <= 8 * 24


def test_a_new_request_reuses_the_blocks_of_a_finished_one() -> None:
    books = scheduler()
    books.add(Sequence(0, prompt(10), max_len=11))
    step(books)
    assert books.stats().blocks_used == 0 and books.stats().blocks_cached == 2
    longer = Sequence(1, prompt(20), max_len=30)
    books.add(longer)
    assert lengths(step(books)) == {1: 12} and longer.cached == 8
    stats = books.stats()
    assert (stats.prefix_hits, stats.prefix_queries) == (8, 30)


def test_a_prompt_that_is_all_cached_still_runs_its_last_token() -> None:
    books = scheduler()
    for number in range(2):
        books.add(Sequence(number, prompt(8), max_len=9))
        part = step(books).steps[0]
    assert (part.begin, part.tokens, part.samples) == (4, tuple(prompt(8)[4:]), True)
    books.add(Sequence(2, prompt(9), max_len=10))
    part = step(books).steps[0]
    assert (part.begin, part.tokens, part.samples) == (8, (1008,), True)


def test_generated_tokens_are_found_too() -> None:
    books = scheduler()
    first = Sequence(0, prompt(6), max_len=14)
    books.add(first)
    while first.status is not Status.FINISHED:
        step(books)
    second = Sequence(1, [*first.tokens, 1], max_len=20)
    books.add(second)
    step(books)
    assert second.cached == 12  # the 14th token was never run


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    books = scheduler(num_blocks=6, watermark=0)
    for number in range(2):
        books.add(Sequence(number, prompt(11, 50 * number), max_len=16, arrival=number))
    step(books)
    while not (plan := step(books)).preempted:
        pass
    assert plan.preempted == (1,)
    while books.stats().waiting:
        plan = step(books)
    part = next(part for part in plan.steps if part.sequence.id == 1)
    assert part.begin == 8  # of its three the last was evicted
    assert part.sequence.cached == 0  # the request itself found nothing when it came


def test_salts_keep_requests_apart() -> None:
    books = scheduler()
    for number, salt in enumerate((b"a", b"b", b"a")):
        books.add(Sequence(number, prompt(9), max_len=10, salt=salt))
        begin = step(books).steps[0].begin
        assert begin == (8 if number == 2 else 0)


def test_a_waiting_sequence_that_shares_a_running_one_s_prompt_is_admitted_once_that_is_computed() -> None:
    books = scheduler(num_blocks=10, watermark=0, max_num_batched_tokens=12)
    books.add(Sequence(0, prompt(24), max_len=26, arrival=0))
    books.add(Sequence(1, prompt(24), max_len=26, arrival=1))
    assert lengths(step(books)) == {0: 12}  # two copies do not fit
    assert lengths(step(books)) == {0: 12}  # three blocks can be shared: 6 + 3 and one for 0 to grow
    assert lengths(step(books)) == {0: 1, 1: 4}  # five can


def test_who_was_refused_is_admitted_when_another_ends() -> None:
    books = scheduler(num_blocks=8, watermark=0)
    for number, length in enumerate((9, 9, 9)):
        books.add(Sequence(number, prompt(length, 50 * number), max_len=12, arrival=number))
    assert [lengths(step(books)) for _ in range(2)] == [{0: 9, 1: 9}, {0: 1, 1: 1}]
    books.abort(1)
    assert lengths(step(books)) == {0: 1, 2: 9}


def test_who_was_refused_is_admitted_when_more_of_it_is_cached() -> None:
    books = scheduler(num_blocks=8, watermark=0, max_num_batched_tokens=13)
    books.add(Sequence(0, prompt(4, 50), max_len=30, arrival=0))
    step(books)
    for number in (1, 2):
        books.add(Sequence(number, prompt(19), max_len=22, arrival=number))
    assert lengths(step(books)) == {0: 1, 1: 12}
    assert lengths(step(books)) == {0: 1, 1: 7}  # of five blocks three are cached, and only one is free
    assert lengths(step(books)) == {0: 1, 1: 1, 2: 3}  # now four are cached, and nobody has ended


def test_a_refused_prompt_is_not_looked_up_again_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[int] = []
    find = PrefixCache.find

    def counting(cache: PrefixCache, sequence: Sequence) -> list[int]:
        looked_up.append(sequence.id)
        return find(cache, sequence)

    monkeypatch.setattr(PrefixCache, "find", counting)
    books = scheduler(num_blocks=8, watermark=0)
    books.add(Sequence(0, prompt(9), max_len=20, arrival=0))
    books.add(Sequence(1, prompt(25, 50), max_len=30, arrival=1))
    for _ in range(8):
        step(books, {0: [1, 2, 3]})
    assert looked_up == [0, 1]


def test_drafts_run_after_the_known_token_and_rejected_ones_leave_nothing_behind() -> None:
    books = scheduler()
    one = Sequence(0, prompt(3), max_len=40)
    books.add(one)
    step(books)
    part = step(books, {0: [21, 22, 23, 24, 25]}, accept=0).steps[0]
    assert part.tokens == (7, 21, 22, 23, 24, 25) and (part.drafts, part.rows, part.samples) == (5, 6, True)
    assert one.tokens[3:] == [7, 7] and one.computed == 4 and len(one.blocks) == 1
    step(books, {0: [21, 22, 23, 24, 25]}, accept=3)
    assert one.tokens[3:] == [7, 7, 21, 22, 23, 7] and one.computed == 8 and len(one.blocks) == 2
    step(books, {0: [31, 32]}, accept=2)
    assert one.tokens[3:] == [7, 7, 21, 22, 23, 7, 31, 32, 7] and one.computed == 11


def test_rejected_drafts_are_not_found_in_the_cache() -> None:
    books = scheduler()
    books.add(Sequence(0, prompt(3), max_len=40))
    step(books)
    step(books, {0: [21, 22, 23, 24, 25]}, accept=0)
    books.abort(0)
    wrong = Sequence(1, [*prompt(3), 7, 21, 22, 23, 24, 25], max_len=20)
    books.add(wrong)
    step(books)
    assert wrong.cached == 4  # the block that was full with committed tokens, and not the drafts' one


def test_drafts_take_what_budget_rows_and_length_leave() -> None:
    guesses = {number: [1, 2, 3, 4, 5] for number in range(2)}
    for limits, expected in (
        ({"max_num_batched_tokens": 6}, {0: 5, 1: 1}),
        ({"max_logit_rows": 5}, {0: 4, 1: 1}),
        ({"max_num_batched_tokens": 9}, {0: 6, 1: 3}),
        ({}, {0: 6, 1: 6}),
    ):
        books = scheduler(**limits)
        for number in range(2):
            books.add(Sequence(number, [number], max_len=30, arrival=number))
        step(books)
        assert lengths(step(books, guesses)) == expected
    books = scheduler()
    books.add(Sequence(0, [0], max_len=5))
    step(books)
    assert lengths(step(books, guesses, accept=5)) == {0: 3}  # 2 known, 2 accepted, 1 sampled: 5
    assert books.plan() is None


def test_prompts_come_before_drafts() -> None:
    books = scheduler(max_num_batched_tokens=8)
    books.add(Sequence(0, [0], max_len=30, arrival=0))
    step(books)
    books.add(Sequence(1, prompt(5), max_len=30, arrival=1))
    assert lengths(step(books, {0: [1, 2, 3, 4, 5]})) == {0: 3, 1: 5}


def test_drafts_cost_nobody_a_block() -> None:
    books = scheduler(num_blocks=3, watermark=0)
    for number in range(2):
        books.add(Sequence(number, prompt(3, 10 * number), max_len=9, arrival=number))
    step(books)
    plan = step(books, {0: [1, 2, 3, 4, 5], 1: [1, 2]})
    assert plan.preempted == () and lengths(plan) == {0: 5, 1: 1}  # the one free block, and no more


def test_drafts_of_a_sequence_inside_its_prompt_are_left_out() -> None:
    books = scheduler(num_blocks=4, watermark=0, max_logit_rows=4, policy="priority")
    books.add(Sequence(1, prompt(3, 50), max_len=12, priority=1))
    step(books)
    books.add(Sequence(0, prompt(12), max_len=14, priority=0, prompt_rows=True))
    assert [lengths(step(books, {0: [1], 99: [1]})) for _ in range(2)] == [{0: 3, 1: 1}] * 2
    assert lengths(step(books)) == {0: 2, 1: 1}  # what its second block holds: fewer rather than preempt
    plan = step(books, {0: [1]})  # the row that was kept for the preempted one is left over
    assert plan.preempted == (1,) and lengths(plan) == {0: 3}


def test_logits_of_the_prompt_are_handed_out_once_each() -> None:
    books = scheduler(
        num_blocks=6, watermark=0, max_num_batched_tokens=5, max_logit_rows=4, policy="priority"
    )
    books.add(Sequence(0, prompt(9), max_len=12, priority=1, prompt_rows=True))
    rows: list[int] = []
    for number in range(6):
        if number == 2:
            books.add(Sequence(1, prompt(15, 50), max_len=17, priority=0))  # preempts it in its prompt
        for part in step(books).steps:
            if part.sequence.id == 0 and part.begin < 9:
                end = part.begin + len(part.tokens)
                rows += range(end - part.rows, end)
                assert part.rows <= 4
    while books.stats().waiting or books.stats().running:
        for part in step(books).steps:
            if part.sequence.id == 0:
                end = part.begin + len(part.tokens)
                rows += range(end - part.rows, end)
    assert books.stats().preemptions == 1
    assert rows == list(range(11))  # 9 of the prompt, the last of them sampled, and 2 more samples


def test_what_was_scored_before_a_preemption_needs_no_rows_again() -> None:
    books = scheduler(max_logit_rows=2)
    books.add(Sequence(0, prompt(12), max_len=14, prompt_rows=True))
    for _ in range(3):
        assert lengths(step(books)) == {0: 2}
    books.reset()
    part = step(books).steps[0]
    assert (len(part.tokens), part.rows) == (8, 2)


def test_a_prompt_may_be_scored_without_generating() -> None:
    books = scheduler()
    books.add(Sequence(0, prompt(5), max_len=5, prompt_rows=True))
    part = step(books).steps[0]
    assert (part.rows, part.samples) == (5, True)
    assert books.plan() is None and books.stats().blocks_used == 0


def test_a_sequence_ends_when_told_and_at_its_length() -> None:
    books = scheduler()
    told, full = Sequence(0, [1], max_len=30, arrival=0), Sequence(1, [2], max_len=2, arrival=1)
    books.add(told)
    books.add(full)
    plan = books.plan()
    assert plan is not None
    books.commit(plan, [Outcome((7,), finished=True), Outcome((7,))])
    assert told.status is full.status is Status.FINISHED
    assert told.blocks == full.blocks == [] and books.plan() is None


def test_a_sequence_that_outgrows_the_whole_cache_ends_at_its_size() -> None:
    books = scheduler(num_blocks=3)
    one = Sequence(0, prompt(5), max_len=1000)
    books.add(one)
    assert one.max_len == 13  # 12 are in the cache; the last was sampled and never run
    while one.status is not Status.FINISHED:
        step(books)
    assert len(one.tokens) == 13 and books.stats().preemptions == 0


def test_refuses_what_can_never_run() -> None:
    books = scheduler(num_blocks=2, max_waiting=1)
    with pytest.raises(RequestError, match="9 tokens; the whole key-value cache holds 8"):
        books.add(Sequence(0, prompt(9), max_len=10))
    with pytest.raises(RequestError, match="no tokens"):
        books.add(Sequence(1, [], max_len=10))
    books.add(Sequence(2, prompt(8), max_len=10))
    with pytest.raises(CapacityError, match="queue is full"):
        books.add(Sequence(3, [1], max_len=10))
    books.check_integrity()
    assert books.stats().waiting == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_blocks": 0},
        {"block_size": 0},
        {"max_num_seqs": -1},
        {"max_num_batched_tokens": 0},
        {"max_logit_rows": 1.5},
        {"max_waiting": 0},
        {"watermark": 1.0},
        {"watermark": -0.1},
        {"watermark": float("nan")},
        {"policy": "lifo"},
    ],
)
def test_refuses_limits_that_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="scheduler"):
        scheduler(**wrong)  # type: ignore[arg-type]


def test_an_abort_frees_at_once_outside_a_step_and_at_its_commit_inside() -> None:
    books = scheduler()
    sequences = [Sequence(number, prompt(4, 10 * number), max_len=20, arrival=number) for number in range(3)]
    for sequence in sequences[:2]:
        books.add(sequence)
    step(books)
    assert books.abort(0) and sequences[0].status is Status.FINISHED and not sequences[0].blocks
    plan = books.plan()
    assert plan is not None
    assert books.abort(1) and sequences[1].status is Status.RUNNING and sequences[1].blocks
    assert not books.abort(1)
    books.add(sequences[2])
    assert books.abort(2) and not books.abort(2) and not books.abort(99)
    books.check_integrity()
    books.commit(plan, [Outcome()])  # what came of it is nobody's concern
    books.check_integrity()
    assert sequences[1].status is Status.FINISHED and sequences[1].tokens == [*prompt(4, 10), 7]
    assert books.stats().blocks_used == 0 and books.plan() is None


def test_a_failed_step_can_be_undone_and_run_again_or_given_up() -> None:
    books = scheduler()
    for number in range(3):
        books.add(Sequence(number, prompt(6, 10 * number), max_len=20, arrival=number))
    step(books)
    before = [(list(one.tokens), one.computed, list(one.blocks)) for one in books.running]
    plan = books.plan({0: [1, 2, 3, 4, 5, 6]})
    assert plan is not None
    books.abort(2)
    books.rollback(plan)
    books.check_integrity()
    assert [(one.tokens, one.computed, one.blocks) for one in books.running] == before[:2]
    assert lengths(step(books)) == {0: 1, 1: 1}
    plan = books.plan()
    assert plan is not None
    books.rollback(plan)
    for part in plan.steps:
        assert books.abort(part.sequence.id)
    books.check_integrity()
    assert books.stats().blocks_used == 0


def test_a_reset_runs_everything_again_from_its_tokens() -> None:
    books = scheduler()
    one = Sequence(0, prompt(6), max_len=20)
    books.add(one)
    step(books)
    books.reset()
    books.check_integrity()
    assert books.stats().blocks_free == 64
    assert lengths(step(books)) == {0: 7}


def test_dropping_the_cache_leaves_running_sequences_alone() -> None:
    books = scheduler()
    books.add(Sequence(0, prompt(9), max_len=10, arrival=0))
    books.add(Sequence(1, prompt(9, 50), max_len=20, arrival=1))
    step(books)
    assert books.stats().blocks_cached == 2
    books.drop_prefix_cache()
    books.check_integrity()
    assert books.stats().blocks_cached == 0
    assert lengths(step(books)) == {1: 1}


@pytest.mark.parametrize(
    ("drafts", "outcome"),
    [
        ([], Outcome((1, 2))),  # more tokens than rows
        ([], Outcome(())),  # none, and not finished
        ([5, 6], Outcome((5, 7, 1))),  # accepted what was not drafted
    ],
)
def test_an_outcome_that_cannot_be_changes_nothing(drafts: list[int], outcome: Outcome) -> None:
    books = scheduler()
    for number in range(2):
        books.add(Sequence(number, [number], max_len=30, arrival=number))
    step(books)
    plan = books.plan({1: drafts})
    assert plan is not None
    with pytest.raises(AssertionError):
        books.commit(plan, [Outcome((7,)), outcome])
    with pytest.raises(ValueError, match="zip"):
        books.commit(plan, [Outcome((7,))])
    assert [one.computed for one in books.running] == [1, 1]
    books.rollback(plan)
    books.check_integrity()


def test_a_chunk_inside_the_prompt_has_no_token() -> None:
    books = scheduler(max_num_batched_tokens=4)
    books.add(Sequence(0, prompt(6), max_len=9))
    plan = books.plan()
    assert plan is not None
    with pytest.raises(AssertionError, match="does not sample"):
        books.commit(plan, [Outcome((7,))])


def test_nothing_is_generated_beyond_the_length() -> None:
    books = scheduler()
    books.add(Sequence(0, prompt(6), max_len=6))
    plan = books.plan()
    assert plan is not None
    with pytest.raises(AssertionError, match="beyond"):
        books.commit(plan, [Outcome((7,))])
    books.commit(plan, [Outcome()])
    assert books.plan() is None


def test_a_plan_is_committed_once_and_before_the_next() -> None:
    books = scheduler()
    books.add(Sequence(0, [1], max_len=9))
    plan = books.plan()
    assert plan is not None
    with pytest.raises(AssertionError, match="neither committed nor"):
        books.plan()
    books.commit(plan, [Outcome((7,))])
    with pytest.raises(AssertionError, match="not the one"):
        books.commit(plan, [Outcome((7,))])
    with pytest.raises(AssertionError, match="not the one"):
        books.rollback(plan)

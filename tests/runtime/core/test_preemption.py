"""Who gives way to whom, by example."""

from __future__ import annotations

import pytest

from optpipe_runtime.core import Sequence, Status

from .driving import answer, lengths, prompt, scheduler, step


def test_nobody_overtakes_the_head_of_the_line() -> None:
    books = scheduler(num_blocks=8, watermark=0)
    books.add(Sequence(0, prompt(20), max_len=24, arrival=0))
    step(books)
    books.add(Sequence(1, prompt(16, 50), max_len=20, arrival=1))  # 4 blocks; 3 are free
    books.add(Sequence(2, [1], max_len=4, arrival=2))  # would fit
    assert lengths(step(books)) == {0: 1}


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


def test_what_was_scored_before_a_preemption_needs_no_rows_again() -> None:
    books = scheduler(max_logit_rows=2)
    books.add(Sequence(0, prompt(12), max_len=14, prompt_rows=True))
    for _ in range(3):
        assert lengths(step(books)) == {0: 2}
    books.reset()
    part = step(books).steps[0]
    assert (len(part.tokens), part.rows) == (8, 2)

"""What goes into the books and what comes out of them, by example."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optpipe.errors import RequestError
from optpipe_runtime.core import Outcome, Sequence, Status

from .driving import lengths, prompt, scheduler, step


def test_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, optpipe_runtime.core; print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    books = scheduler(num_blocks=2)
    with pytest.raises(RequestError, match="9 tokens; the whole key-value cache holds 8"):
        books.add(Sequence(0, prompt(9), max_len=10))
    with pytest.raises(RequestError, match="no tokens"):
        books.add(Sequence(1, [], max_len=10))
    books.add(Sequence(2, prompt(8), max_len=10))
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

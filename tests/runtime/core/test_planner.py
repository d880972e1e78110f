"""Steps by example: chunks, limits, admission, drafts, rows. ``lengths``: sequence id → tokens in a step."""

from __future__ import annotations

import pytest

from optpipe_runtime.core import Sequence
from optpipe_runtime.core.prefix_cache import PrefixCache

from .driving import lengths, prompt, scheduler, step


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


@pytest.mark.parametrize(
    ("threshold", "first", "second"),
    [(None, {0: 4, 1: 3}, {0: 7, 1: 1}), (3, {0: 3, 1: 3}, {0: 7, 1: 1}), (0, {0: 8}, {0: 8})],
)
def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one(threshold, first, second) -> None:
    books = scheduler(max_num_batched_tokens=8, long_prefill_token_threshold=threshold)
    books.add(Sequence(0, prompt(40), max_len=50, arrival=0))
    assert lengths(step(books)) == {0: 8}  # nobody is behind it
    books.add(Sequence(1, prompt(3, 90), max_len=30, arrival=1))
    assert lengths(step(books)) == first
    assert lengths(step(books)) == second


def test_several_long_prompts_leave_something_for_who_comes_after_them() -> None:
    books = scheduler(num_blocks=128, max_num_batched_tokens=16)
    for number in range(2):
        books.add(Sequence(number, prompt(60, 100 * number), max_len=70, arrival=number))
    books.add(Sequence(2, prompt(4, 900), max_len=9, arrival=2))
    assert lengths(step(books)) == {0: 8, 1: 4, 2: 4}
    assert lengths(step(books)) == {0: 7, 1: 8, 2: 1}  # the last prompt takes what is left


def test_prompts_within_the_budget_run_one_after_another() -> None:
    """So that a later one finds what an earlier one has computed."""
    books = scheduler(max_num_batched_tokens=16)
    for number in range(2):
        books.add(Sequence(number, prompt(12), max_len=20, arrival=number))
    assert lengths(step(books)) == {0: 12, 1: 4}


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
    books = scheduler(num_blocks=10, watermark=0, max_num_batched_tokens=8, long_prefill_token_threshold=0)
    books.add(Sequence(0, prompt(28), max_len=32, arrival=0))  # 7 blocks, 2 of them in the first step
    step(books)
    books.add(Sequence(1, prompt(16, 50), max_len=20, arrival=1))  # 4 blocks
    assert [lengths(step(books)) for _ in range(3)] == [{0: 8}, {0: 8}, {0: 4}]
    assert books.stats().preemptions == 0


def test_a_waiting_sequence_that_shares_a_running_one_s_prompt_is_admitted_once_that_is_computed() -> None:
    books = scheduler(num_blocks=10, watermark=0, max_num_batched_tokens=12, long_prefill_token_threshold=0)
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
    books = scheduler(num_blocks=8, watermark=0, max_num_batched_tokens=13, long_prefill_token_threshold=0)
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


def test_a_prompt_may_be_scored_without_generating() -> None:
    books = scheduler()
    books.add(Sequence(0, prompt(5), max_len=5, prompt_rows=True))
    part = step(books).steps[0]
    assert (part.rows, part.samples) == (5, True)
    assert books.plan() is None and books.stats().blocks_used == 0

"""A step planned before the outcome of the one before it is known."""

from __future__ import annotations

import random

import pytest

from optpipe_runtime.core import Outcome, Sequence

from .driving import answer, prompt, scheduler


def started(*lengths, max_len=40, **limits):
    """A scheduler with a plan out that computes all of some prompts."""
    planner = scheduler(**limits)
    for number, length in enumerate(lengths):
        planner.add(Sequence(number, prompt(length), max_len=max_len, arrival=number))
    return planner, planner.plan()


def commit(planner, plan, *, ended=(), token=7):
    planner.commit(plan, [answer(it, token, finished=it.sequence.id in ended) for it in plan.steps])
    planner.check_integrity()


def test_every_sequence_goes_on_with_the_token_of_its_row():
    planner, plan = started(5, 3)
    ahead = planner.plan_ahead()
    planner.check_integrity()
    assert [(it.sequence.id, it.begin, it.tokens, it.rows, it.samples) for it in ahead.steps] == [
        (0, 5, (-1,), 1, True),
        (1, 3, (-2,), 1, True),
    ]
    commit(planner, plan)
    assert [it.tokens for it in planner.out.steps] == [(7,), (7,)]
    commit(planner, planner.out)
    assert planner.out is None
    assert [len(it.tokens) for it in planner.running] == [7, 5]


def test_who_has_ended_is_left_out_and_their_blocks_are_free():
    planner, plan = started(4, 4, num_blocks=4, watermark=0)
    assert planner.plan_ahead() is not None
    assert planner.stats().blocks_free == 0  # a second block for each
    commit(planner, plan, ended={0})
    assert [it.sequence.id for it in planner.out.steps] == [1]
    assert planner.stats().blocks_used == 2
    commit(planner, planner.out, ended={1})
    assert planner.stats().blocks_used == 0


def test_nobody_is_left():
    planner, plan = started(5)
    assert planner.plan_ahead() is not None
    commit(planner, plan, ended={0})
    assert planner.out is None
    assert planner.plan() is None


def test_who_reaches_its_end_for_certain_is_not_planned():
    planner = scheduler()
    for number, max_len in enumerate((6, 9)):
        planner.add(Sequence(number, prompt(5), max_len=max_len, arrival=number))
    plan = planner.plan()
    assert [it.sequence.id for it in planner.plan_ahead().steps] == [1]
    commit(planner, plan)
    assert [it.sequence.id for it in planner.out.steps] == [1]


@pytest.mark.parametrize(
    "limits",
    [{"max_num_batched_tokens": 4}, {"num_blocks": 2, "watermark": 0}],
    ids=["a chunk inside a prompt", "too few blocks"],
)
def test_nothing_is_planned_ahead(limits):
    planner, plan = started(8, max_len=9 if "num_blocks" in limits else 40, **limits)
    if "num_blocks" in limits:
        planner, plan = started(8, max_len=40, **limits)  # lowered to the cache: 9
    assert planner.plan_ahead() is None
    planner.check_integrity()
    commit(planner, plan)
    assert planner.out is None


def test_not_past_drafts_nor_scored_prompts():
    planner, plan = started(5)
    commit(planner, plan)
    plan = planner.plan({0: [7, 7]})
    assert plan.steps[0].drafts == 2
    assert planner.plan_ahead() is None
    scored = scheduler()
    scored.add(Sequence(0, prompt(5), max_len=9, prompt_rows=True))
    assert scored.plan().steps[0].rows == 5
    assert scored.plan_ahead() is None


def test_not_while_somebody_may_be_let_in():
    planner, plan = started(5)
    planner.add(Sequence(9, prompt(3), max_len=9, arrival=9))
    assert planner.plan_ahead() is None
    commit(planner, plan)
    assert {it.sequence.id for it in planner.plan().steps} == {0, 9}


def test_goes_on_while_those_who_wait_do_not_fit_until_somebody_ends():
    planner, plan = started(8, 8, 12, num_blocks=6, watermark=0)
    assert [it.sequence.id for it in plan.steps] == [0, 1]
    assert planner.plan_ahead() is not None
    commit(planner, plan)
    assert planner.plan_ahead() is not None
    commit(planner, planner.out, ended={0})
    assert planner.plan_ahead() is None


def test_goes_on_while_all_places_are_taken_but_not_past_a_higher_priority():
    planner, _ = started(5, max_num_seqs=1, policy="priority")
    planner.add(Sequence(1, prompt(5), max_len=9, priority=0, arrival=1))
    assert planner.plan_ahead() is not None
    planner.drop_ahead()
    planner.add(Sequence(2, prompt(5), max_len=9, priority=-1, arrival=2))
    assert planner.plan_ahead() is None


def test_a_step_that_could_not_run_leaves_nothing_behind():
    planner, plan = started(4)
    assert planner.plan_ahead() is not None
    assert planner.stats().blocks_used == 2
    planner.drop_ahead()
    planner.check_integrity()
    assert planner.stats().blocks_used == 1
    commit(planner, plan)
    assert planner.out is None


def test_rolling_back_forgets_the_step_ahead():
    planner, plan = started(4)
    assert planner.plan_ahead() is not None
    planner.rollback(plan)
    planner.check_integrity()
    assert planner.stats().blocks_used == 0
    assert planner.plan() is not None


def test_aborts_between_the_two_end_with_the_first():
    planner, plan = started(5, 5)
    assert planner.plan_ahead() is not None
    assert planner.abort(1)
    commit(planner, plan)
    assert [it.sequence.id for it in planner.out.steps] == [0]


def test_the_books_hold_over_random_runs_with_and_without_steps_ahead():
    """Whatever comes between, the tokens are those of strict turns; blocks are back to zero at the end."""
    for seed in range(40):
        random_ = random.Random(seed)
        planner = scheduler(num_blocks=24, block_size=4, max_num_seqs=5, max_num_batched_tokens=16)
        open_, number, early = {}, 0, 0
        for _ in range(120):
            while random_.random() < 0.25:
                sequence = Sequence(
                    number, prompt(random_.randint(1, 12)), max_len=random_.randint(13, 40), arrival=number
                )
                planner.add(sequence)
                open_[number], number = sequence, number + 1
            plan = planner.out or planner.plan()
            if plan is None:
                continue
            ahead = planner.plan_ahead() if random_.random() < 0.8 else None
            early += ahead is not None
            planner.check_integrity()
            if random_.random() < 0.1:
                planner.abort(random_.choice(list(open_)))
            if random_.random() < 0.1:
                planner.rollback(plan)
                planner.check_integrity()
                continue
            outcomes = [
                Outcome((len(it.sequence.tokens),), random_.random() < 0.1) if it.samples else Outcome()
                for it in plan.steps
            ]
            planner.commit(plan, outcomes)
            planner.check_integrity()
        assert early > 5
        for sequence in open_.values():
            fresh = sequence.tokens[sequence.prompt_len :]
            assert fresh == list(range(sequence.prompt_len, len(sequence.tokens)))
        if planner.out is not None:
            planner.rollback(planner.out)
        for one in list(open_):
            planner.abort(one)
        planner.check_integrity()
        assert planner.stats().blocks_used == 0

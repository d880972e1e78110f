"""With an executor of stated step costs speculation is never more than 3 % slower than plain decoding."""

from functools import cache

import pytest

from .simulation import COSTS, LOADS, MS, RATES, Phase, simulate

SLOWEST = 0.97


def speedup(load, cost, **case):
    plain = plain_seconds(load, cost, case.get("noise", 0.0))
    return plain / simulate(LOADS[load], COSTS[cost], **case).seconds


@cache
def plain_seconds(load, cost, noise):
    return simulate(LOADS[load], COSTS[cost], plain=True, noise=noise).seconds


@pytest.mark.parametrize("rate", ["0", "0.3", "0.8", "1, then 0", "0, then 1", "every other"])
@pytest.mark.parametrize("load", ["1", "1, 64, 1"])
@pytest.mark.parametrize("cost", ["linear", "affine", "cliff"])
def test_hostile_cases(cost, load, rate):
    assert speedup(load, cost, rate=RATES[rate], ask_seconds=0.02 * MS) >= SLOWEST


@pytest.mark.parametrize("cost", ["linear", "affine", "tiles", "cliff"])
def test_when_nothing_is_ever_kept(cost):
    for load in LOADS:
        assert speedup(load, cost, ask_seconds=0.02 * MS) >= 0.985


@pytest.mark.parametrize("cost", ["linear", "knee", "tiles"])
def test_noisy_clocks(cost):
    for load in ("1", "8", "64"):
        for rate in ("0", "0.6"):
            assert speedup(load, cost, rate=RATES[rate], noise=0.05, ask_seconds=0.02 * MS) >= SLOWEST


@pytest.mark.parametrize("ask", [0.2, 2.0])
def test_proposals_that_take_long_or_say_nothing(ask):
    for cost in ("linear", "affine", "flat"):
        for load in ("1", "64"):
            for fill in (0.1, 0.9):
                case = {"rate": RATES["0.6"], "fill": fill, "ask_seconds": ask * MS}
                assert speedup(load, cost, **case) >= SLOWEST


@pytest.mark.parametrize("cost", ["linear", "affine", "flat"])
def test_a_draft_model_that_takes_a_tenth_of_a_step_or_a_half(cost):
    for milliseconds in (1.1, 5.5):
        for rate in ("0", "0.6"):
            case = {"rate": RATES[rate], "ask_seconds": milliseconds * MS, "cost_unit": "round"}
            assert speedup("1", cost, **case) >= SLOWEST
            assert speedup("64", cost, **case) >= SLOWEST


@pytest.mark.parametrize(
    ("cost", "load", "rate", "least"),
    [
        ("flat", "1", "1", 8.3),  # of 9
        ("flat", "1", "0.6", 2.3),  # of 2.47 = (1 - 0.6⁹) / 0.4
        ("flat", "64", "0.8", 3.6),  # of 4.33
        ("affine", "1", "1", 4.7),  # of 9 · 11 / 19
        ("affine", "1", "0.6", 1.55),
        ("affine", "8", "1", 1.8),
        ("knee", "8", "0.8", 1.5),
        ("cliff", "64", "0.8", 1.6),
        ("flat", "1, 64, 1", "every other", 1.5),
        ("affine", "1", "1, then 0", 1.3),
        ("affine", "1", "0, then 1", 1.3),
    ],
)
def test_where_it_pays_it_is_used(cost, load, rate, least):
    assert speedup(load, cost, rate=RATES[rate], ask_seconds=0.02 * MS) >= least


@pytest.mark.parametrize(
    ("cost", "share", "rate", "least"),
    [
        ("flat", 0.1, "0.8", 2.2),  # of 2.47 = 3.95 / 1.6, with 6 drafts
        ("flat", 0.3, "1", 2.4),  # of 2.65
        ("flat", 0.5, "1", 1.7),  # of 1.8
        ("affine", 0.3, "0.8", 1.2),  # of 1.37
        ("affine", 0.5, "1", 1.5),  # of 1.57
    ],
)
def test_where_rounds_of_the_first_layers_pay_they_are_run(cost, share, rate, least):
    seconds = share * COSTS[cost](1)
    assert speedup("1", cost, rate=RATES[rate], ask_seconds=seconds, cost_unit="round") >= least


def test_falls_to_zero_when_the_load_rises_and_comes_back():
    phases = [Phase(1, 400), Phase(64, 6400), Phase(1, 400)]
    run = simulate(phases, COSTS["knee"], rate=RATES["0.8"])
    alone, crowded, again = (run.drafts[begin:end] for begin, end in run.bounds)
    assert sum(alone) / len(alone) > 5
    assert sum(crowded[10:]) / len(crowded[10:]) < 1
    assert sum(again) / len(again) > 5


def test_falls_to_zero_when_acceptance_falls_and_comes_back_without_running_drafts():
    """In between, proposals are only compared with what comes."""
    rate = lambda request, at: 0.0 if 200 <= at < 600 else 1.0  # noqa: E731
    run = simulate([Phase(1, 1000, length=1000)], COSTS["affine"], rate=rate)
    at = next(i for i in range(len(run.given)) if run.given[i] >= 200)
    back = next(i for i in range(len(run.given)) if run.given[i] >= 600)
    assert sum(run.drafts[at + 16 : back - 1]) <= 24
    late = next(i for i in range(len(run.given)) if run.given[i] >= 660)
    assert min(run.drafts[late : late + 20]) >= 4


def test_steps_that_cost_more_than_they_did_end_the_drafting():
    """Costs that turn from flat to linear in the middle: what was learnt must not be trusted for ever."""
    steps = 0

    def seconds(tokens):
        nonlocal steps
        steps += 1
        return 10 * MS if steps < 60 else 10 * tokens * MS

    run = simulate([Phase(1, 2000, length=4000)], seconds, rate=RATES["0.6"])
    assert sum(run.drafts[:60]) > 200
    assert sum(run.drafts[-300:]) <= 20

from itertools import pairwise

import pytest

from optpipe_runtime.speculation import Controller, FixedController
from optpipe_runtime.speculation.acceptance import PRIOR, Acceptance
from optpipe_runtime.speculation.controller import CREDIT, PROBE_EVERY, REFRESH
from optpipe_runtime.speculation.step_cost import EXACT, SAMPLES, StepCost, size_class


def cost_of(*points):
    cost = StepCost()
    for tokens, seconds in points:
        cost.observe(tokens, seconds)
    return cost


def test_steps_between_those_that_were_seen():
    cost = cost_of((1, 10.0), (5, 14.0), (512, 521.0))
    assert [cost.seconds(n) for n in (1, 3, 5, 512)] == [10.0, 12.0, 14.0, 521.0]
    assert cost.seconds(100) == pytest.approx(109.0)


def test_steps_outside_of_what_was_seen_are_judged_unfavourably():
    assert StepCost().seconds(4) is None
    single = cost_of((4, 8.0))
    assert (single.seconds(1), single.seconds(8)) == (2.0, 16.0)
    flat = cost_of((2, 10.0), (4, 10.0))
    assert (flat.seconds(8), flat.seconds(16)) == (10.0, 20.0)  # the line goes on up to twice the size
    falling = cost_of((2, 10.0), (4, 9.0))
    assert falling.seconds(6) == 9.0


def test_one_slow_step_changes_nothing_and_a_lasting_change_does():
    cost = cost_of(*[(3, 1.0)] * 4, (3, 50.0))
    assert cost.seconds(3) == 1.0
    for _ in range(SAMPLES):
        cost.observe(3, 2.0)
    assert cost.seconds(3) == 2.0


def test_size_classes_rise_without_gaps():
    classes = [size_class(n) for n in range(1, 4000)]
    assert classes[: EXACT - 1] == list(range(1, EXACT))
    assert {b - a for a, b in pairwise(classes)} == {0, 1}
    assert (
        max(classes.count(c) / min(n for n in range(1, 4000) if size_class(n) == c) for c in (20, 30)) <= 0.25
    )


def test_acceptance_by_position():
    acceptance = Acceptance(3, memory=1.0)
    assert acceptance.gains() == (PRIOR, PRIOR**2, PRIOR**3)
    for _ in range(99):
        acceptance.record(0, True)
        acceptance.record(1, False)
    first, second, third = acceptance.gains()
    assert first > 0.99
    assert second < 0.02
    assert third < 0.001  # where nothing is known, as at the position before
    acceptance.record(3, True)  # beyond what is counted: nothing happens


def test_a_new_sequence_is_expected_to_be_like_the_others():
    everyone = Acceptance(2, memory=0.98)
    for _ in range(100):
        Acceptance(2, memory=0.85, parent=everyone).record(0, True)
    assert Acceptance(2, memory=0.85, parent=everyone).gains()[0] > 0.9
    alone = Acceptance(2, memory=0.85, parent=everyone)
    for _ in range(10):
        alone.record(0, False)
    assert alone.gains()[0] < 0.2


def observe(controller, tokens, drafts, decoding, produced, seconds, overhead=0.0):
    controller.observe(
        tokens=tokens, drafts=drafts, decoding=decoding, produced=produced, seconds=seconds, overhead=overhead
    )


def trained(seconds, *, sizes=(1, 2, 4, 8, 16, 32, 64), decoding=1):
    """A controller that has seen steps of these sizes, the plain one among them."""
    controller = Controller()
    observe(controller, decoding, 0, decoding, decoding, seconds(decoding))
    for size in sizes:
        if size != decoding:
            observe(controller, size, 0, 0, 0, seconds(size))
    return controller


def gains(rate, count=8):
    return [rate ** (i + 1) for i in range(count)]


def test_drafts_for_as_long_as_a_token_gets_cheaper():
    """Tokens a second, computed for every length: the one chosen is the best of all."""
    for fixed in (0.5, 3.0, 10.0, 100.0):
        controller = trained(lambda n, fixed=fixed: fixed + n, sizes=range(1, 17))
        for rate in (0.3, 0.6, 0.9, 1.0):
            chosen = controller.lengths(1, 0, [gains(rate)])[0]
            speeds = [(1 + sum(gains(rate, k))) / (fixed + 1 + k) for k in range(9)]
            assert speeds[chosen] > 0.985 * max(speeds), f"{fixed = }, {rate = }, {chosen = }"


def test_the_sequences_most_likely_to_gain_come_first():
    controller = trained(lambda n: 40.0 + n, sizes=range(1, 40), decoding=4)
    lengths = controller.lengths(4, 0, [gains(0.9), gains(0.6), gains(0.05), gains(0.9)])
    assert lengths[0] == lengths[3] > lengths[1] > lengths[2]


def test_drafts_that_are_still_to_be_made_must_pay_for_that_too():
    controller = trained(lambda n: 10.0, sizes=range(1, 17))
    cheap = controller.lengths(1, 0, [gains(0.7)], 0.1)[0]
    dear = controller.lengths(1, 0, [gains(0.7)], 3.0)[0]
    assert cheap == 8
    assert 1 <= dear < 4
    assert controller.lengths(1, 0, [gains(0.7)], 12.0) == [0]


def test_a_step_full_of_prompts_leaves_no_room_for_drafts_that_it_makes_dear():
    controller = trained(lambda n: max(10.0, n), sizes=(1, 2, 4, 8, 16, 64, 128))
    observe(controller, 65, 0, 1, 1, 65.0)
    assert controller.lengths(1, 0, [gains(0.5)])[0] > 2
    assert controller.lengths(1, 64, [gains(0.04)]) == [0]


def test_the_first_step_of_a_kind_is_plain():
    controller = Controller()
    assert controller.terms(1, 0, 0.0) is None
    assert controller.lengths(1, 0, [gains(1.0)]) == [0]
    controller = trained(lambda n: 10.0)
    assert controller.lengths(1, 0, [gains(1.0)]) == [8]
    assert controller.lengths(40, 0, [gains(1.0)]) == [0]


def test_now_and_then_a_step_is_plain_to_measure_it_again():
    controller = trained(lambda n: 10.0)
    for _ in range(REFRESH + 1):
        observe(controller, 9, 8, 1, 9, 10.0)
    assert controller.lengths(1, 0, [gains(1.0)]) == [0]
    observe(controller, 1, 0, 1, 1, 10.0)
    assert controller.lengths(1, 0, [gains(1.0)]) == [8]


def test_an_overdrawn_account_stops_everything_until_time_has_paid():
    controller = trained(lambda n: 10.0)
    for _ in range(int(CREDIT) + 3):
        observe(controller, 9, 8, 1, 1, 20.0)
    assert controller.balance < 0
    assert controller.terms(1, 0, 0.0) is None
    assert not controller.may_spend(0.0)
    steps = 0
    while controller.balance < 0:
        observe(controller, 1, 0, 1, 1, 10.0)
        steps += 1
    assert 50 < steps <= 250
    assert controller.terms(1, 0, 0.0) is not None


def test_gains_are_credited_and_proposing_is_charged():
    controller = trained(lambda n: 10.0)
    observe(controller, 5, 4, 1, 1, 15.0, overhead=1.0)
    lost = CREDIT * 10.0 - controller.balance
    assert lost == pytest.approx(5.0 + 1.0, rel=0.05)
    observe(controller, 5, 4, 1, 2, 15.0, overhead=1.0)  # one kept: 10 won, 6 spent
    assert controller.balance == pytest.approx(CREDIT * 10.0 - 2.0, rel=0.05)


def test_one_long_pause_of_the_machine_does_not_end_speculation_for_good():
    controller = trained(lambda n: 10.0)
    observe(controller, 9, 8, 1, 3, 5000.0)
    assert controller.balance >= -20.0


def test_small_drafts_are_run_only_to_learn_when_none_pay():
    controller = trained(lambda n: float(n))
    drafted = []
    for _ in range(4 * PROBE_EVERY):
        length = controller.lengths(1, 0, [gains(0.9)])[0]
        observe(controller, 1 + length, length, 1, 1, 1.0 + length)
        drafted.append(length)
    assert set(drafted) == {0, 1}
    assert 1 <= sum(drafted) <= 4


def test_few_proposals_until_their_cost_is_known_and_while_they_cost_much():
    controller = trained(lambda n: 10.0)
    assert controller.most_asks(None) == 1
    assert controller.most_asks(0.0) > 1000
    assert controller.most_asks(10.0) == int(CREDIT)


def test_fixed_lengths():
    controller = FixedController(max_drafts=3)
    assert controller.lengths(1, 0, [gains(0.0, 2), gains(0.0, 3)]) == [2, 3]
    assert controller.terms(1, 0, 5.0).least == 0

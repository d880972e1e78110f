import logging

from optpipe_runtime.core import Outcome, Sequence, SequenceStep, Status, StepPlan
from optpipe_runtime.speculation import Controller, FixedController, Speculator

from .scripted import ScriptedProposer

PROMPT = 4


def counting(tokens, count):
    """The text of a model that counts."""
    return [tokens[-1] + 1 + i for i in range(count)]


def sequence(number=0, max_len=100):
    made = Sequence(number, range(PROMPT), max_len=max_len)
    made.computed = PROMPT - 1
    return made


def make(kind="right", controller=None, **options):
    proposer = ScriptedProposer(kind, counting, 1000)
    return Speculator(proposer, controller or FixedController(max_drafts=4), **options)


def step(speculator, sequences, seconds=0.1, finished=False, tell=counting):
    """Draft, run and commit one step; what was drafted. Its fixed part takes as long as ten tokens."""
    drafts = speculator.drafts(sequences)
    steps, outcomes = [], []
    for it in sequences:
        draft = drafts.get(it.id, [])
        steps.append(
            SequenceStep(it, it.computed, (it.tokens[-1], *draft), len(draft), 1 + len(draft), samples=True)
        )
        truth = tell(it.tokens, len(draft) + 1)
        kept = next((i for i, token in enumerate(draft) if token != truth[i]), len(draft))
        outcomes.append(Outcome(tuple(truth[: kept + 1]), finished))
        it.tokens.extend(truth[: kept + 1])
        it.computed = len(it.tokens) - 1
    tokens = sum(len(it.tokens) for it in steps)
    speculator.observe(StepPlan(tuple(steps), tokens, tokens), outcomes, seconds * (10 + tokens))
    return drafts


def test_counts_by_position():
    speculator = make()
    text = sequence()
    assert step(speculator, [text]) == {0: [4, 5, 6, 7]}
    step(speculator, [text], tell=lambda tokens, count: [*counting(tokens, 2), 0, 0, 0][:count])
    stats = speculator.stats()
    assert stats.proposed == (2, 2, 2, 1)
    assert stats.accepted == (2, 2, 1, 1)
    assert stats.steps == 2
    assert stats.proposer == "scripted"
    assert stats.seconds > 0


def test_sequences_inside_their_prompt_or_at_their_last_token_have_no_drafts():
    speculator = make()
    inside, last, short = sequence(0), sequence(1, max_len=PROMPT + 1), sequence(2, max_len=PROMPT + 3)
    inside.computed = 1
    assert speculator.drafts([inside, last, short]) == {2: [4, 5]}


def test_nothing_is_drafted_behind_an_end_token_nor_beyond_the_limit():
    assert make(end_tokens=[5]).drafts([sequence()]) == {0: [4, 5]}
    assert make("too many").drafts([sequence()]) == {0: [4, 5, 6, 7]}


def test_sequences_that_end_are_forgotten_however_they_end():
    speculator = make()
    for finished in (True, False):
        text = sequence()
        step(speculator, [text], finished=finished)
        assert (speculator.proposer.asked == set()) == finished
    speculator.finish(0)
    speculator.finish(0)
    assert speculator.proposer.asked == set()
    longest = sequence(5)
    step(speculator, [longest])
    longest.status = Status.FINISHED  # the scheduler's word, at ``max_len``
    step(speculator, [longest])
    assert speculator.proposer.asked == set()
    assert speculator._states == {}


def test_a_proposer_that_failed_is_asked_again_after_a_rest():
    now = [0.0]
    speculator = make(clock=lambda: now[0])
    propose, calls = speculator.proposer.propose, []

    def fail(asks):
        calls.append(now[0])
        raise RuntimeError("the device is busy")

    speculator.proposer.propose = fail
    text = sequence()
    while now[0] < 9:
        assert step(speculator, [text]) == {}
        assert speculator.proposer.asked == set()
        now[0] += 0.25
    assert calls == [0.0, 1.0, 3.0, 7.0]
    speculator.proposer.propose = propose
    now[0] = 15.0
    assert step(speculator, [text])
    assert speculator.stats().failures == 4


def test_a_proposer_that_fails_is_not_asked_again_at_once_and_nobody_suffers(caplog):
    speculator = make()
    calls = []

    def fail(asks):
        calls.append(asks)
        raise RuntimeError("the draft model is gone")

    speculator.proposer.propose = fail
    with caplog.at_level(logging.ERROR):
        assert [step(speculator, [sequence()]) for _ in range(3)] == [{}, {}, {}]
    assert len(calls) == 1
    assert "'scripted' failed" in caplog.text


def test_a_sequence_that_gains_nothing_sleeps_and_is_looked_at_more_and_more_rarely():
    speculator = make("wrong", Controller(max_drafts=4))
    text = sequence(max_len=1000)
    drafted = [bool(step(speculator, [text])) for _ in range(200)]
    assert sum(drafted) <= 8
    assert 8 <= speculator.stats().looks <= 40


def test_a_look_that_would_have_been_kept_wakes_it():
    wrong, right = (lambda tokens, count: [0] * count), counting
    speculator = make("right", Controller(max_drafts=4))
    text = sequence(max_len=10_000)
    for i in range(300):
        drafts = step(speculator, [text], tell=wrong if i < 250 else right)
        if i == 249:
            assert not drafts
    assert len(drafts[0]) >= 2


def test_what_each_sequence_gets_is_its_own():
    """One is copied well, one is not: drafts go to the first, and the second sleeps."""
    speculator = Speculator(Halved(), Controller(max_drafts=4))
    good, bad = sequence(0, 1000), sequence(1, 1000)
    drafts = [step(speculator, [good, bad]) for _ in range(60)]
    assert all(len(it.get(0, [])) == 4 for it in drafts[30:])
    assert sum(len(it.get(1, [])) for it in drafts[30:]) <= 8


class Halved(ScriptedProposer):
    """Right about even sequences, wrong about odd ones."""

    def __init__(self):
        super().__init__("right", counting, 1000)

    def propose(self, asks):
        found = super().propose(asks)
        return [[0] * len(it) if ask.sequence_id % 2 else it for ask, it in zip(asks, found, strict=True)]

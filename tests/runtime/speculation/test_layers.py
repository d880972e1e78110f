"""``layers``: the model's first layers draft in its own cache, over a tape that knows what a part wrote."""

from __future__ import annotations

import random

import numpy as np
import pytest

import optpipe_runtime.engine.parts as parts
from optpipe.errors import RequestError
from optpipe.targets.protocol import StepInputs, StepResult
from optpipe.testing.tokenizer import save_tokenizer
from optpipe_runtime.core import Outcome, Scheduler, SchedulerConfig, Sequence, StepPlan
from optpipe_runtime.core.step_plan import SequenceStep
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams, StructuredOutput
from optpipe_runtime.speculation import Ask, Controller, FixedController, LayersProposer, Speculator
from optpipe_runtime.tokenizer import load_tokenizer

from ..tape import Done, TapeExecutor
from .simulation import RATES, Clock, KnowingProposer
from .test_same_text import GREEDY, PENALIZED, SEEDED, answers, prompts, texts

PARTIAL = 1 << 20  # marks a slot that only the first layers have written


class LayeredTape(TapeExecutor):
    """A tape whose first layers agree with the whole of it more often the more of them run.

    A step of the whole must not read a slot that only a part has written.
    """

    num_layers = 4

    def __init__(self, *args, right=0.75, **options):
        super().__init__(*args, **options)
        self.right, self.partial_steps, self.prepared = right, [], []

    def prepare_layers(self, layers):
        if not 1 <= layers < self.num_layers:
            raise RequestError(f"no part of {layers} layers")
        self.prepared.append(layers)

    def submit(self, step: StepInputs, *, logits=True, layers=None):
        if layers is None:
            done = super().submit(step, logits=logits)
            read = self._read(step)
            assert (read < PARTIAL).all(), "the whole model reads what a part of it wrote"
            return done
        assert layers in self.prepared
        self.partial_steps.append(step)
        self._check(step)
        self._tape[step.slot_mapping] = step.token_ids + PARTIAL
        rows = []
        for b in range(len(step.context_lens)):
            history = self._history(step, b) % PARTIAL
            row = self.row(history)
            if random.Random(repr(history.tolist())).random() > self.right:
                row = -row
            rows.append(row)
        found = np.stack(rows)
        return Done(StepResult(found.argmax(-1).astype(np.int64), found if logits else None))

    def _read(self, step):
        return np.concatenate([self._history(step, b) for b in range(len(step.context_lens))])

    def _history(self, step, b):
        places, block = np.arange(int(step.context_lens[b])), self.cache_spec.block_size
        return self._tape[step.block_tables[b, places // block].astype(np.int64) * block + places % block]


@pytest.fixture
def drafting(make_engine, monkeypatch):
    """→ an engine that always drafts by its first two layers; keywords are the config's."""

    def make(executor, drafts=4, eos=(), **config):
        def speculator(*_, executor, lender, **__):
            proposer = LayersProposer(executor, lender, layers=2)
            return Speculator(proposer, FixedController(max_drafts=drafts), end_tokens=eos)

        monkeypatch.setattr(parts, "make_speculator", speculator)
        tokenizer = config.pop("tokenizer", None)
        settings = EngineConfig(**{"num_blocks": 512, "seed": 1, **config})
        engine = Engine.over(executor, tokenizer, config=settings, eos=eos)
        engines.append(engine)
        return engine

    engines: list[Engine] = []
    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("params", [GREEDY, SEEDED, PENALIZED], ids=["greedy", "seeded", "penalized"])
@pytest.mark.parametrize("right", [0.0, 0.75, 1.0])
def test_right_wrong_and_mixed(make_engine, drafting, right, params):
    asked = prompts(6)
    plain = make_engine().generate(asked, params)
    executor = LayeredTape(right=right)
    engine = drafting(executor)
    assert answers(engine.generate(asked, params)) == answers(plain)
    stats = engine.stats()
    proposed, accepted = sum(stats.draft_tokens), sum(stats.accepted_tokens)
    assert stats.blocks_used == 0
    if params is GREEDY:
        assert {
            0.0: accepted == 0 < proposed,
            0.75: 0 < accepted < proposed,
            1.0: accepted == proposed > 200,
        }[right]
    elif right:
        assert 0 < accepted < proposed


def test_all_sequences_in_one_round_and_no_more_rounds_than_drafts(drafting):
    executor = LayeredTape(right=1.0)
    drafting(executor).generate(prompts(8, shortest=5), GREEDY)
    assert max(len(step.token_ids) for step in executor.partial_steps) == 8
    assert len(executor.partial_steps) <= 4 * len(executor.steps)


@pytest.mark.parametrize("budget", [16, 512])
@pytest.mark.parametrize("blocks", [72, 512], ids=["preempted", "roomy"])
def test_mixed_batches(make_engine, drafting, budget, blocks):
    asked = prompts(16, longest=60)
    several = SamplingParams(temperature=1.0, n=2, seed=9, max_tokens=20)
    params = [(GREEDY, SEEDED, PENALIZED, several)[i % 4] for i in range(16)]
    plain = make_engine().generate(asked, params)
    engine = drafting(LayeredTape(), max_num_batched_tokens=budget, max_num_seqs=8, num_blocks=blocks)
    assert answers(engine.generate(asked, params)) == answers(plain)
    stats = engine.stats()
    assert stats.blocks_used == 0
    assert sum(stats.accepted_tokens) > 50
    assert stats.preemptions > 0 or blocks == 512


def test_past_the_end_token_and_past_max_tokens(make_engine, drafting):
    asked = prompts(6)
    plain = make_engine().generate(asked, SamplingParams(temperature=0, max_tokens=48))
    end = plain[0].token_ids[9]
    for length in (1, 2, 5, 48):
        params = SamplingParams(temperature=0, max_tokens=length)
        expected = make_engine(eos=[end]).generate(asked, params)
        engine = drafting(LayeredTape(right=1.0), drafts=7, eos=[end])
        assert answers(engine.generate(asked, params)) == answers(expected), length
        assert (sum(engine.stats().accepted_tokens) > 0) == (length > 2), length
        assert engine.stats().blocks_used == 0


def test_what_the_cache_holds_after_rejected_drafts(make_engine, drafting):
    """A prompt that goes on behind an earlier answer finds its blocks, and they hold that answer."""
    asked = prompts(3, shortest=10)
    executor = LayeredTape(right=0.5)
    engine = drafting(executor, drafts=6)
    first = engine.generate(asked, GREEDY)
    assert answers(first) == answers(make_engine().generate(asked, GREEDY))
    longer = texts(asked, first)
    hits = engine.stats().prefix_hits
    second = engine.generate(longer, GREEDY)
    assert engine.stats().prefix_hits - hits >= sum(len(it) // 4 * 4 - 4 for it in longer)
    assert [list(it.token_ids) for it in second] == [executor.continued(it, 48) for it in longer]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_grammar_that_refuses_drafts(make_engine, drafting, tmp_path, temperature):
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    size = tokenizer.backend.get_vocab_size()
    eos = [tokenizer.id_of(tokenizer.special["eos_token"])]
    letters = StructuredOutput(regex="[a-z ]{40}")  # often enough what a model without a grammar says
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=40, structured=letters)
    free = SamplingParams(temperature=temperature, seed=4, max_tokens=40)
    asked = [[it + 100 for it in prompt] for prompt in prompts(4, shortest=3)]
    options = {"tokenizer": tokenizer, "eos": eos}
    plain = make_engine(TapeExecutor(size), **options).generate(asked, [params, free, params, free])
    engine = drafting(LayeredTape(size, right=0.9), drafts=5, **options)
    assert answers(engine.generate(asked, [params, free, params, free])) == answers(plain)
    stats = engine.stats()
    assert 0 < sum(stats.accepted_tokens) < sum(stats.draft_tokens)


@pytest.mark.parametrize(("share", "most"), [(0.0, 8), (0.5, 2)])
def test_the_first_round_is_not_taken_to_be_free(share, most):
    """Before a round was timed it costs k of L layers of a step: half a step is only looked at."""
    clock = Clock()
    proposer = KnowingProposer(RATES["1"], clock, seconds=5e-3, cost_unit="round")
    proposer.step_share, limits = share, []
    propose = proposer.propose
    proposer.propose = lambda asks: limits.append(asks[0].limit) or propose(asks)
    speculator = Speculator(proposer, Controller(max_drafts=8), clock=clock)
    sequence = Sequence(1, [1, 2, 3], max_len=100)
    while not limits:
        sequence.computed = len(sequence.tokens) - 1
        drafts = speculator.drafts([sequence]).get(1, [])
        step = SequenceStep(sequence, sequence.computed, (0, *drafts), len(drafts), 1 + len(drafts), True)
        speculator.observe(StepPlan((step,), 1 + len(drafts), 1), [Outcome((7,))], 10e-3)
        speculator.controller.cost.observe(16, 10e-3)  # checking drafts costs nothing, as far as is known
        sequence.tokens.append(7)
    assert limits == [most]


# Blocks


class Scarce:
    """A lender with some blocks."""

    def __init__(self, blocks):
        self.blocks, self.out = list(blocks), []

    def lend(self, count):
        self.out = [self.blocks.pop() for _ in range(min(count, len(self.blocks)))]
        return list(self.out)

    def give_back(self, blocks):
        returned = list(blocks)
        assert sorted(returned) == sorted(self.out)
        self.blocks += returned
        self.out = []


def computed(executor, tokens, blocks):
    """Run all but the last of a sequence's tokens."""
    count, size = len(tokens) - 1, executor.cache_spec.block_size
    places = np.arange(count)
    table = np.array([blocks], dtype=np.int32)
    executor.submit(
        StepInputs(
            token_ids=np.array(tokens[:-1]),
            positions=places,
            slot_mapping=table[0, places // size].astype(np.int64) * size + places % size,
            query_start=np.array([0, count], dtype=np.int32),
            context_lens=np.array([count], dtype=np.int32),
            block_tables=table,
            logit_rows=np.array([count - 1]),
        )
    )


@pytest.mark.parametrize(("free", "drafted"), [(0, 3), (1, 7), (2, 8), (9, 8)])
def test_fewer_drafts_where_blocks_lack(free, drafted):
    executor = LayeredTape(right=1.0)
    executor.allocate(40)
    lender = Scarce(range(30, 30 + free))
    proposer = LayersProposer(executor, lender, layers=1)
    tokens = list(range(10))  # 9 are computed: the third block of 4 has 3 slots left
    computed(executor, tokens, [5, 2, 7])
    ask = Ask(1, tokens, 8, 10, b"", [5, 2, 7])
    assert proposer.propose([ask]) == [executor.continued(tokens, drafted)]
    assert len(lender.blocks) == free
    assert proposer.propose([ask]) == [executor.continued(tokens, drafted)]


def test_nothing_where_not_even_the_last_token_has_a_slot():
    executor = LayeredTape(right=1.0)
    executor.allocate(40)
    proposer = LayersProposer(executor, Scarce([30]), layers=1)
    full, other = list(range(9)), list(range(20, 33))  # both at the end of their last block
    computed(executor, full, [5, 2])
    computed(executor, other, [1, 3, 4])
    asks = [Ask(1, full, 3, 9, b"", [5, 2]), Ask(2, other, 3, 9, b"", [1, 3, 4])]
    assert proposer.propose(asks) == [executor.continued(full, 3), []]


def test_blocks_come_back_when_a_round_fails():
    executor = LayeredTape(right=1.0)
    executor.allocate(40)
    lender = Scarce([30, 31])
    proposer = LayersProposer(executor, lender, layers=1)
    computed(executor, list(range(9)), [5, 2])

    def fail(step, **options):
        raise RuntimeError("broken")

    executor.submit = fail
    with pytest.raises(RuntimeError, match="broken"):
        proposer.propose([Ask(1, list(range(9)), 5, 9, b"", [5, 2])])
    assert len(lender.blocks) == 2


def test_the_scheduler_lends_what_nobody_owns():
    scheduler = Scheduler(SchedulerConfig(num_blocks=8, block_size=4))
    scheduler.add(Sequence(1, list(range(10)), max_len=20))
    plan = scheduler.plan()
    with pytest.raises(AssertionError, match="the plan that is out"):
        scheduler.lend(1)
    scheduler.rollback(plan)
    before = scheduler.stats().blocks_free
    lent = scheduler.lend(100)
    assert len(lent) == len(set(lent)) == before == 8
    assert scheduler.lend(1) == []
    scheduler.give_back(lent)
    scheduler.check_integrity()
    assert scheduler.stats().blocks_free == before


# Settings


def test_by_name(make_engine):
    asked = prompts(3)
    plain = make_engine().generate(asked, GREEDY)
    executor = LayeredTape(right=1.0, cost=lambda step: 1e-3)
    engine = make_engine(executor, speculation="layers", draft_layers=3)
    assert answers(engine.generate(asked, GREEDY)) == answers(plain)
    assert executor.prepared == [3]
    assert sum(engine.stats().accepted_tokens) > 20
    executor = LayeredTape()
    make_engine(executor, speculation="layers")
    assert executor.prepared == [2]


@pytest.mark.parametrize(
    ("executor", "settings", "sentence"),
    [
        (TapeExecutor, {"speculation": "layers"}, "cannot run a model's first layers alone"),
        (LayeredTape, {"speculation": "layers", "draft_layers": 4}, "no part of 4 layers"),
        (LayeredTape, {"speculation": "ngram", "draft_layers": 2}, "'ngram' does not go with draft layers"),
        (LayeredTape, {"draft_layers": 2}, "'none' does not go with draft layers"),
        (LayeredTape, {"speculation": "layers", "draft_layers": 0}, "draft_layers must be at least 1"),
    ],
)
def test_settings_that_do_not_go_together(make_engine, executor, settings, sentence):
    with pytest.raises(RequestError, match=sentence):
        make_engine(executor(), **settings)

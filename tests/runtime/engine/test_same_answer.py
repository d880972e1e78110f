"""The same request has the same answer, bit for bit, whatever else is served and however it is computed."""

import random

import pytest

import optpipe_runtime.engine.parts as parts
from optpipe_runtime.core import Scheduler
from optpipe_runtime.sampling import SamplingParams

from ..tape import TapeExecutor

LENGTH = 64  # tokens of each answer, at least
GREEDY = SamplingParams(temperature=0, max_tokens=LENGTH, logprobs=3)
SEEDED = SamplingParams(
    temperature=0.9, top_p=0.95, seed=5, max_tokens=LENGTH, frequency_penalty=0.2, logprobs=1
)


def prompts(count, shortest=1, longest=90):
    """Prompts of many lengths; some begin alike."""
    random_ = random.Random(3)
    common = [random_.randrange(64) for _ in range(40)]
    found = [[random_.randrange(64) for _ in range(random_.randint(shortest, longest))] for _ in range(count)]
    return [common + it[:20] if i % 3 == 0 else it for i, it in enumerate(found)]


def answers(outputs):
    """What must be equal: every bit, or the tokens alone where an executor does not promise more."""
    if not TapeExecutor.batch_invariant:
        return [it.completions[0].token_ids for it in outputs]
    return [(it.completions[0].token_ids, it.completions[0].logprobs, it.prompt_logprobs) for it in outputs]


ALONE = {}


def alone(make_engine, asked, params):
    """Each by itself; worked out once."""
    engine = make_engine(prefix_caching=False)
    for prompt in asked:
        key = (tuple(prompt), repr(params))
        if key not in ALONE:
            ALONE[key] = answers([engine.submit(prompt, params).result()])[0]
    return [ALONE[tuple(prompt), repr(params)] for prompt in asked]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("budget", [16, 64, 512])
def test_alone_and_in_a_batch_of_32_with_chunks_and_prefix_cache(make_engine, params, prefix_caching, budget):
    asked = prompts(32)
    engine = make_engine(
        prefix_caching=prefix_caching,
        max_num_batched_tokens=budget,
        max_num_seqs=min(32, budget),
        num_blocks=2048,
    )
    together = answers(engine.generate(asked, params))
    assert together == alone(make_engine, asked, params)
    again = answers(engine.generate(asked[:8], params))
    assert again == together[:8]
    assert (engine.stats().prefix_hits > 0) == (prefix_caching and TapeExecutor.sequence_blocks is None)


def test_greedy_answers_are_the_model_s_own(make_engine):
    asked = prompts(8)
    executor = TapeExecutor()
    outputs = make_engine(executor).generate(asked, GREEDY)
    assert [list(it.token_ids) for it in outputs] == [executor.continued(it, LENGTH) for it in asked]


@pytest.mark.parametrize("budget", [3, 16, 512])
def test_prompt_logprobs_in_chunks(make_engine, budget):
    asked = prompts(6, shortest=20)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=2)
    engine = make_engine(max_num_batched_tokens=budget, max_num_seqs=3, num_blocks=512)
    engine.generate(asked, GREEDY)  # so that the prefix cache has the prompts
    found = answers(engine.generate(asked, params))
    assert found == alone(make_engine, asked, params)
    for prompt, output in zip(asked, engine.generate(asked, params), strict=True):
        assert [None, *prompt[1:]] == [it and it.token for it in output.prompt_logprobs]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_preempted_at_every_step(make_engine, monkeypatch, params):
    asked = prompts(3, shortest=6, longest=20)
    expected = alone(make_engine, asked, params)
    steps = []

    class Preempting(Scheduler):
        """Takes everything from everybody before one step."""

        at, count = None, 0

        def plan(self, *arguments):
            if self.at == self.count:
                self.reset()
            self.count += 1
            return super().plan(*arguments)

    monkeypatch.setattr(parts, "Scheduler", Preempting)
    engine = make_engine(max_num_batched_tokens=16, max_num_seqs=4)
    scheduler = engine._loop._scheduler
    assert answers(engine.generate(asked, params)) == expected
    last = scheduler.count
    assert last > LENGTH
    for at in range(1, last):
        scheduler.drop_prefix_cache()
        scheduler.at, scheduler.count = at, 0
        before = engine.stats().preemptions
        assert answers(engine.generate(asked, params)) == expected, f"preempted before step {at}"
        steps.append(engine.stats().preemptions - before)
    assert all(it > 0 for it in steps)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_cache_too_small_for_all(make_engine, policy):
    asked = prompts(12)
    engine = make_engine(num_blocks=64, policy=policy, max_num_batched_tokens=48, watermark=0.0)
    submissions = [engine.submit(it, GREEDY, priority=-i) for i, it in enumerate(asked)]
    found = answers([it.result() for it in submissions])
    assert found == alone(make_engine, asked, GREEDY)
    assert engine.stats().preemptions > 0
    assert engine.stats().blocks_used == 0


def test_n_choices_share_the_prompt_and_are_those_of_one_choice(make_engine):
    prompt = prompts(1, shortest=40)[0]
    engine = make_engine()
    several = engine.submit(prompt, SamplingParams(n=4, seed=5, max_tokens=20)).result()
    first = engine.submit(prompt, SamplingParams(n=1, seed=5, max_tokens=20)).result()
    assert several.completions[0].token_ids == first.token_ids
    assert len({it.token_ids for it in several.completions}) == 4
    assert [it.usage.cached_tokens >= len(prompt) // 4 * 4 - 4 for it in several.completions] == [False] + [
        True
    ] * 3
    assert several.usage.completion_tokens == 80

"""The generation loop, over toy executors whose next token depends on every token before it."""

from dataclasses import dataclass

import numpy as np
import pytest

import optpipe_runtime.generate as module
from optpipe.errors import RequestError
from optpipe.targets.protocol import CacheSpec, StepResult
from optpipe_runtime.generate import generate
from optpipe_runtime.sampling_simple import Sampling

V = 11
PROMPT = [1, 2, 3]


def row(history):
    """Logits [V] that prefer (3 × last + sum) mod V."""
    logits = np.zeros(V, dtype=np.float32)
    logits[(3 * history[-1] + sum(history)) % V] = 5.0
    return logits


def expected(prompt, count):
    history = list(prompt)
    for _ in range(count):
        history.append(int(row(history).argmax()))
    return tuple(history[len(prompt) :])


class Dense:
    """An executor without a cache."""

    cache_spec = None
    vocab_size = V

    def logits(self, token_ids, rows=None):
        history = token_ids.tolist()
        return np.stack([row(history[: at + 1]) for at in (range(len(history)) if rows is None else rows)])


@dataclass
class Handle:
    value: StepResult

    def result(self):
        return self.value


class Paged:
    """An executor whose cache holds token ids, read back through the block table."""

    cache_spec = CacheSpec(4, ((1, 8, 8),))
    vocab_size = V

    def __init__(self):
        self.steps = []

    def allocate(self, num_blocks):
        self.cache = np.full(num_blocks * 4, -1)

    def submit(self, step, *, logits=True):
        self.steps.append(step)
        self.cache[step.slot_mapping] = step.token_ids
        length = int(step.context_lens[0])
        slots = [int(step.block_tables[0, at // 4]) * 4 + at % 4 for at in range(length)]
        history = self.cache[slots].tolist()
        assert -1 not in history, "read before it was written"
        rows = np.stack([row(history[: step.positions[at] + 1]) for at in step.logit_rows])
        return Handle(StepResult(rows.argmax(-1), rows))


@pytest.mark.parametrize("executor", [Dense, Paged])
def test_greedy_continues_the_sequence(executor):
    result = generate(executor(), PROMPT, max_tokens=9)
    assert result.token_ids == expected(PROMPT, 9)
    assert result.finish_reason == "length"
    assert result.prompt_tokens == 3
    assert 0 < result.first_seconds <= result.seconds


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_the_prompt_in_chunks_gives_the_same(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    executor = Paged()
    prompt = [1, 2, 3, 4, 5]
    assert generate(executor, prompt, max_tokens=4).token_ids == expected(prompt, 4)
    assert len(executor.steps[0].token_ids) == chunk
    assert len(executor.steps) == -(-5 // chunk) + 3


def test_after_the_prompt_each_step_has_one_token():
    executor = Paged()
    generate(executor, PROMPT, max_tokens=4)
    assert [len(step.token_ids) for step in executor.steps] == [3, 1, 1, 1]


def test_a_stop_token_ends_the_text_and_is_not_part_of_it():
    tokens = expected(PROMPT, 6)
    stop = tokens[4]
    first = tokens.index(stop)
    result = generate(Paged(), PROMPT, max_tokens=50, stop=[stop])
    assert result.token_ids == tokens[:first]
    assert result.finish_reason == "stop"


def test_the_context_bounds_the_text():
    result = generate(Paged(), PROMPT, max_tokens=50, context=8)
    assert result.token_ids == expected(PROMPT, 5)
    assert result.finish_reason == "length"


def test_tokens_are_told_as_they_come():
    seen = []
    result = generate(Dense(), PROMPT, max_tokens=3, on_token=seen.append)
    assert tuple(seen) == result.token_ids


def test_a_seed_repeats_and_another_differs():
    def run(seed):
        sampling = Sampling(temperature=3.0, seed=seed)
        return generate(Dense(), PROMPT, max_tokens=20, sampling=sampling).token_ids

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {"max_tokens": 1}, "empty"),
        (PROMPT, {"max_tokens": 0}, "max_tokens"),
        (PROMPT, {"max_tokens": 1, "context": 3}, "3 tokens"),
    ],
)
def test_what_cannot_be_done_is_refused(prompt, options, message):
    with pytest.raises(RequestError, match=message):
        generate(Dense(), prompt, **options)

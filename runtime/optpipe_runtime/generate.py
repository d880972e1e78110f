"""Text from an artifact, one sequence at a time, over any target's executor.

With a paged artifact each step gives the executor only the new tokens; the rest is in the cache. Without,
every step computes the whole sequence again on the reference target: slow, and the same text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe.targets.protocol import Executor, StepInputs

from .sampling_simple import Sampler, Sampling

CHUNK = 512  # prompt tokens a step; bounds the memory that a long prompt needs

OnToken = Callable[[int], None]


@dataclass(frozen=True)
class Generated:
    """What was generated, and how fast.

    Attributes:
        token_ids: the new tokens, without the one that ended the text.
        finish_reason: "stop" for an end token, "length" for ``max_tokens`` or a full context.
        prompt_tokens: how many tokens the prompt had.
        first_seconds: until the first token was known.
        seconds: in all.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    first_seconds: float
    seconds: float


def generate(
    executor: Executor,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    stop: Collection[int] = (),
    context: int | None = None,
    on_token: OnToken = lambda token: None,
) -> Generated:
    """Continue a prompt.

    Args:
        executor: of a paged or an unpaged artifact.
        prompt: token ids, at least one.
        max_tokens: the most new tokens.
        sampling: how each is chosen.
        stop: ids that end the text and are not part of it.
        context: the most positions that the model takes, or None for no bound.
        on_token: told about each new token at once.

    Raises:
        RequestError: the prompt is empty or does not leave room for one token, or ``max_tokens`` is under 1.
    """
    if not prompt:
        raise RequestError("The prompt is empty: there is nothing to continue.")
    if max_tokens < 1:
        raise RequestError(f"max_tokens must be at least 1, got {max_tokens}.")
    if context is not None and len(prompt) >= context:
        raise RequestError(
            f"The prompt has {len(prompt)} tokens; the model takes {context}, and needs room for one."
        )
    room = max_tokens if context is None else min(max_tokens, context - len(prompt))
    begun = time.perf_counter()
    sequence = _sequence(executor, len(prompt) + room)
    sampler = Sampler(sampling)
    tokens: list[int] = []
    reason: Literal["stop", "length"] = "length"
    first = 0.0
    logits = sequence.extend(prompt)
    while True:
        token = sampler.choose(logits)
        first = first or time.perf_counter() - begun
        if token in stop:
            reason = "stop"
            break
        tokens.append(token)
        on_token(token)
        if len(tokens) == room:
            break
        logits = sequence.extend([token])
    return Generated(tuple(tokens), reason, len(prompt), first, time.perf_counter() - begun)


class _Sequence(Protocol):
    """A growing sequence of tokens."""

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; the logits [V] behind the last one."""
        ...


def _sequence(executor: Executor, length: int) -> _Sequence:
    return _DenseSequence(executor) if executor.cache_spec is None else _PagedSequence(executor, length)


class _DenseSequence:
    """Computes everything again at each step."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._tokens: list[int] = []

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._tokens.extend(tokens)
        last = np.asarray([len(self._tokens) - 1], dtype=np.int64)
        logits = self._executor.logits(np.asarray(self._tokens, dtype=np.int64), last)
        return np.asarray(logits[0], dtype=np.float32)


class _PagedSequence:
    """Keeps keys and values in blocks 0, 1, 2, … of the cache, so that a token's slot is its position."""

    def __init__(self, executor: Executor, length: int) -> None:
        spec = executor.cache_spec
        assert spec is not None, f"{executor = } has no cache"
        self._executor = executor
        self._blocks = -(-length // spec.block_size)
        self._length = 0
        executor.allocate(self._blocks)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        logits = None
        for at in range(0, len(tokens), CHUNK):
            logits = self._step(tokens[at : at + CHUNK])
        assert logits is not None, "extend needs a token"
        return logits

    def _step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        count, begin = len(tokens), self._length
        self._length += count
        positions = np.arange(begin, self._length, dtype=np.int64)
        step = StepInputs(
            token_ids=np.asarray(tokens, dtype=np.int64),
            positions=positions,
            slot_mapping=positions,
            query_start=np.asarray([0, count], dtype=np.int32),
            context_lens=np.asarray([self._length], dtype=np.int32),
            block_tables=np.arange(self._blocks, dtype=np.int32)[None, :],
            logit_rows=np.asarray([count - 1], dtype=np.int64),
        )
        result = self._executor.submit(step).result()
        assert result.logits is not None, "the step asked for one row of logits"
        return np.asarray(result.logits[0], dtype=np.float32)

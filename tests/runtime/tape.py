"""A fake paged executor whose every answer depends on every cache slot that it should have read.

Its cache stores the token id of each slot. A row of logits is a hash of the tokens that it reads back through
the block table, so that a wrong block, slot, position or length changes the text. Rows do not depend on the
batch: whatever the scheduling, the same sequence gives the same bits.

    executor = TapeExecutor(vocab_size=300, block_size=4)
    executor.next_token([1, 2, 3])        # what greedy decoding must give, from the tokens alone
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from optpipe.errors import RequestError
from optpipe.targets.protocol import (
    BANNED,
    NONE_LEFT,
    NOT_NUMBERS,
    PENALIZED,
    CacheSpec,
    Draws,
    Edits,
    Logprobs,
    MemoryNeeds,
    StepInputs,
    StepResult,
)
from optpipe_runtime.sampling import SamplingParams, uniform
from optpipe_runtime.sampling.choice import choose
from optpipe_runtime.sampling.logprobs import token_logprobs
from optpipe_runtime.sampling.mask import Scratch

EMPTY = -1


@dataclass(frozen=True)
class Done:
    value: StepResult

    def result(self) -> StepResult:
        return self.value


class Later:
    """A step that runs when its result, or a later one's, is asked for."""

    def __init__(self, executor: TapeExecutor, inputs: StepInputs, logits: bool, draws: Draws | None) -> None:
        self.executor, self.inputs, self.logits, self.draws = executor, inputs, logits, draws
        self.value: StepResult | None = None
        self.error: Exception | None = None

    def result(self) -> StepResult:
        self.executor.run_until(self)
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return self.value


def _drawn(row: np.ndarray, floats: np.ndarray, integers: np.ndarray) -> int:
    """The token that the sampler itself would choose."""
    if not np.isfinite(row.max()):
        return NONE_LEFT if np.isneginf(row).all() else NOT_NUMBERS
    (temperature, top_p, floor), (top_k, seed, index) = floats.tolist(), integers.tolist()
    min_p = 0.0 if floor == -np.inf else math.exp(floor / temperature)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if params.greedy:
        return int(row.argmax())
    return choose(row, params, partial(uniform, seed, index), Scratch(len(row)))


def edited(rows: np.ndarray, edits: Edits) -> np.ndarray:
    """Rows [R, V] as tokens are drawn from them, by the definition of ``Edits``."""
    found = rows.copy()
    for r, row in enumerate(found):
        repetition, presence, frequency = edits.penalties[r]
        for e in range(edits.starts[r], edits.starts[r + 1]):
            value = row[edits.tokens[e]] + edits.biases[e]
            if edits.flags[e] & PENALIZED:
                value = value / repetition if value > 0 else value * repetition
                value = value - frequency * edits.counts[e] - presence * np.float32(edits.counts[e] > 0)
            row[edits.tokens[e]] = -np.inf if edits.flags[e] & BANNED else value
        if edits.masked[r] >= 0:
            bits = np.unpackbits(edits.masks[edits.masked[r]].view(np.uint8), bitorder="little")
            row[bits[: len(row)] == 0] = -np.inf
    return found


def told(rows: np.ndarray, tokens: np.ndarray, top: int) -> Logprobs:
    """Log-probabilities of rows [R, V], as the sampler computes them."""
    found = Logprobs(
        np.full(len(rows), np.nan), np.full((len(rows), top), -np.inf), np.full((len(rows), top), -1)
    )
    for r, row in enumerate(rows):
        if np.isfinite(row.max()):
            each = token_logprobs(row, max(int(tokens[r]), 0), top, Scratch(len(row)))
            found.chosen[r] = each.logprob
            for n, (token, value) in enumerate(each.top):
                found.tokens[r, n], found.likeliest[r, n] = token, value
    return found


class TapeExecutor:
    """See the module.

    Args:
        vocab_size: V.
        block_size: tokens a block.
        memory: the logits depend on this many of the last tokens only, so that a small one soon repeats
            itself (all are read and checked all the same); None for the whole sequence.
        sharpness: the spread of the logits; 1 is nearly flat.
        cost: seconds that a step of these inputs takes; they are slept.
        before_step: called with each step's inputs; may raise, or block.
        end: never the likeliest token, so that greedy text does not end; None for no such token.
        feeds_tokens: a step may take its tokens from the one before. Then nothing runs before its result, or
            that of a later step, is asked for, as on a device that is slower than its host.
        draws_tokens: tokens may be drawn here, with the sampler's own arithmetic.
    """

    batch_invariant = True
    sequence_blocks: int | None = None  # any number

    def __init__(
        self,
        vocab_size: int = 64,
        block_size: int = 4,
        *,
        memory: int | None = None,
        sharpness: float = 4.0,
        cost: Callable[[StepInputs], float] | None = None,
        before_step: Callable[[StepInputs], None] | None = None,
        end: int | None = None,
        feeds_tokens: bool = False,
        draws_tokens: bool = False,
    ) -> None:
        self.vocab_size = vocab_size
        self.feeds_tokens, self.draws_tokens = feeds_tokens, draws_tokens
        self.drawn = 0  # steps whose tokens were drawn
        self.early = 0  # steps that were submitted before the result of the one before was asked for
        self._given = np.zeros(0, dtype=np.int64)  # the tokens of the step that ran last
        self._queue: list[Later] = []
        self.cache_spec = CacheSpec(block_size, ((1, 8, 8),))
        self.cost, self.before_step = cost, before_step
        self.steps: list[StepInputs] = []
        self.num_blocks = 0
        self._memory, self._sharpness, self._end = memory, np.float32(sharpness), end
        self._tape = np.zeros(0, dtype=np.int64)
        with np.errstate(over="ignore"):
            self._columns = _mix(np.arange(vocab_size, dtype=np.uint64))

    kv_dtypes = ("i64",)

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """Of the tape."""
        return 8 * self.cache_spec.block_size

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """The rows of logits."""
        return MemoryNeeds(weights=0, workspace=4 * rows * self.vocab_size)

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """A cache in which nothing was written."""
        self.num_blocks = num_blocks
        self._tape = np.full(num_blocks * self.cache_spec.block_size, EMPTY)

    def submit(self, step: StepInputs, *, logits: bool = True, draws: Draws | None = None) -> Done | Later:
        """Write the tokens to their slots, then hash what each wanted row can see."""
        if not self.feeds_tokens:
            return Done(self.run(step, logits=logits, draws=draws))
        self.early += bool(self._queue)
        self._queue.append(Later(self, _copy(step), logits, draws))
        return self._queue[-1]

    def run_until(self, step: Later) -> None:
        """Run what was submitted, in order, up to a step."""
        while step in self._queue:
            first = self._queue.pop(0)
            try:
                first.value = self.run(first.inputs, logits=first.logits, draws=first.draws)
            except Exception as error:
                first.error = error

    def run(self, step: StepInputs, *, logits: bool, draws: Draws | None = None) -> StepResult:
        """A step, now."""
        if self.feeds_tokens:
            ids = step.token_ids.copy()
            ids[ids < 0] = self._given[-1 - ids[ids < 0]]
            step = replace(step, token_ids=ids)
        self.steps.append(_copy(step))
        if self.before_step is not None:
            self.before_step(step)
        if self.cost is not None:
            time.sleep(self.cost(step))
        self._check(step)
        writes = step.slot_mapping >= 0
        self._tape[step.slot_mapping[writes]] = step.token_ids[writes]
        rows = self._rows(step)
        given = rows.argmax(-1).astype(np.int64)
        logprobs = None
        if draws is not None:
            self.drawn += 1
            values = rows if draws.edits is None else edited(rows, draws.edits)
            settings = zip(values, draws.floats, draws.integers, strict=True)
            given = np.array([_drawn(*it) for it in settings], dtype=np.int64)
            logprobs = None if draws.top is None else told(rows, given, draws.top)
        self._given = np.maximum(given, 0)
        return StepResult(given, rows if logits else None, logprobs)

    def logits(self, token_ids: Any, rows: Any = None) -> Any:
        """Logits of a whole sequence, without the cache."""
        at = range(len(token_ids)) if rows is None else rows
        return np.stack([self.row(token_ids[: i + 1]) for i in at])

    def row(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [V] behind these tokens."""
        seen = np.asarray(tokens, dtype=np.uint64)
        seen = seen if self._memory is None else seen[-self._memory :]
        with np.errstate(over="ignore"):
            places = np.arange(len(seen), 0, -1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            key = _mix(seen + places).sum(dtype=np.uint64)
            bits = _mix(self._columns + key)
        uniform = (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
        values = self._sharpness * (uniform * np.float32(2) - np.float32(1))
        if self._end is not None:
            values[self._end] = -self._sharpness
        return values

    def next_token(self, tokens: Sequence[int]) -> int:
        """The likeliest token behind these."""
        return int(self.row(tokens).argmax())

    def continued(self, tokens: Sequence[int], count: int) -> list[int]:
        """``count`` tokens of greedy decoding."""
        history = list(tokens)
        for _ in range(count):
            history.append(self.next_token(history))
        return history[len(tokens) :]

    def _rows(self, step: StepInputs) -> np.ndarray:
        out = np.empty((len(step.logit_rows), self.vocab_size), dtype=np.float32)
        block = self.cache_spec.block_size
        for r, token in enumerate(step.logit_rows.tolist()):
            b = int(np.searchsorted(step.query_start, token, side="right")) - 1
            places = np.arange(int(step.positions[token]) + 1)
            blocks = step.block_tables[b, places // block].astype(np.int64)
            history = self._tape[blocks * block + places % block]
            assert EMPTY not in history, f"row {r} reads a slot that was never written"
            out[r] = self.row(history)
        return out

    def _check(self, step: StepInputs) -> None:
        """What a real executor refuses, and that each token's slot is the one its block table says."""
        tokens, block = len(step.token_ids), self.cache_spec.block_size
        assert len(step.positions) == len(step.slot_mapping) == tokens == int(step.query_start[-1])
        assert len(step.query_start) == len(step.context_lens) + 1 == len(step.block_tables) + 1
        if tokens == 0 or not 0 <= int(step.token_ids.min()) <= int(step.token_ids.max()) < self.vocab_size:
            raise RequestError(f"Token ids must be in [0, {self.vocab_size}).")
        for b, length in enumerate(step.context_lens.tolist()):
            begin, end = int(step.query_start[b]), int(step.query_start[b + 1])
            places = np.arange(length - (end - begin), length)
            assert (step.positions[begin:end] == places).all(), f"positions of sequence {b}"
            slots = step.block_tables[b, places // block].astype(np.int64) * block + places % block
            assert (step.slot_mapping[begin:end] == slots).all(), f"slots of sequence {b}"
            assert int(slots.min()) >= 0 and int(slots.max()) < len(self._tape), f"{self.num_blocks = }"


def _copy(step: StepInputs) -> StepInputs:
    """The engine may reuse its arrays."""
    return StepInputs(**{name: np.array(getattr(step, name)) for name in StepInputs.__dataclass_fields__})


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, element by element, wrapping."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


class ScriptExecutor(TapeExecutor):
    """A tape whose continuations are written down: for text that a test needs word by word.

    Args:
        answers: prompt → the tokens that greedy decoding gives behind it; ``end`` follows them.
        end: the end token.
    """

    def __init__(
        self, answers: Mapping[tuple[int, ...], Sequence[int]], *, end: int, vocab_size: int, **options: Any
    ) -> None:
        super().__init__(vocab_size, **options)
        self._answers, self._after = {tuple(k): list(v) for k, v in answers.items()}, end

    def row(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [V]: the hash's, with the answer's token far above."""
        values = super().row(tokens)
        history = [int(it) for it in tokens]
        for prompt, answer in self._answers.items():
            place = len(history) - len(prompt)
            if place >= 0 and tuple(history[: len(prompt)]) == prompt:
                values[answer[place] if place < len(answer) else self._after] = 20.0
        return values

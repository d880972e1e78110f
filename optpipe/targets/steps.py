"""Steps made and steps checked, for every target. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RequestError
from .protocol import Ints, StepInputs, StepResult

INPUTS = {"token_ids": "input_ids", "positions": "position_ids"}
"""Where a step's arrays go among the inputs of a graph, when the name differs."""
_FEW = 64  # numbers up to which a list is quicker than an array


@dataclass(frozen=True)
class Done:
    """A step that has run."""

    value: StepResult

    def result(self) -> StepResult:
        """The step's result."""
        return self.value


def one_sequence(token_ids: Ints, block: int, begin: int = 0) -> StepInputs:
    """A step of one sequence in blocks 0, 1, 2, …: tokens from position ``begin`` on, logits for all."""
    end = begin + len(token_ids)
    at = np.arange(begin, end, dtype=np.int64)
    return StepInputs(
        token_ids=np.asarray(token_ids, dtype=np.int64),
        positions=at,
        slot_mapping=at,
        query_start=np.asarray([0, end - begin], dtype=np.int32),
        context_lens=np.asarray([end], dtype=np.int32),
        block_tables=np.arange(-(-end // block), dtype=np.int32)[None],
        logit_rows=np.arange(end - begin, dtype=np.int64),
    )


def check_tokens(token_ids: Ints, vocab_size: int) -> None:
    """Refuse an empty sequence and tokens outside the vocabulary."""
    if len(token_ids) == 0:
        raise RequestError("There is no token to run.")
    low, high = _bounds(token_ids)
    if low < 0 or high >= vocab_size:
        raise RequestError(f"Token ids must be in [0, {vocab_size}), got {low if low < 0 else high}.")


def check_step(step: StepInputs, blocks: int, block_size: int, vocab_size: int, *, fed: int = 0) -> None:
    """Refuse a step whose arrays disagree: it would read or write another sequence's memory.

    Args:
        fed: rows of the step before, whose tokens this one may take as −1 − row.

    Raises:
        RequestError: says which array, and how.
    """
    if fed and len(step.token_ids) and (low := int(step.token_ids.min())) < 0:
        if low < -fed:
            raise RequestError(
                f"A step takes the token of row {-1 - low} of the one before, which has {fed}."
            )
        check_tokens(np.maximum(step.token_ids, 0), vocab_size)
    else:
        check_tokens(step.token_ids, vocab_size)
    tokens, sequences = len(step.token_ids), len(step.context_lens)
    wrong: Any = None
    starts = step.query_start.tolist()
    if not len(step.positions) == len(step.slot_mapping) == tokens:
        wrong = f"{tokens} tokens, {len(step.positions)} positions and {len(step.slot_mapping)} slots"
    elif len(starts) != sequences + 1 or starts[0] != 0 or starts[-1] > tokens or starts != sorted(starts):
        wrong = f"query_start {starts} for {sequences} sequences and {tokens} tokens"
    elif step.block_tables.ndim != 2 or len(step.block_tables) != sequences:
        wrong = f"block_tables of shape {step.block_tables.shape} for {sequences} sequences"
    elif (slot := _bounds(step.slot_mapping)[1]) >= blocks * block_size:
        wrong = f"slot {slot} in a cache of {blocks * block_size} slots"
    elif len(step.logit_rows) and not _inside(step.logit_rows, tokens):
        wrong = f"logit rows outside [0, {tokens})"
    elif step.block_tables.size <= _FEW or not _tables_fit(step, blocks, block_size):
        wrong = _wrong_tables(step, blocks, block_size)
    if wrong is not None:
        raise RequestError(f"The step's arrays disagree: {wrong}.")


def _bounds(values: Ints) -> tuple[int, int]:
    """The least and the largest of one number or more."""
    if len(values) > _FEW:
        return int(values.min()), int(values.max())
    few = values.tolist()
    return min(few), max(few)


def _inside(values: Ints, end: int) -> bool:
    """Whether all of them are in [0, end)."""
    low, high = _bounds(values)
    return low >= 0 and high < end


def _tables_fit(step: StepInputs, blocks: int, block_size: int) -> bool:
    """Whether every sequence has blocks of the cache for its tokens. Every step asks, so all at once."""
    lengths, tables = step.context_lens, step.block_tables
    used = -(-lengths // block_size)
    if (lengths < np.diff(step.query_start)).any() or (used > tables.shape[1]).any():
        return False
    named = tables[np.arange(tables.shape[1]) < used[:, None]]
    return named.size == 0 or bool(named.min() >= 0 and named.max() < blocks)


def _wrong_tables(step: StepInputs, blocks: int, block_size: int) -> str | None:
    """What is wrong with them, in words."""
    starts = step.query_start.tolist()
    for b, (length, table) in enumerate(
        zip(step.context_lens.tolist(), step.block_tables.tolist(), strict=True)
    ):
        queries = starts[b + 1] - starts[b]
        used = table[: -(-length // block_size)]
        if length < queries:
            return f"sequence {b} has {queries} new tokens but a context of {length}"
        if len(used) * block_size < length:
            return f"sequence {b} has {length} tokens but {len(used)} blocks of {block_size}"
        if used and not 0 <= min(used) <= max(used) < blocks:
            return f"sequence {b} names a block outside [0, {blocks})"
    return None

"""Decoding with the whole executor: an 8B shape in 16, 8 and 4 bits, B = 1, 8, 64, 256, one step ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from optpipe.targets.protocol import StepInputs
from optpipe_kernels.cuda.executor import CudaExecutor
from optpipe_kernels.cuda.target import CudaTarget

from .cases import Place, Row, reason
from .random_model import TINY, Size, program, weights

CONTEXT, STEPS, WARM = 1024, 48, 8
GOALS = {  # tokens a second: must, stretch
    (16, 1): (158, 178), (8, 1): (250, 310), (4, 1): (300, 420), (16, 64): (6000, 7000),
    (4, 64): (8500, 10500),
}  # fmt: skip


def rows(place: Place, batches: tuple[int, ...] = (1, 64, 8, 256)) -> Iterator[Row]:
    """A row for every width and number of sequences, the goals' first. Figures are seconds a step."""
    size = TINY if place.dry else Size()
    for invariant in (True, False):
        for bits in (16, 4, 8):
            yield from _of_a_model(place, size, bits, (1, 2) if place.dry else batches, invariant)
        if invariant:
            yield _compiled_loop(place, size)


def _of_a_model(
    place: Place, size: Size, bits: int, batches: tuple[int, ...], invariant: bool
) -> Iterator[Row]:
    """Loading, and steps of every number of sequences."""
    mode = "" if invariant else ", not batch invariant"
    begun, made = time.perf_counter(), program(size, bits)
    try:
        executor = CudaTarget().load(
            made,
            weights(made, place.device),  # type: ignore[arg-type]
            device=place.device,
            dtype=place.dtype,
            batch_invariant=invariant,
        )
    except Exception as error:
        yield Row(f"{bits} bits{mode}: loading", 0.0, reason(error), {}, None, None)
        return
    yield Row(f"{bits} bits{mode}: loading", 0.0, time.perf_counter() - begun, {}, None, None)
    for batch in batches:
        yield _row(executor, place, bits, batch, mode)
    executor.close()
    del executor
    if place.device.type == "cuda":
        torch.cuda.empty_cache()


def _row(executor: CudaExecutor, place: Place, bits: int, batch: int, mode: str) -> Row:
    context = place.size(CONTEXT, 20)
    moved = executor.weight_bytes - _embedding(executor) + batch * context * executor.block_bytes() / 16
    floor = moved / place.bandwidth
    must, stretch = (batch / it for it in GOALS.get((bits, batch), (np.inf, np.inf)))
    row = Row(f"{bits} bits, B={batch}{mode}", floor, "", {}, None, None)
    if must:
        row.must, row.stretch = floor / must, floor / stretch
    try:
        row.ours = decode(executor, batch, context, place.size(STEPS, 3), place.size(WARM, 1))
        row.note = f"{batch / row.ours:,.0f} tokens a second"
    except Exception as error:
        row.ours = reason(error)
    return row


def _embedding(executor: CudaExecutor) -> int:
    """Bytes of the embedding, of which a step reads a row a sequence."""
    last = executor.lowered.steps[0]
    value = last.results[0]
    return executor.vocab_size * int(value.type.shape[-1]) * executor.operations.dtype.itemsize


def decode(executor: CudaExecutor, batch: int, context: int, steps: int, warm: int) -> float:
    """Seconds a step of ``batch`` sequences of ``context`` tokens, submitted one step ahead."""
    block = executor.cache_spec.block_size
    each = -(-(context + steps + warm + 1) // block)
    executor.allocate(each * batch)
    tables = np.random.default_rng(0).permutation(each * batch).reshape(batch, each).astype(np.int32)
    pending: Any = None
    begun = time.perf_counter()
    for number in range(steps + warm):
        step = _step(tables, block, context + number, first=number == 0)
        following = executor.submit(step, logits=False)
        if pending is not None:
            pending.result()
        pending = following
        if number == warm - 1:
            pending.result()
            begun = time.perf_counter()
    pending.result()
    return (time.perf_counter() - begun) / steps


def _step(tables: np.ndarray, block: int, position: int, *, first: bool) -> StepInputs:
    batch = len(tables)
    each = np.arange(batch)
    at = np.full(batch, position)
    used = -(-(position + 1) // block)
    return StepInputs(
        token_ids=each % 100 if first else -1 - each,
        positions=at,
        slot_mapping=tables[:, position // block].astype(np.int64) * block + position % block,
        query_start=np.arange(batch + 1, dtype=np.int32),
        context_lens=(at + 1).astype(np.int32),
        block_tables=tables[:, :used],
        logit_rows=each,
    )


def weights_of(size: Size, context: int) -> int:
    """Numbers that a token reads: of all matrices but the embedding, and of ``context`` keys and values.

    >>> weights_of(Size(), 0), weights_of(Size(), 1) - weights_of(Size(), 0)
    (7504658432, 65536)
    """
    heads = 2 * (size.heads + size.kv_heads) * size.width  # q and o; k and v
    matrices = size.layers * size.hidden * (heads + 3 * size.inner) + size.vocab * size.hidden
    return matrices + 2 * size.layers * context * size.kv_heads * size.width


def _compiled_loop(place: Place, size: Size) -> Row:
    """What one gets from torch alone: a static cache and torch.compile with CUDA graphs, B = 1, bf16."""
    from .static_loop import seconds_a_token

    floor = 2 * weights_of(size, CONTEXT) / place.bandwidth
    row = Row("a compiled loop with a static cache, bf16, B=1", floor, "", {}, None, None)
    try:
        row.ours = seconds_a_token(place, size, CONTEXT)
        row.note = f"{1 / row.ours:,.0f} tokens a second"
    except Exception as error:
        row.ours = reason(error)
    return row

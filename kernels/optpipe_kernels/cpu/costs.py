"""What an instruction costs at least: the bytes it must move and the operations it must do.

A weight is read once a step, activations are read and written once, of the cache only what is visible counts.
Operations are those on the numbers that the kernels multiply: two planes of int8 for an activation of 15 bits
are twice as many (native/src/ops/quantize.h).
What a kernel does beyond that (unpacking, a second pass) is its own affair: a fraction of the machine's limit
that comes from these figures is a fraction of the best that any kernel could do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from optpipe.program.types import DTYPE_BYTES

from .lowering.extent import Extent, Unit
from .lowering.instruction import Step
from .lowering.view import View
from .pack import quantized_bytes

_GATHERS = ("index_select", "gather")
_FLOATS = {16: "bf16", 32: "f32"}  # by bits of a weight


@dataclass(frozen=True)
class Cost:
    """Of one instruction.

    Attributes:
        bytes: read and written.
        operations: multiplications and additions, or one an element for what is not a product.
        numbers: what is multiplied: "int8", "bf16" or "f32".
        stored: of the bytes, those of weights and of the cache: activations of a step stay near.
    """

    bytes: int
    operations: int
    numbers: str = "f32"
    stored: int = 0


@dataclass(frozen=True)
class Sizes:
    """One sequence's step: ``tokens`` new ones, with logits for all, at the end of ``context`` tokens."""

    tokens: int
    context: int

    def count(self, extent: Extent) -> int:
        """What an extent is."""
        counts: Mapping[Unit, int] = {Unit.ONE: 1, Unit.T: self.tokens, Unit.R: self.tokens, Unit.B: 1}
        return extent.factor * counts.get(extent.unit, 1)

    def elements(self, view: View) -> int:
        """How many elements a view shows; those that repeat are counted once."""
        pairs = zip(view.size, view.stride, strict=True)
        return math.prod(self.count(size) for size, stride in pairs if stride.factor != 0)


def cost_of(kernel: str, step: Step, sizes: Sizes) -> Cost:
    """The cost of an instruction; of a segment, its operands alone."""
    views = [view for view in (*step.reads, *step.writes) if view is not None]
    if kernel in _GATHERS:
        views = [view for view in step.writes if view is not None] * 2
    moved = sum(sizes.elements(view) * DTYPE_BYTES[view.dtype] for view in views if not _is_cache(view))
    written = sum(sizes.elements(view) for view in step.writes if view is not None and not _is_cache(view))
    if kernel.removeprefix("quant_").startswith("linear"):
        return _product(kernel, step, sizes, moved)
    if kernel == "paged_attention":
        return _attention(step, sizes, moved)
    if kernel in ("kv_write", "rope_kv_write"):
        caches = [view for view in step.writes if view is not None and _is_cache(view)]
        stored = sum(_token_bytes(view) for view in caches) * sizes.tokens
        numbers = sum(_token(view) for view in caches) * sizes.tokens
        return Cost(moved + stored, written + numbers, stored=stored)
    if kernel == "moe":
        return _experts(step, sizes, moved)
    if kernel == "embedding":  # rows of a packed weight, and the same rows as floats
        return _rows(step, sizes)
    stored = moved // 2 if kernel in _GATHERS else _stored(step, sizes)
    return Cost(moved, written, stored=stored)


def _is_cache(view: View) -> bool:
    return getattr(view.place, "kind", "") == "cache"


def _token_bytes(cache: View) -> int:
    """Bytes of one token in a cache; each head of 8-bit numbers has a scale in float32."""
    heads = cache.size[2].factor if cache.dtype == "i8" else 0
    return _token(cache) * DTYPE_BYTES[cache.dtype] + 4 * heads


def _stored(step: Step, sizes: Sizes) -> int:
    """Bytes of weights that an instruction reads."""
    views = [view for view in step.reads if view is not None and _is_weight(view)]
    return sum(sizes.elements(view) * DTYPE_BYTES[view.dtype] for view in views)


def _is_weight(view: View) -> bool:
    return getattr(view.place, "kind", "") == "weight"


def _rows(step: Step, sizes: Sizes) -> Cost:
    """Rows of a packed table: their share of its bytes, and the floats that they become."""
    table, (out,) = step.reads[1], step.writes
    assert table is not None and out is not None, "an embedding reads a table"
    rows = sizes.elements(out) // _ints(step)[1]
    stored = sizes.elements(table) * rows // _ints(step)[0]
    return Cost(stored + 4 * sizes.elements(out), sizes.elements(out), stored=stored)


def _planes(row: View, inputs: int) -> int:
    """Of the rounded activations [rows, bytes] of K inputs."""
    return row.size[1].factor // quantized_bytes(inputs)


def _token(cache: View) -> int:
    """Numbers of one token in a cache [P, block, H, D]."""
    return math.prod(extent.factor for extent in cache.size[2:])


def _product(kernel: str, step: Step, sizes: Sizes, moved: int) -> Cost:
    outputs, inputs = _ints(step)[:2]
    x = step.reads[0]
    assert x is not None, f"{kernel} reads rows"
    halves = 2 if "gated" in kernel else 1
    operations = 2 * halves * outputs * inputs * sizes.count(x.size[0])
    stored = _stored(step, sizes)
    if kernel.startswith("quant_"):
        return Cost(moved, operations * _planes(x, inputs), "int8", stored)
    return Cost(moved, operations, _FLOATS[_ints(step)[2]], stored)


def _attention(step: Step, sizes: Sizes, moved: int) -> Cost:
    query, keys, values = step.reads[:3]
    assert query is not None and keys is not None and values is not None, "attention reads a cache"
    limits = [it for it in _ints(step)[:2] if it >= 0]
    first = sizes.context - sizes.tokens
    seen = [min([first + t + 1, *limits]) for t in range(sizes.tokens)]
    width = keys.size[3].factor + values.size[3].factor
    heads = query.size[1].factor
    reach = min([sizes.context, *(limit + sizes.tokens for limit in limits)])
    read = reach * (_token_bytes(keys) + _token_bytes(values))
    numbers = {"i8": "int8", "bf16": "bf16"}.get(keys.dtype, "f32")
    planes = 2 if numbers == "int8" else 1  # of queries and of weights: attention_int8.h
    return Cost(moved + read, 2 * heads * width * sum(seen) * planes, numbers, read)


def _experts(step: Step, sizes: Sizes, moved: int) -> Cost:
    count, inputs, inner, outputs, bits, _, _, _, gated, _, *planes = _ints(step)
    chosen, gate_up, down = step.reads[1], step.reads[3], step.reads[4]
    assert chosen is not None and gate_up is not None and down is not None, "experts are chosen"
    pairs = sizes.tokens * sizes.count(chosen.size[1])
    weights = sizes.elements(gate_up) + sizes.elements(down)
    unread = weights - weights * min(count, pairs) // count
    operations = 2 * pairs * (inputs * inner * (2 if gated else 1) + inner * outputs)
    stored = _stored(step, sizes) - unread
    if bits >= 16:  # bfloat16 is widened: moe.h
        return Cost(moved - unread, operations, stored=stored)
    return Cost(moved - unread, operations * (planes[0] if planes else 1), "int8", stored)


def _ints(step: Step) -> tuple[int, ...]:
    return getattr(step, "ints", ())

"""How much memory a step takes beside weights and cache: the most that lives at any moment."""

from __future__ import annotations

import math

from optpipe.program.dims import evaluate
from optpipe.program.program import Value

from .steps import Lowered

_SLACK = 1.25  # kernels' own workspaces and what the allocator rounds up
_DRAWN = 8 * 4096  # bytes a row: the candidates of a small top-k, while tokens are drawn
_VIEWS = ("aten.reshape", "aten.view", "aten.slice", "aten.select", "aten.chunk", "aten.split", "aten.expand")


def workspace_bytes(lowered: Lowered, itemsize: int, *, tokens: int, rows: int) -> int:
    """Bytes that the largest step takes, about.

    Args:
        itemsize: of the compute dtype.
        tokens: T, and of B as many.
        rows: R; logits are float32, once as computed and once as told.
    """
    sizes = {"T": tokens, "B": tokens, "R": rows, "M": 1, "P": 1}

    def nbytes(value: Value) -> int:
        item = {"f32": 4 if value.name in lowered.wide else itemsize, "i64": 8, "i32": 4, "bool": 1}
        count = math.prod(evaluate(dim, sizes) for dim in value.type.shape)
        return count * item.get(value.type.dtype, 4)

    last = {name: place for place, step in enumerate(lowered.steps) for name in step.reads()}
    last[lowered.output.name] = len(lowered.steps)
    alive: dict[str, int] = {}
    most = 0
    for place, step in enumerate(lowered.steps):
        if not step.kernel.startswith(_VIEWS):
            alive.update((value.name, nbytes(value)) for value in step.results)
        most = max(most, sum(alive.values()))
        for name in [it for it in alive if last.get(it, place) <= place]:
            del alive[name]
    return int(_SLACK * most) + rows * (2 * 4 * lowered.vocab_size + _DRAWN)

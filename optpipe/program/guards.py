"""What torch assumed about symbolic sizes while it worked out shapes, and whether that is always so.

A fake mode reasons with example sizes. Where a shape depends on how sizes compare, it takes the example's
answer and notes the comparison as a guard. Many guards hold for every size (``T//2 <= T + B``) and are of no
concern; one that does not (``T <= 2048``, ``Eq(T, 131)``) means that the graph is right for some sizes only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import sympy  # type: ignore[import-untyped]
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_LARGEST = 2**20  # tokens; no model traced here takes more
_SAMPLES = 64


def broken_guard(env: ShapeEnv, since: int, names: Mapping[str, str]) -> str | None:
    """A guard that some sizes break, and those sizes: ``T <= 2048, which T = 65536 breaks``.

    It is looked for among ``_SAMPLES`` small, large, equal and unequal sizes, the same each time.

    Args:
        since: how many guards there were when all was well.
        names: what to call torch's symbols, by their text.
    """
    for guard in env.guards[since:]:
        symbols = sorted(guard.expr.free_symbols, key=str)
        for sizes in _samples(len(symbols)):
            tried = dict(zip(symbols, sizes, strict=True))
            if guard.expr.xreplace({own: sympy.Integer(size) for own, size in tried.items()}) == sympy.false:
                called = {own: sympy.Symbol(names.get(str(own), str(own))) for own in symbols}
                broken = ", ".join(f"{called[own]} = {size}" for own, size in tried.items())
                return f"{guard.expr.xreplace(called)}, which {broken} breaks"
    return None


def _samples(count: int) -> Iterator[Sequence[int]]:
    """Sizes of at least 2 for ``count`` symbols."""
    for size in (2, 3, 131, 4096, _LARGEST):
        yield [size] * count
    draw = random.Random(0)
    for _ in range(_SAMPLES):
        yield [2 + int((_LARGEST - 2) ** draw.random()) for _ in range(count)]

"""From the passes a person named to the pipeline that runs: always on, required, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import PipelineError, nearest
from .base import Pass


def expand(named: Sequence[Pass], known: Mapping[str, type[Pass]], *, bare: bool = False) -> tuple[Pass, ...]:
    """The full pipeline.

    Args:
        named: passes in the order a person wrote them.
        known: every installed pass by name.
        bare: leave out the passes that are always on.

    Raises:
        PipelineError: a required pass is not installed, or ``before`` and ``after`` form a circle.
    """
    chosen: dict[str, Pass] = {}
    if not bare:
        chosen = {name: cls() for name, cls in known.items() if cls.always}
    chosen |= {p.name: p for p in named}
    waiting = list(chosen.values())
    while waiting:
        for needed in waiting.pop().required():
            name = needed if isinstance(needed, str) else needed.name
            if name in chosen:
                continue
            if name not in known:
                raise PipelineError(
                    f"A pass requires '{name}', which is not installed.", hint=nearest(name, known)
                )
            chosen[name] = known[name]() if isinstance(needed, str) else needed
            waiting.append(chosen[name])
    return _ordered(list(chosen.values()))


def _ordered(passes: list[Pass]) -> tuple[Pass, ...]:
    """By stage, then by before and after, then as written."""
    order: list[Pass] = []
    for stage in sorted({p.stage for p in passes}):
        left = [p for p in passes if p.stage is stage]
        while left:
            ready = next(
                (p for p in left if not any(_follows(p, other) for other in left if other is not p)), None
            )
            if ready is None:
                names = ", ".join(p.name for p in left)
                raise PipelineError(f"The passes {names} each ask to run after another of them.")
            order.append(ready)
            left.remove(ready)
    return tuple(order)


def _follows(one: Pass, other: Pass) -> bool:
    return other.name in one.after or one.name in other.before

"""``--target reference``: an entry that imports torch only when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..program import Program
    from ..weights.store import Weights
    from .reference import ReferenceExecutor


class ReferenceTarget:
    """The target that runs anything, slowly."""

    name = "reference"
    rank = 0

    def why_not(self) -> str | None:
        """It can always run."""
        return None

    def load(self, program: Program, weights: Weights, **options: Any) -> ReferenceExecutor:
        """An executor of ``program``; options are those of :class:`ReferenceExecutor`."""
        from ..program import to_fx
        from .reference import ReferenceExecutor

        return ReferenceExecutor(to_fx(program), weights, **options)

"""The base class of passes. Its subclasses are what ``--passes`` names."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from .contract import Contract, Lossless
from .stage import Stage

if TYPE_CHECKING:
    from torch import fx

    from .context import PassContext


def auto() -> Any:
    """The default of an option that is worked out when it is left alone: None, written ``auto``."""
    return dataclasses.field(default=None, metadata={"none": "auto"})


@dataclasses.dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a graph. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        name: the name on the command line, ``fuse-rope``. Field names print with ``-`` for ``_``.
        stage: when it runs.
        always: it is part of every pipeline unless ``--bare`` is given.
        requires: passes that are pulled in when this one is named.
        before: passes of the same stage that must run after this one.
        after: passes of the same stage that must run before this one.
        whole: its rewrites only make sense together, so ``--only-rewrites`` counts but never skips them.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    always: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False

    def required(self) -> tuple[str | Pass, ...]:
        """Passes that this one needs: names, or passes with options that follow from its own."""
        return self.requires

    def contract(self) -> Contract:
        """What the pass promises about the numbers, given its options."""
        return Lossless()

    def expected(self, config: dict[str, Any]) -> int | None:
        """How many rewrites the model's config promises at least, or None when it promises nothing."""
        return None

    @abstractmethod
    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        """Rewrite the graph in place, through ``cx``."""

    @classmethod
    def summary(cls) -> str:
        """The first sentence of the docstring."""
        text = " ".join((cls.__doc__ or "").split())
        return text.split(". ")[0].rstrip(".") + "." if text else ""

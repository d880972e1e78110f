"""Grammars of structured output, by llguidance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Grammar:
    """Where one sequence stands in its grammar.

    Attributes:
        stopped: whether nothing may follow any more.
    """

    @property
    def stopped(self) -> bool:
        """Whether nothing may follow any more."""
        raise NotImplementedError

    def advance(self, token: int) -> None:
        """Take an output token into account."""
        raise NotImplementedError

    def bits(self) -> NDArray[np.uint32]:
        """Which tokens may come: [ceil(V / 32)], token t's bit is bit t % 32 of word t // 32."""
        raise NotImplementedError

    def valid_prefix(self, tokens: tuple[int, ...]) -> int:
        """How many of these tokens, from the first on, may come."""
        raise NotImplementedError

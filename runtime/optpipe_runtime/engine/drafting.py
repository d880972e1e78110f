"""Which proposer a config asks for."""

from __future__ import annotations

from collections.abc import Collection

from optpipe.errors import RequestError, nearest

from ..speculation import Speculator
from .config import EngineConfig

NAMES = ("none",)


def make_speculator(config: EngineConfig, eos: Collection[int]) -> Speculator | None:
    """The speculator, or None without speculation.

    Raises:
        RequestError: there is no proposer of that name.
    """
    if config.speculation == "none":
        return None
    raise RequestError(
        f"There is no proposer named '{config.speculation}'.", hint=nearest(config.speculation, NAMES)
    )

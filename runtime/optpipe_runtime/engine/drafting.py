"""Which proposer a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection

from optpipe.errors import RequestError, nearest

from ..speculation import Controller, NgramProposer, Proposer, Speculator, SuffixProposer
from .config import EngineConfig

PROPOSERS: dict[str, Callable[[], Proposer]] = {"ngram": NgramProposer, "suffix": SuffixProposer}


def make_speculator(config: EngineConfig, eos: Collection[int]) -> Speculator | None:
    """The speculator, or None without speculation.

    Raises:
        RequestError: there is no proposer of that name.
    """
    if config.speculation == "none":
        return None
    if config.speculation not in PROPOSERS:
        raise RequestError(
            f"There is no proposer named '{config.speculation}'.",
            hint=nearest(config.speculation, ("none", *PROPOSERS)),
        )
    proposer = PROPOSERS[config.speculation]()
    return Speculator(proposer, Controller(max_drafts=config.max_draft_tokens), end_tokens=eos)

"""Proposers that are told the text beforehand, and what to make of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from optpipe_runtime.speculation import Ask

Know = Callable[[Sequence[int], int], list[int]]  # tokens so far, how many → what comes

KINDS = ("right", "wrong", "mixed", "empty", "too many")


class ScriptedProposer:
    """Right, wrong, mixed, empty or too many drafts.

    Args:
        know: what the model will say.
        vocab_size: of the wrong ones.
    """

    name = "scripted"
    cost_unit: Literal["ask", "round"] = "ask"

    def __init__(self, kind: str, know: Know, vocab_size: int = 64) -> None:
        assert kind in KINDS, f"{kind = }"
        self._kind, self._know, self._vocab_size = kind, know, vocab_size
        self._random = random.Random(4)
        self.asked: set[int] = set()

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        self.asked |= {ask.sequence_id for ask in asks}
        return [self._draft(ask) for ask in asks]

    def finish(self, sequence_id: int) -> None:
        self.asked.discard(sequence_id)

    def _draft(self, ask: Ask) -> list[int]:
        right = self._know(ask.tokens, ask.limit + (20 if self._kind == "too many" else 0))
        if self._kind == "empty" or (self._kind == "mixed" and self._random.random() < 0.2):
            return []
        if self._kind in ("right", "too many"):
            return right
        share = 0.0 if self._kind == "wrong" else 0.7
        return [
            it
            if self._random.random() < share
            else (it + 1 + self._random.randrange(self._vocab_size - 1)) % self._vocab_size
            for it in right
        ]


def texts_known(texts: Sequence[Sequence[int]]) -> Know:
    """Knows whole texts, prompt and output: what comes behind a beginning of one of them; then zeros."""

    def know(tokens: Sequence[int], count: int) -> list[int]:
        begun = [it for it in texts if list(it[: len(tokens)]) == list(tokens)]
        found = list(begun[0][len(tokens) : len(tokens) + count]) if begun else []
        return found + [0] * (count - len(found))

    return know

"""Prompts of a wanted length, seeded: pieces of a text that every Python has, or random token ids.

Each prompt begins at its own random place of the text, so two prompts do not share a beginning (the prefix
cache would make the second one cheap) unless that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from functools import cache
from typing import Protocol, TypeVar

from optpipe.errors import RequestError

T = TypeVar("T")
CHARACTERS = 300_000  # of the text that are used: more tokens than the contexts of most models
WORDS_A_TOKEN = 0.75  # of English, about, where no tokenizer says


class Backend(Protocol):
    """Turns text into ids; ``optpipe_runtime.tokenizer.Tokenizer`` does."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids."""
        ...


class PromptSource(Protocol):
    """Makes prompts."""

    def draw(self, length: int, source: random.Random) -> str | list[int]:
        """A prompt of ``length`` tokens: ids, or a text of about so many."""
        ...


class TextIds:
    """Pieces of the text, as a tokenizer's ids: their lengths are exact."""

    def __init__(self, tokenizer: Backend) -> None:
        self._ids = tokenizer.encode(text(), add_special_tokens=False)

    def draw(self, length: int, source: random.Random) -> list[int]:
        """See ``PromptSource``."""
        return _piece(self._ids, length, source)


class RandomIds:
    """Uniformly random ids: no text, but the same work. Special tokens are left out."""

    def __init__(self, vocab_size: int, special: Collection[int] = ()) -> None:
        left_out = set(special)
        self._ids = [it for it in range(vocab_size) if it not in left_out]
        if not self._ids:
            raise RequestError(f"A vocabulary of {vocab_size} ids, all special, has none for a prompt.")

    def draw(self, length: int, source: random.Random) -> list[int]:
        """See ``PromptSource``."""
        return source.choices(self._ids, k=length)


class Words:
    """Pieces of the text, as text, where no tokenizer is at hand: their lengths are about right."""

    def __init__(self) -> None:
        self._words = text().split()

    def draw(self, length: int, source: random.Random) -> str:
        """See ``PromptSource``."""
        return " ".join(_piece(self._words, max(1, round(length * WORDS_A_TOKEN)), source))


@cache
def text() -> str:
    """The text: the topics of Python's own help."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[:CHARACTERS]


def _piece(whole: Sequence[T], length: int, source: random.Random) -> list[T]:
    """``length`` items from a random place on, around the end when there are too few."""
    start = source.randrange(len(whole))
    found = list(whole[start : start + length])
    while len(found) < length:
        found += whole[: length - len(found)]
    return found

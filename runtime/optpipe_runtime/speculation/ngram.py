"""``ngram``: prompt lookup. What followed the longest earlier occurrence of the text's end comes again.

Each text keeps the newest position of every pair of tokens, and for every position the one before it with the
same pair. A proposal walks a few of these backwards, measures how far each agrees with the text's end, and
copies what followed the best:

    … the quick brown fox … the quick brown ▮
        └── position ──┘      └─ the end ─┘       draft: fox …

A new token costs one dictionary entry and a proposal a few comparisons, however long the text is.

Source: Saxena, "Prompt Lookup Decoding" (2023); hash chains as in RFC 1951, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .proposer import Ask

CANDIDATES = 8  # occurrences that a proposal compares, newest first
LONGEST = 24  # tokens; an agreement this long is as good as any longer one


class NgramProposer:
    """Copies what followed the longest match of a text's end within the text.

    Args:
        min_match: the fewest tokens that must agree, at least 2.
        stretch: the most drafts for each token of the match: a short one is often chance.
    """

    name = "ngram"
    cost_unit: Literal["ask", "round"] = "ask"

    def __init__(self, *, min_match: int = 2, stretch: float = 3.0) -> None:
        assert min_match >= 2, f"{min_match = } is shorter than the pairs that are indexed"
        self._min_match = min_match
        self._stretch = stretch
        self._texts: dict[int, _Text] = {}

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See ``Proposer.propose``."""
        return [self._propose(ask) for ask in asks]

    def finish(self, sequence_id: int) -> None:
        """See ``Proposer.finish``."""
        self._texts.pop(sequence_id, None)

    def _propose(self, ask: Ask) -> list[int]:
        text = self._texts.get(ask.sequence_id)
        if text is None:
            text = self._texts[ask.sequence_id] = _Text()
        match = text.longest_match(ask.tokens, self._min_match)
        if match is None:
            return []
        at, length = match
        return copied(ask.tokens, at, min(ask.limit, int(self._stretch * length)))


class _Text:
    """Where each pair of tokens was seen in one text. A position is that of a pair's second token."""

    __slots__ = ("_distance", "_newest", "_older")

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}
        self._older = [-1]  # position → the position before it with the same pair, or -1
        self._distance = 0  # from the last match to the text's end; 0 when there was none

    def longest_match(self, tokens: Sequence[int], min_match: int) -> tuple[int, int] | None:
        """The last position and the length of the best earlier match of the text's end, or None."""
        end = len(tokens) - 1
        if end < min_match:
            return None
        self._index(tokens, end)
        best, length = -1, min_match - 1
        # The match that was copied from last goes on where the copy was right.
        if self._distance:
            agreed = agreement(tokens, end - self._distance, end)
            if agreed > length:
                best, length = end - self._distance, agreed
        at = self._newest.get(tokens[end - 1] << 32 | tokens[end], -1)
        for _ in range(CANDIDATES):
            if at < 0 or length >= LONGEST:
                break
            agreed = agreement(tokens, at, end)
            if agreed > length:
                best, length = at, agreed
            at = self._older[at]
        self._distance = end - best if best >= 0 else 0
        return (best, length) if best >= 0 else None

    def _index(self, tokens: Sequence[int], end: int) -> None:
        """Enter all pairs but the one at the text's end, which has nothing behind it yet."""
        newest, older = self._newest, self._older
        begin = len(older)
        before = tokens[begin - 1]
        for at in range(begin, end):
            token = tokens[at]
            pair = before << 32 | token
            older.append(newest.get(pair, -1))
            newest[pair] = at
            before = token


def agreement(tokens: Sequence[int], at: int, end: int) -> int:
    """How many tokens ending at ``at`` equal those ending at ``end``; counted up to ``LONGEST``.

    >>> agreement([7, 1, 2, 8, 1, 2], 2, 5)
    2
    """
    length = 0
    while length < LONGEST and at >= length and tokens[at - length] == tokens[end - length]:
        length += 1
    return length


def copied(tokens: Sequence[int], at: int, limit: int) -> list[int]:
    """``limit`` tokens from behind ``at`` on; a copy that reaches the text's end goes on from its own start.

    >>> copied([5, 6, 5, 6], 1, 3)
    [5, 6, 5]
    """
    draft = list(tokens[at + 1 : at + 1 + limit])
    period = len(tokens) - 1 - at
    while len(draft) < limit:
        draft.append(draft[-period])
    return draft

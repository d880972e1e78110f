"""``suffix``: the most frequent continuation of the longest known end of a text, for as long as it is likely.

Two kinds of memory are asked. A sequence's own: its prompt and output, as ``ngram`` has it, but with counts,
so that the usual continuation wins over the newest one. And what is shared: outputs of other requests under
the same salt, running or finished, from which agents' and templates' repetitions are learnt. Both are suffix
automata. A draft follows the likeliest token from state to state; the product of the shares is its
confidence, and it ends where that falls under ``min_confidence`` or where the match was too short to carry
it further.

Memory is bounded: running sequences together index ``max_tokens`` tokens, and those beyond draft from what
is shared; what is shared is two generations of ``max_shared_tokens`` tokens for each of the ``SALTS`` salts
used last, the older of which is dropped when the newer is full.

Source: Oliaro et al., "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications" (2024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from .automaton import ROOT, SuffixAutomaton
from .proposer import Ask

CATCH_UP = 512  # tokens of one sequence that a call indexes at most: 1 or 2 ms
CONTEXT = 12  # tokens that are looked for in the older generation
SALTS = 16


class SuffixProposer:
    """Continues a text as its own past and other requests' outputs most often went on.

    Args:
        min_match: the fewest tokens that must agree.
        min_confidence: a draft ends where the product of its tokens' shares falls below this.
        stretch: the most drafts for each token of the match.
        max_tokens: that all running sequences together index; about 0.5 KB each.
        max_shared_tokens: of outputs, for each generation of each salt.
    """

    name = "suffix"
    cost_unit: Literal["ask", "round"] = "ask"

    def __init__(
        self,
        *,
        min_match: int = 1,
        min_confidence: float = 0.2,
        stretch: float = 2.0,
        max_tokens: int = 262_144,
        max_shared_tokens: int = 16_384,
    ) -> None:
        self._min_match = min_match
        self._min_confidence = min_confidence
        self._stretch = stretch
        self._room = max_tokens
        self._max_shared = max_shared_tokens
        self._texts: dict[int, _Text] = {}
        self._shared: OrderedDict[bytes, _Shared] = OrderedDict()

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See ``Proposer.propose``."""
        return [self._propose(ask) for ask in asks]

    def finish(self, sequence_id: int) -> None:
        """See ``Proposer.finish``."""
        text = self._texts.pop(sequence_id, None)
        if text is not None:
            self._room += text.own.tokens

    def _propose(self, ask: Ask) -> list[int]:
        shared = self._shared_by(ask.salt)
        text = self._texts.get(ask.sequence_id)
        if text is None:
            text = self._texts[ask.sequence_id] = _Text(ask.prompt_len)
        before = text.own.tokens
        text.index_own(ask.tokens, self._room)
        self._room -= text.own.tokens - before
        text.index_shared(ask.tokens, shared.newer)
        draft, score = self._follow(text.own, *text.own_match(ask.tokens), 1, ask.limit)
        if score < ask.limit:
            for automaton, state, length, here in (
                (text.shared, *known_end(text.shared, text.shared_last), 1),
                (shared.older, *shared.older.find(ask.tokens[-CONTEXT:]), 0),
            ):
                other, other_score = self._follow(automaton, state, length, here, ask.limit)
                if other_score > score:
                    draft, score = other, other_score
        return draft

    def _follow(
        self, automaton: SuffixAutomaton, state: int, length: int, here: int, limit: int
    ) -> tuple[list[int], float]:
        """The likeliest continuation of a state, and how many of its tokens are expected to be right.

        Args:
            length: of the match.
            here: occurrences of the state that are the text's end itself.
        """
        draft: list[int] = []
        confidence, score = 1.0, 0.0
        if state == ROOT or length < self._min_match:
            return draft, score
        limit = min(limit, int(self._stretch * length))
        following, count, best = automaton.next, automaton.count, automaton.best
        seen = count[state] - here
        while len(draft) < limit:
            token = best[state]
            if token == -1:  # the end of a text: what follows its own longest known end?
                state, length = known_end(automaton, state)
                if length < self._min_match:
                    break
                token, seen = best[state], count[state] - here
            state = following[state][token]
            if count[state] < seen:
                confidence *= count[state] / seen
            if confidence < self._min_confidence:
                break
            draft.append(token)
            score += confidence
            seen = count[state]
        return draft, score

    def _shared_by(self, salt: bytes) -> _Shared:
        shared = self._shared.get(salt)
        if shared is None:
            shared = self._shared[salt] = _Shared()
            if len(self._shared) > SALTS:
                self._shared.popitem(last=False)
        elif len(self._shared) > 1:
            self._shared.move_to_end(salt)
        if shared.newer.tokens >= self._max_shared:
            shared.older, shared.newer = shared.newer, SuffixAutomaton()
        return shared


class _Shared:
    """Outputs under one salt: two generations."""

    __slots__ = ("newer", "older")

    def __init__(self) -> None:
        self.newer = SuffixAutomaton()
        self.older = SuffixAutomaton()


class _Text:
    """One sequence's own automaton, and where it stands in the shared one."""

    __slots__ = ("_last", "_outside", "own", "shared", "shared_last")

    def __init__(self, prompt_len: int) -> None:
        self.own = SuffixAutomaton()
        self._last = ROOT
        self.shared = SuffixAutomaton()
        self.shared_last = ROOT
        self._outside = prompt_len  # tokens before this one are in no shared automaton

    def index_own(self, tokens: Sequence[int], room: int) -> None:
        begin = self.own.tokens
        end = min(len(tokens), begin + min(CATCH_UP, room))
        append, last = self.own.append, self._last
        for at in range(begin, end):
            last = append(last, tokens[at])
        self._last = last

    def index_shared(self, tokens: Sequence[int], newer: SuffixAutomaton) -> None:
        """Add what is new of the output to the generation that is filled now."""
        if self.shared is not newer:
            self.shared, self.shared_last = newer, ROOT
        begin = max(self._outside, len(tokens) - CATCH_UP)
        for at in range(begin, len(tokens)):
            self.shared_last = newer.append(self.shared_last, tokens[at])
        self._outside = len(tokens)

    def own_match(self, tokens: Sequence[int]) -> tuple[int, int]:
        """State and length of the longest end that was seen before; nothing while the index is behind."""
        if self.own.tokens < len(tokens):
            return ROOT, 0
        return known_end(self.own, self._last)


def known_end(automaton: SuffixAutomaton, last: int) -> tuple[int, int]:
    """The longest end of the text ending in ``last`` that something has followed: its state and length."""
    while last != ROOT and automaton.best[last] == -1:
        last = automaton.link[last]
    return last, automaton.length[last]

"""A suffix automaton that counts: every piece of text seen so far, how often, and what followed it most.

It is the suffix tree's smaller relative: each state stands for pieces of text that end at the same places,
a transition appends a token, and a state's link leads to the longest end of its pieces that occurs elsewhere
too. It grows by one token at a time, and may hold several texts that grow side by side.

Source: Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985).
"""

from __future__ import annotations

from collections.abc import Iterable

ROOT = 0
COUNTED = 24  # contexts of a token that are counted, longest first; more are alive only in text that repeats


class SuffixAutomaton:
    """Counts the continuations of every piece of some texts.

    A text is grown by passing the state that ``append`` gave for it back in; a new text begins at ``ROOT``.

    Attributes:
        tokens: how many were appended to all texts.
        next: state → token → state.
        link: state → the state of its longest end that occurs in more places; -1 for the root.
        length: state → tokens of its longest piece.
        count: state → how often its pieces occurred.
        best: state → the token that followed most often, the newest of equals; -1 for none.
    """

    __slots__ = ("best", "count", "length", "link", "next", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.next: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.count = [0]
        self.best = [-1]

    def append(self, last: int, token: int) -> int:
        """Append a token to the text that ends in state ``last``; the state in which it ends now."""
        self.tokens += 1
        target = self.next[last].get(token)
        # Where there is a target already, another text has been here.
        target = self._grow(last, token) if target is None else self._exact(last, token, target)
        self._count(last, token)
        return target

    def find(self, tokens: Iterable[int]) -> tuple[int, int]:
        """The state of the longest end of ``tokens`` that was seen, and that end's length."""
        state, length = ROOT, 0
        for token in tokens:
            while state != ROOT and token not in self.next[state]:
                state = self.link[state]
                length = self.length[state]
            if token in self.next[state]:
                state = self.next[state][token]
                length += 1
        return state, length

    def _grow(self, last: int, token: int) -> int:
        new = self._new({}, self.length[last] + 1, 0, -1)
        state = last
        while state != -1 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        self.link[new] = ROOT if state == -1 else self._exact(state, token, self.next[state][token])
        return new

    def _exact(self, state: int, token: int, target: int) -> int:
        """The state of exactly ``state``'s pieces and ``token``: ``target``, or the part of it split off."""
        if self.length[target] == self.length[state] + 1:
            return target
        part = self._new(
            dict(self.next[target]), self.length[state] + 1, self.count[target], self.best[target]
        )
        self.link[part] = self.link[target]
        self.link[target] = part
        while state != -1 and self.next[state].get(token) == target:
            self.next[state][token] = part
            state = self.link[state]
        return part

    def _new(self, following: dict[int, int], length: int, count: int, best: int) -> int:
        self.next.append(following)
        self.link.append(ROOT)
        self.length.append(length)
        self.count.append(count)
        self.best.append(best)
        return len(self.length) - 1

    def _count(self, last: int, token: int) -> None:
        """Count ``token`` behind every context, from the longest: the ends of the text before it."""
        following, count, best = self.next, self.count, self.best
        state, counted = last, -1
        for _ in range(COUNTED):
            if state == -1:
                return
            target = following[state][token]
            if target != counted:
                count[target] += 1
                counted = target
            top = best[state]
            if top != token and (top == -1 or count[target] >= count[following[state][top]]):
                best[state] = token
            state = self.link[state]

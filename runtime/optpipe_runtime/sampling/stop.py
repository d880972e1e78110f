"""Stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class StopChecker:
    """Looks for stop strings and holds back exactly the text that may still become one.

    The text ends at the first character that completes a stop string; if it completes several, the longest
    counts. So what comes out does not depend on how the text is cut into pieces.

    Attributes:
        matched: the stop string that was found, or None.

    >>> checker = StopChecker(["END"])
    >>> [checker.push(piece) for piece in ("a E", "xE", "N", "Dz")], checker.matched
    (['a ', 'Ex', '', ''], 'END')
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self.matched: str | None = None
        self._include = include
        self._next, self._depth, self._back, self._word = _automaton(tuple(stop))
        self._state = 0
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> str:
        """Take a piece of text.

        Args:
            armed: whether stop strings count yet; one that began before they did does not (``min_tokens``).

        Returns:
            what may be shown now: empty once a stop string was found, but for the text before it.
        """
        if self.matched is not None:
            return ""
        if not armed:
            self._state = 0
            return self.flush() + text
        for place, character in enumerate(text):
            self._step(character)
            word = self._word[self._state]
            if word is not None:
                self.matched = word
                seen = self._held + text[: place + 1]
                self._held = ""
                return seen if self._include else seen[: len(seen) - len(word)]
        seen = self._held + text
        shown = len(seen) - self._depth[self._state]
        self._held = seen[shown:]
        return seen[:shown]

    def flush(self) -> str:
        """What was held back; for a text that ends without a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _step(self, character: str) -> None:
        state = self._state
        while state and character not in self._next[state]:
            state = self._back[state]
        self._state = self._next[state].get(character, 0)


@lru_cache(maxsize=8)  # the texts of one request share it; it is read only
def _automaton(
    words: tuple[str, ...],
) -> tuple[list[dict[str, int]], list[int], list[int], list[str | None]]:
    """Aho and Corasick's automaton: transitions, depths, falls, words that end."""
    following: list[dict[str, int]] = [{}]
    depth, back = [0], [0]
    found: list[str | None] = [None]
    for word in words:
        state = 0
        for character in word:
            if character not in following[state]:
                following[state][character] = len(following)
                following.append({})
                depth.append(depth[state] + 1)
                back.append(0)
                found.append(None)
            state = following[state][character]
        found[state] = word
    queue = deque(following[0].values())
    while queue:
        state = queue.popleft()
        found[state] = found[state] or found[back[state]]
        for character, child in following[state].items():
            queue.append(child)
            fall = back[state]
            while fall and character not in following[fall]:
                fall = back[fall]
            target = following[fall].get(character, 0)
            back[child] = target if target != child else 0
    return following, depth, back, found

"""What a proposer is: it guesses the tokens that come next, and one step of the model checks all guesses.

Every proposer is a deterministic function of the tokens so far (and of what it has seen of other requests).
The model's own choice at each guessed position, drawn with that position's own random number, decides:
guesses are kept up to the first that differs from it. That is exact rejection sampling with q = 1 at the
guess, so a proposer, however bad, changes how long a text takes and never the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """A sequence for which drafts are wanted.

    Attributes:
        sequence_id: of the sequence; its tokens only ever grow under one id.
        tokens: prompt and output so far: the live list, to be read during the call and not to be changed.
        limit: the most drafts that are of use, at least 1.
        prompt_len: how many of the tokens are the prompt.
        salt: requests with different salts must not learn from each other.
        blocks: of the cache: slots for every token but the last, which are computed; a live list too.
    """

    sequence_id: int
    tokens: Sequence[int]
    limit: int
    prompt_len: int = 0
    salt: bytes = b""
    blocks: Sequence[int] = ()


class Proposer(Protocol):
    """Guesses what comes next. Called between two steps, so it has microseconds, not milliseconds.

    A proposer indexes what is new in an ask's tokens when it is asked: a sequence that is not asked about
    costs nothing, and one that is asked about again is caught up with.

    Attributes:
        name: as the configuration and the metrics spell it.
        cost_unit: what the time of a proposal grows with: ``ask`` (each sequence takes about the same), or
            ``round`` (all sequences together advance by one draft a round, as a model drafts).
        step_share: optional; what a round takes, as a share of a step, until one was timed.
    """

    name: str
    cost_unit: Literal["ask", "round"]

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """Up to ``limit`` drafts for each ask, in their order; an empty list where nothing is known."""
        ...

    def finish(self, sequence_id: int) -> None:
        """Let go of a sequence that has ended, however it ended. Ids that were never seen are no error."""
        ...

"""What one step runs, and what came of it. Named tuples where every sequence has one a step: they are cheap.

tokens of a SequenceStep      a a a a a d d        a: known tokens, d: drafts
logit rows                        r r r r r        the last ``rows`` of them
sampled rows                          s s s        when ``samples``: the last 1 + ``drafts``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .request import Sequence


class SequenceStep(NamedTuple):
    """The part of a step that one sequence has.

    Attributes:
        sequence: whose blocks have a slot for each of ``tokens``.
        begin: the position of the first of ``tokens``; everything before it is in the cache.
        tokens: what runs, at positions ``begin``, ``begin + 1``, … In a plan made ahead −1 − r stands for the
            token that row r of the step before gives.
        drafts: how many of ``tokens``, at their end, are guesses.
        rows: of how many of ``tokens``, at their end, the logits are wanted. 0: a chunk inside the prompt;
            1 + drafts: to sample from; more where the sequence wants ``prompt_rows``, and then the first of
            them is the row of prompt token ``begin + len(tokens) - rows``.
        samples: whether the step reaches the end of the known tokens, so that the last 1 + ``drafts`` rows
            are to be sampled from.
    """

    sequence: Sequence
    begin: int
    tokens: tuple[int, ...]
    drafts: int
    rows: int
    samples: bool

    def check(self, outcome: Outcome) -> None:
        """Keep an engine's mistake out of the books.

        Raises:
            AssertionError: the outcome cannot be one of this step.
        """
        tokens, sequence = outcome.tokens, self.sequence
        if not self.samples:
            assert not tokens, f"{sequence}: tokens for a step that does not sample"
            return
        assert len(tokens) <= 1 + self.drafts, f"{sequence}: {len(tokens)} tokens, {self.drafts} drafts"
        full = len(sequence.tokens) == sequence.max_len
        assert tokens or outcome.finished or full, f"{sequence}: no token, and not finished"
        assert not (tokens and full), f"{sequence}: a token beyond {sequence.max_len = }"
        if len(tokens) > 1:
            drafts = self.tokens[-self.drafts :][: len(tokens) - 1]
            assert tokens[:-1] == drafts, f"{sequence}: accepted {tokens[:-1]}, drafted {drafts}"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of work.

    Attributes:
        steps: one for every sequence that runs, at most once each.
        num_tokens: tokens in all.
        num_rows: logit rows in all.
        preempted: ids of the sequences that lost their blocks to make room.
    """

    steps: tuple[SequenceStep, ...]
    num_tokens: int
    num_rows: int
    preempted: tuple[int, ...] = ()


class Outcome(NamedTuple):
    """What a step gave to one sequence.

    Attributes:
        tokens: the accepted drafts and the token sampled after them, 1 to 1 + drafts in all; () when the step
            does not sample (or when nothing is wanted: then ``finished``).
        finished: nothing more is wanted of the sequence; its blocks are let go.
    """

    tokens: tuple[int, ...] = ()
    finished: bool = False

"""Who waits and who runs, each in the policy's order: the one place where a sequence changes its status."""

from __future__ import annotations

import collections.abc as abc
from bisect import bisect_left, insort
from itertools import pairwise

from .block_tables import BlockTables
from .policy import Policy
from .request import Sequence, Status


def _order(sequence: Sequence) -> tuple[int, ...]:
    return sequence.order


class Line:
    """One line in two parts. A sequence in it is unfinished; only those that run own blocks.

    Attributes:
        waiting: new or preempted, first in line first.
        running: with a place in the batch, first in line first.
        unfinished: all of them by id.
        preemptions: so far.
    """

    def __init__(self, policy: Policy, tables: BlockTables) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.unfinished: dict[int, Sequence] = {}
        self.preemptions = 0
        self._policy = policy
        self._tables = tables

    def join(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        sequence.order = self._policy.order(sequence)
        self.unfinished[sequence.id] = sequence
        insort(self.waiting, sequence, key=_order)

    def admit_first(self, found: list[int]) -> None:
        """The first that waits runs, on the blocks that were found for it."""
        sequence = self.waiting.pop(0)
        insort(self.running, sequence, key=_order)
        self._tables.adopt(sequence, found)
        sequence.status = Status.RUNNING
        if not sequence.preemptions:
            sequence.cached = sequence.computed
            self._tables.cache.queries += sequence.prompt_len
            self._tables.cache.hits += sequence.cached

    def preempt_last(self) -> int:
        """The last that runs waits again, without its blocks → its id."""
        sequence = self.running.pop()
        self._tables.let_go(sequence)
        sequence.status = Status.WAITING
        sequence.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, sequence, key=_order)
        return sequence.id

    def leave(self, sequence: Sequence) -> None:
        """It is finished, wherever it was."""
        line = self.waiting if sequence.status is Status.WAITING else self.running
        del line[bisect_left(line, sequence.order, key=_order)]
        self._tables.let_go(sequence)
        sequence.status = Status.FINISHED
        del self.unfinished[sequence.id]

    def check_integrity(self) -> None:
        """Both parts are in strict order, of the right status, and together all that is unfinished."""
        for line, status in ((self.waiting, Status.WAITING), (self.running, Status.RUNNING)):
            _check_part(line, status)
        known = {sequence.id: sequence for sequence in (*self.waiting, *self.running)}
        assert known == self.unfinished, f"{known = }, {self.unfinished = }"


def _check_part(line: abc.Sequence[Sequence], status: Status) -> None:
    for sequence in line:
        assert sequence.status is status, f"{sequence} is in the line of the {status.value}"
    for first, second in pairwise(line):
        assert first.order < second.order, f"{first} and {second}: {first.order = }, {second.order = }"

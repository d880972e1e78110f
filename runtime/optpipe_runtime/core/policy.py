"""Who goes first: the one method in which the policies differ.

The order decides everything: who is admitted first, who gets budget and blocks first, and, from its other
end, who is preempted first. A sequence that waits preempts one that runs when it comes before it.
"""

from __future__ import annotations

from typing import Protocol

from .request import Sequence


class Policy(Protocol):
    """An order of sequences that is fixed when they are added."""

    def order(self, sequence: Sequence) -> tuple[int, ...]:
        """Its place: smaller goes first. Different for any two sequences."""
        ...


class FirstComeFirstServed:
    """In order of arrival. Nobody starves: only those who came before can stand in the way."""

    def order(self, sequence: Sequence) -> tuple[int, ...]:
        """(arrival, id)."""
        return sequence.arrival, sequence.id


class PriorityFirst:
    """Lower priority numbers first, then in order of arrival. A stream of better ones can starve others."""

    def order(self, sequence: Sequence) -> tuple[int, ...]:
        """(priority, arrival, id)."""
        return sequence.priority, sequence.arrival, sequence.id


POLICIES: dict[str, type[Policy]] = {"fcfs": FirstComeFirstServed, "priority": PriorityFirst}

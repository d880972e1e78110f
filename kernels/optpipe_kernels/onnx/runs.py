"""A step cut into runs of the model.

Sequences with equally many new tokens in neighbouring slots share a run, so that nothing is padded but the
slots between them that sit out. Steps of the same composition are cut the same way: what a run is given is
kept with it, and a later step writes its numbers over the earlier one's.

B rows of a run · S new tokens of each · R rows of logits
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.targets.protocol import StepInputs

_HOLES = 1  # slots that may sit out for each that takes part, before a run is split in two


@dataclass(frozen=True)
class Members:
    """Which sequences share a run.

    Attributes:
        first, slots: the range of slots.
        tokens: S.
        sequences: which of the step's take part, in the order of their slots.
        rows: the row of each.
    """

    first: int
    slots: int
    tokens: int
    sequences: tuple[int, ...]
    rows: tuple[int, ...]


class Run:
    """One run of the model, and the arrays that it is given.

    Args:
        members: who takes part.
        step: any step of this composition.
        wanted: of the step's rows of logits those that are this run's: (number, sequence, token of it).
        idle: a slot may sit out.

    Attributes:
        first, slots: the range of slots.
        rows: numbers of the step's rows of logits, [R], ascending.
        inputs: by name; their numbers are those of the last step that was written.
    """

    def __init__(
        self, members: Members, step: StepInputs, wanted: list[tuple[int, int, int]], idle: bool
    ) -> None:
        self.first, self.slots = members.first, members.slots
        wanted = sorted(wanted)
        self.rows = [number for number, _, _ in wanted]
        shape, each = (members.slots, members.tokens), np.arange(members.tokens)
        self._sequences, self._rows = np.asarray(members.sequences), np.asarray(members.rows)
        self._tokens = step.query_start[self._sequences][:, None] + each
        row_of = dict(zip(members.sequences, members.rows, strict=True))
        self._ids, self._at = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._ends, self._longest = np.zeros(members.slots, np.int32), np.zeros((), np.int32)
        self._whole = self._tokens.ravel().tolist() == list(range(len(step.token_ids))) and len(
            self._rows
        ) == len(self._ends)
        queries = np.zeros(members.slots, np.int32)
        queries[self._rows] = members.tokens
        self.inputs: dict[str, NDArray[Any]] = {
            "input_ids": self._ids,
            "position_ids": self._at,
            **({"query_seqlens": queries} if idle else {}),
            "seqlens_k": self._ends,
            "total_sequence_length": self._longest,
            "logit_rows": np.array([row_of[s] * members.tokens + token for _, s, token in wanted], np.int64),
        }

    def write(self, step: StepInputs) -> None:
        """Put a step's numbers into the inputs."""
        if self._whole:
            self._ids.reshape(-1)[:] = step.token_ids
            self._at.reshape(-1)[:] = step.positions
            np.subtract(step.context_lens, 1, out=self._ends)
            self._longest[()] = max(step.context_lens.tolist())
            return
        self._ids[self._rows] = step.token_ids[self._tokens]
        self._at[self._rows] = step.positions[self._tokens]
        ends = step.context_lens[self._sequences] - 1
        self._ends[self._rows] = ends
        self._longest[()] = max(ends.tolist()) + 1


def composition(step: StepInputs) -> bytes:
    """Equal for steps that are cut alike: which slots, how many tokens of each, whose logits."""
    return b"%d %b %b %b" % (
        len(step.query_start),
        step.query_start.tobytes(),
        step.block_tables[:, 0].tobytes(),
        step.logit_rows.tobytes(),
    )


def runs(step: StepInputs, *, idle: bool, positions: int) -> list[Run]:
    """The runs of a step.

    Args:
        idle: a slot may sit out. Without it there are no holes, and chunks of prompts run one by one, as
            attention takes rows of several new tokens and different lengths only then.
        positions: of a slot. One that sits out must have room for the run's tokens behind the one that it is
            said to hold, though nothing is written there.
    """
    starts = step.query_start.tolist()
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for number, token in enumerate(step.logit_rows.tolist()):
        sequence = bisect_right(starts, token) - 1
        wanted.setdefault(sequence, []).append((number, sequence, token - starts[sequence]))
    return [
        Run(it, step, [row for sequence in it.sequences for row in wanted.get(sequence, ())], idle)
        for it in _members(starts, step.block_tables[:, 0].tolist(), idle, positions)
    ]


def _members(starts: list[int], slots: list[int], idle: bool, positions: int) -> Iterator[Members]:
    """A step's sequences by their number of new tokens, in ranges of slots with few holes."""
    alike: dict[int, list[tuple[int, int]]] = {}
    for sequence, slot in enumerate(slots):
        count = starts[sequence + 1] - starts[sequence]
        if count:
            alike.setdefault(count, []).append((slot, sequence))
    for count in sorted(alike):
        group = sorted(alike[count])
        most = len(group) if idle or count == 1 else 1
        holes = _HOLES if idle and count < positions else 0
        for part in _ranges(group, holes, most):
            first = part[0][0]
            yield Members(
                first,
                part[-1][0] - first + 1,
                count,
                tuple(sequence for _, sequence in part),
                tuple(slot - first for slot, _ in part),
            )


def _ranges(members: list[tuple[int, int]], holes: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """Split (slot, sequence) in order of slots where too many slots lie between."""
    group = members[:1]
    for slot, sequence in members[1:]:
        if len(group) == most or slot - group[0][0] - len(group) > holes * len(group):
            yield group
            group = []
        group.append((slot, sequence))
    yield group

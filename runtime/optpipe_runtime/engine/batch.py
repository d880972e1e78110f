"""A step's plan as the arrays that an executor takes.

Block tables are kept between steps, one row a running sequence, and only what changed is written; the rest
is a handful of vectorized operations, whatever the number of sequences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optpipe.targets.protocol import StepInputs

from ..core import Sequence, StepPlan


class Batch:
    """Builds :class:`StepInputs`.

    Args:
        block_size: tokens a block.
        max_seqs: sequences of a step, at most.
        max_blocks: blocks of a sequence, at most.
    """

    def __init__(self, block_size: int, max_seqs: int, max_blocks: int) -> None:
        self._block_size = block_size
        self._max_blocks = max_blocks
        self._tables = np.zeros((max_seqs, min(max_blocks, 64)), dtype=np.int32)
        self._rows: dict[int, int] = {}  # sequence id → its row of the tables
        self._lives: list[int] = [0] * max_seqs  # preemptions of the sequence whose blocks the row has
        self._free = list(range(max_seqs))[::-1]
        self._arange = np.arange(1024, dtype=np.int64)

    def build(self, plan: StepPlan) -> StepInputs:
        """The arrays of a plan; see :class:`StepInputs` for shapes and dtypes."""
        tokens: list[int] = []
        lengths: list[int] = []
        begins: list[int] = []
        rows: list[int] = []
        wanted: list[int] = []
        if len(self._free) < len(plan.steps):
            self._make_room(plan)
        widest = 0
        for sequence, begin, run, _, count, _ in plan.steps:
            tokens += run
            lengths.append(len(run))
            begins.append(begin)
            wanted.append(count)
            rows.append(self._row(sequence, begin))
            widest = max(widest, len(sequence.blocks))
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = np.asarray(begins, dtype=np.int64)
        tables = self._tables[rows, :widest]
        positions, slots = self._places(len(tokens), lengths, starts, ends, tables)
        query_start = np.zeros(len(rows) + 1, dtype=np.int32)
        query_start[1:] = ends
        return StepInputs(
            token_ids=np.asarray(tokens, dtype=np.int64),
            positions=positions,
            slot_mapping=slots,
            query_start=query_start,
            context_lens=(starts + lengths).astype(np.int32),
            block_tables=tables,
            logit_rows=self._logit_rows(plan, wanted, ends),
        )

    def forget(self, sequence_id: int) -> None:
        """Let go of a sequence's row. Sequences that were never in a step have none."""
        row = self._rows.pop(sequence_id, None)
        if row is not None:
            self._free.append(row)

    def _places(
        self,
        total: int,
        lengths: list[int],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        tables: NDArray[np.int32],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions and slots of all tokens, [T] each."""
        size = self._block_size
        if total == len(lengths):  # a token each: nothing to spread
            return starts, tables[self._upto(total), starts // size].astype(np.int64) * size + starts % size
        owner = np.repeat(self._upto(len(lengths)), lengths)
        positions = self._upto(total) + (starts - ends + lengths)[owner]
        blocks = tables[owner, positions // size].astype(np.int64)
        return positions, blocks * size + positions % size

    def _logit_rows(self, plan: StepPlan, wanted: list[int], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """[R]: the last ``rows`` tokens of each sequence."""
        if plan.num_rows == len(wanted) and min(wanted) == 1:
            return ends - 1
        counts = np.asarray(wanted, dtype=np.int64)
        before = np.cumsum(counts) - counts
        found: NDArray[np.int64] = self._upto(plan.num_rows) + np.repeat(ends - counts - before, counts)
        return found

    def _upto(self, count: int) -> NDArray[np.int64]:
        """0, 1, …, count - 1. Not to be written to."""
        if count > len(self._arange):
            self._arange = np.arange(2 * count, dtype=np.int64)
        return self._arange[:count]

    def _row(self, sequence: Sequence, begin: int) -> int:
        """The sequence's row, brought up to date.

        Blocks of computed tokens stay where they are while a sequence runs; those behind may be others than
        they were, since drafts come and go.
        """
        blocks = sequence.blocks
        row = self._rows.get(sequence.id)
        if row is None:
            row = self._rows[sequence.id] = self._free.pop()
            first = 0
        elif self._lives[row] != sequence.preemptions:
            first = 0
        else:
            first = begin // self._block_size
        self._lives[row] = sequence.preemptions
        if len(blocks) > self._tables.shape[1]:
            self._widen(len(blocks))
        if len(blocks) == first + 1:
            self._tables[row, first] = blocks[first]
        else:
            self._tables[row, first : len(blocks)] = blocks[first:]
        return row

    def _make_room(self, plan: StepPlan) -> None:
        """Take the rows of sequences that have no part in a step, such as those that were preempted."""
        kept = {step.sequence.id for step in plan.steps}
        for sequence_id in [it for it in self._rows if it not in kept]:
            self.forget(sequence_id)

    def _widen(self, blocks: int) -> None:
        width = min(self._max_blocks, max(blocks, 2 * self._tables.shape[1]))
        tables = np.zeros((len(self._tables), width), dtype=np.int32)
        tables[:, : self._tables.shape[1]] = self._tables
        self._tables = tables

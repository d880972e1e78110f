"""Which steps are replayed from graphs, and the shapes that they are padded to.

A step is a decode step when every sequence has one new token and wants its logits. Its graph is for a number
of sequences, of blocks of the longest, and of tokens that all have cached together: steps are padded to the
next of each. Padding belongs to no sequence and writes nowhere (slot −1); what it gives is discarded. Blocks
and cached tokens bound the spans of attention, whose size is fixed: they do not change a row's bits, only how
much room there is. One long context among many short ones takes no more room than it needs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from optpipe.targets.protocol import StepInputs

SEQUENCES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
LEAST_BLOCKS = 64  # of a captured step's block tables: 1,024 tokens of 16
LEAST_CONTEXT = 1024  # tokens a sequence that a captured step has room for, on the average


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a step's arrays.

    Attributes:
        tokens: T.
        sequences: B.
        rows: R.
        blocks: M.
        context: cached tokens of all sequences together, with this step's; of a captured step, at most.
    """

    tokens: int
    sequences: int
    rows: int
    blocks: int
    context: int

    def sizes(self, blocks: int) -> dict[str, int]:
        """What the symbols of a Program stand for; ``blocks`` are those of the cache, P.

        >>> Shape(8, 2, 1, 64, 30).sizes(100)
        {'T': 8, 'B': 2, 'R': 1, 'M': 64, 'P': 100}
        """
        return {"T": self.tokens, "B": self.sequences, "R": self.rows, "M": self.blocks, "P": blocks}


def shape_of(step: StepInputs) -> Shape:
    """A step's own sizes."""
    blocks = step.block_tables.shape[1]
    context = int(step.context_lens.sum(dtype=np.int64))
    return Shape(len(step.token_ids), len(step.context_lens), len(step.logit_rows), blocks, context)


def bucket_of(step: StepInputs) -> Shape | None:
    """The shape of the graph that a step is padded to, or None when it runs as it is."""
    own = shape_of(step)
    if not own.tokens == own.sequences == own.rows or own.sequences > SEQUENCES[-1]:
        return None
    each = np.arange(own.sequences)
    if not np.array_equal(step.query_start[1:], each + 1) or not np.array_equal(step.logit_rows, each):
        return None
    sequences = SEQUENCES[bisect_left(SEQUENCES, own.sequences)]
    blocks = max(LEAST_BLOCKS, 1 << (own.blocks - 1).bit_length())
    context = max(LEAST_CONTEXT * sequences, 1 << (own.context - 1).bit_length())
    return Shape(sequences, sequences, sequences, blocks, context)


def padded(step: StepInputs, bucket: Shape) -> StepInputs:
    """A decode step in the shape of its graph."""
    count, width = step.block_tables.shape
    tables = np.zeros((bucket.sequences, bucket.blocks), np.int32)
    tables[:count, :width] = step.block_tables

    def filled(name: str, size: int, pad: int) -> np.ndarray:
        given = getattr(step, name)
        made = np.full(size, pad, given.dtype)
        made[: len(given)] = given
        return made

    return StepInputs(
        token_ids=filled("token_ids", bucket.tokens, 0),
        positions=filled("positions", bucket.tokens, 0),
        slot_mapping=filled("slot_mapping", bucket.tokens, -1),
        query_start=filled("query_start", bucket.sequences + 1, count),
        context_lens=filled("context_lens", bucket.sequences, 0),
        block_tables=tables,
        logit_rows=np.arange(bucket.rows),
    )


def nothing(bucket: Shape) -> StepInputs:
    """A step of a bucket that is padding alone."""
    none, ints = np.zeros(0, np.int64), np.zeros(0, np.int32)
    step = StepInputs(none, none, none, np.zeros(1, np.int32), ints, np.zeros((0, 1), np.int32), none)
    return padded(step, bucket)

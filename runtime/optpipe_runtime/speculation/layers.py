"""``layers``: the model drafts for itself with its first k layers; then its norm and head say what comes.

Those layers are the model's own, so there are no other weights, and what they write is a part of what the
whole model writes: the cache and its blocks are the sequence's own too. A round is one step of a token for
each sequence; the whole model's step then runs the same tokens again and writes over what the rounds left.

    blocks of the sequence       c c c c | c c t d | d          c: computed by all layers
    round 1 runs t, the text's last token, round 2 the first draft d, …
    the next step runs t d d with all layers, in the same slots

Slots behind the sequence's last block are in blocks that nobody owns: they are borrowed for the rounds only.
Where there are none, there are fewer drafts.

Source: Zhang et al., "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative
Decoding" (2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe.targets.protocol import Executor, LayeredExecutor, StepInputs, is_layered

from .proposer import Ask


class Lender(Protocol):
    """Who has the blocks of the cache that nobody owns."""

    def lend(self, count: int) -> list[int]:
        """Up to ``count`` blocks; what they held is lost."""
        ...

    def give_back(self, blocks: Iterable[int]) -> None:
        """End a loan, before anything else is asked of the lender."""
        ...


class LayersProposer:
    """Drafts by the first layers of the model that is drafted for.

    Args:
        executor: of the model, its cache allocated.
        lender: of the cache's blocks.
        layers: k; half of them when None.

    Raises:
        RequestError: the target cannot leave a model early, or the model has not so many layers.
        ArtifactError: the model cannot be left there.
    """

    name = "layers"
    cost_unit: Literal["ask", "round"] = "round"

    def __init__(self, executor: Executor, lender: Lender, *, layers: int | None = None) -> None:
        spec = executor.cache_spec
        if spec is None or not is_layered(executor):
            raise RequestError(
                "The target cannot run a model's first layers alone, so the model cannot draft for itself.",
                hint="the targets cpu and reference can, with a paged artifact",
            )
        self.layers = max(1, executor.num_layers // 2) if layers is None else layers
        executor.prepare_layers(self.layers)
        self.step_share = self.layers / executor.num_layers
        self._executor: LayeredExecutor = executor
        self._lender = lender
        self._block_size = spec.block_size

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See ``Proposer.propose``."""
        loans = self._borrow(asks)
        try:
            return self._draft(asks, loans)
        finally:
            self._lender.give_back(block for loan in loans for block in loan)

    def finish(self, sequence_id: int) -> None:
        """See ``Proposer.finish``. Nothing is kept of any sequence."""

    def _borrow(self, asks: Sequence[Ask]) -> list[list[int]]:
        """For each ask the blocks behind its own that its drafts go to; fewer where there are no more."""
        wanted = [-(-(len(it.tokens) - 1 + it.limit) // self._block_size) - len(it.blocks) for it in asks]
        free = self._lender.lend(sum(max(0, count) for count in wanted))
        loans = []
        for count in wanted:
            loans.append(free[: max(0, count)])
            del free[: max(0, count)]
        return loans

    def _draft(self, asks: Sequence[Ask], loans: Sequence[list[int]]) -> list[list[int]]:
        begins = np.array([len(ask.tokens) - 1 for ask in asks])
        owned = np.array([len(ask.blocks) + len(loan) for ask, loan in zip(asks, loans, strict=True)])
        limits = np.minimum([ask.limit for ask in asks], owned * self._block_size - begins)
        assert limits.min() >= -1, f"a sequence lacks blocks of computed tokens: {begins = }, {owned = }"
        tables = np.zeros((len(asks), max(1, int(owned.max()))), dtype=np.int32)
        for row, (ask, loan) in enumerate(zip(asks, loans, strict=True)):
            tables[row, : owned[row]] = [*ask.blocks, *loan]
        tokens = np.array([ask.tokens[-1] for ask in asks], dtype=np.int64)
        drafts: list[list[int]] = [[] for _ in asks]
        for at in range(max(0, int(limits.max()))):
            rows = np.flatnonzero(limits > at)
            tokens[rows] = self._round(tokens[rows], begins[rows] + at, tables[rows])
            for row in rows.tolist():
                drafts[row].append(int(tokens[row]))
        return drafts

    def _round(
        self, tokens: NDArray[np.int64], positions: NDArray[np.int64], tables: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """One token of each sequence → the likeliest next one.

        Args:
            tokens, positions: [B].
            tables: [B, M], blocks of each sequence.
        """
        count, size = len(tokens), self._block_size
        blocks = tables[np.arange(count), positions // size].astype(np.int64)
        step = StepInputs(
            token_ids=tokens,
            positions=positions,
            slot_mapping=blocks * size + positions % size,
            query_start=np.arange(count + 1, dtype=np.int32),
            context_lens=(positions + 1).astype(np.int32),
            block_tables=tables,
            logit_rows=np.arange(count, dtype=np.int64),
        )
        return self._executor.submit(step, logits=False, layers=self.layers).result().token_ids

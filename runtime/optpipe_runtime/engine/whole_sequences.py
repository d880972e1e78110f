"""An artifact without a cache, served as if it had one: each token computes its whole sequence again.

What stands in for the cache holds token ids, so that scheduling, preemption and prefixes work as ever; the
model then gets every sequence of a step whole, one after the other. Slow, and the same text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import CapacityError
from optpipe.targets.protocol import CacheSpec, Executor, Ints, MemoryNeeds, StepInputs, StepResult
from optpipe.targets.steps import Done

_BLOCK = 16  # tokens; anything would do
_TOKEN = np.dtype(np.int64)


class WholeSequences:
    """An executor over one that takes whole sequences only.

    Args:
        executor: of an artifact that is not paged.
    """

    kv_dtypes = (str(_TOKEN),)
    cache_spec = CacheSpec(_BLOCK, ())

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.vocab_size = executor.vocab_size
        self.batch_invariant = executor.batch_invariant
        self._tokens: NDArray[np.int64] = np.zeros(0, dtype=_TOKEN)

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """Of the token ids."""
        return _BLOCK * _TOKEN.itemsize

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """See ``Executor.memory``."""
        return self._executor.memory(tokens=tokens, rows=rows)

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """See ``Executor.allocate``."""
        if kv_dtype not in (None, *self.kv_dtypes):
            raise CapacityError(f"An artifact without a cache cannot keep one as '{kv_dtype}'.")
        self._tokens = np.zeros(num_blocks * _BLOCK, dtype=_TOKEN)

    def submit(self, step: StepInputs, *, logits: bool = True) -> Done:
        """See ``Executor.submit``. The step has run when this returns."""
        self._tokens[step.slot_mapping] = step.token_ids
        found: list[NDArray[Any]] = [np.zeros((0, self.vocab_size), dtype=np.float32)]
        for b, length in enumerate(step.context_lens.tolist()):
            begin, end = int(step.query_start[b]), int(step.query_start[b + 1])
            rows = step.logit_rows[(step.logit_rows >= begin) & (step.logit_rows < end)] - end + length
            if len(rows):
                places = np.arange(length)
                slots = step.block_tables[b, places // _BLOCK].astype(np.int64) * _BLOCK + places % _BLOCK
                found.append(self._executor.logits(self._tokens[slots], rows))
        values = np.concatenate(found).astype(np.float32, copy=False)
        return Done(StepResult(values.argmax(-1).astype(np.int64), values if logits else None))

    def logits(self, token_ids: Ints, rows: Ints | None = None) -> NDArray[np.float32]:
        """See ``Executor.logits``."""
        return self._executor.logits(token_ids, rows)

"""The tape over ONNX Runtime: the engine's own tests then serve a model's cache, slot by slot.

    OPTPIPE_ENGINE_TESTS=onnx pytest tests/runtime/engine

It checks and records steps as the tape does; what a row of logits is comes from the ``onnx`` target, for a
tiny random model of the wanted vocabulary. A sequence has a slot to itself, so nothing is shared and no block
is ever wanting: tests of those two are skipped, by name. Log-probabilities are compared by their tokens, as
products of other sizes add up in another order.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optpipe.targets.protocol import StepInputs

from .tape import TapeExecutor

POSITIONS = 512  # of a slot


@functools.cache
def loaded(vocab_size: int) -> Any:
    """An executor of the onnx target."""
    import optpipe
    from optpipe.sources.source import ModelSource
    from optpipe.testing import model_of, tiny_config, weights_of

    config = tiny_config("llama")
    config.vocab_size = vocab_size
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    model = model_of(config)
    weights = weights_of(model)
    source = ModelSource(
        config=model.config.to_dict(),
        weights=weights,
        files={},
        description="tiny",
        identity={"kind": "tiny"},
        bytes=weights.nbytes,
        dtype="f32",
    )
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(Path(home) / "cache"))
        optpipe.optimize(source, passes="paged", output=Path(home) / "artifact", verify=False)
        return optpipe.load(Path(home) / "artifact", target="onnx", threads=1, slot_tokens=POSITIONS)


class OnnxTape(TapeExecutor):
    """See the module; the arguments are the tape's."""

    batch_invariant = False
    sequence_blocks = 1
    kv_dtypes = ("f32",)

    def __init__(self, vocab_size: int = 64, block_size: int = 4, **options: Any) -> None:
        super().__init__(vocab_size, block_size, **options)
        self._model = copy.copy(loaded(vocab_size))  # a cache of its own, one session
        self._found: np.ndarray | None = None  # the row that a step has computed, while it is being read
        self.cache_spec = self._model.cache_spec

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """Of a slot."""
        return int(self._model.block_bytes(kv_dtype))

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """The model's cache, and the tape beside it."""
        super().allocate(num_blocks, kv_dtype=kv_dtype)
        self._model.allocate(num_blocks, kv_dtype=kv_dtype)

    def row(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [V] behind these tokens: those of the step that is running, else of the whole sequence."""
        if self._found is not None:
            values, self._found = self._found, None
        else:
            values = self._model.logits(np.asarray(tokens, np.int64), np.asarray([len(tokens) - 1]))[0]
        if self._end is not None:
            values[self._end] = values.min() - 1
        return values

    def _rows(self, step: StepInputs) -> np.ndarray:
        found = self._model.submit(step).result().logits.copy()
        size = self.cache_spec.block_size
        for r, token in enumerate(step.logit_rows.tolist()):
            b = int(np.searchsorted(step.query_start, token, side="right")) - 1
            slot = int(step.block_tables[b, 0])
            history = self._tape[slot * size : slot * size + int(step.positions[token]) + 1]
            self._found = found[r]
            found[r] = self.row(history)
        return found

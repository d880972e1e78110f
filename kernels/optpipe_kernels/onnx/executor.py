"""The executor of the ``onnx`` target: continuous batching over slots.

A slot is a row of the cache's buffers [slots, heads, positions, width], one sequence's; to the engine it is a
block as long as a sequence can get. A step is cut into runs of the model (see ``runs.py``).

A run of a small model takes milliseconds and leaves nothing of Python in the processor's caches, so what is
done here between two runs costs several times what it costs alone. Therefore a step of the same composition
as the one before finds its runs as they were, with their arrays bound, and only writes numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from optpipe.errors import CapacityError, RequestError
from optpipe.targets.protocol import CacheSpec, Ints, MemoryNeeds, StepInputs, StepResult
from optpipe.targets.steps import Done, check_step, check_tokens, one_sequence

from .runs import Run, composition, runs
from .session import Settings, open_session

_BINDINGS = 64  # ranges of slots that are remembered
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


@dataclass
class _Bound:
    """Some slots' caches as inputs and outputs of a run.

    Attributes:
        binding: has the caches, past and present in one buffer.
        run: whose arrays it has too.
        found: where it puts what it gives, by output.
    """

    binding: onnxruntime.IOBinding
    run: Run | None = None
    found: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cache:
    """Every buffer, keys and values, by the name of the model's input.

    Attributes:
        slots: how many.
        dtype: of the buffers.
        buffers, shapes: the whole buffer, and one slot's shape.
        bound: ranges of slots that have run, the latest last: first, count, whether with logits.
    """

    slots: int
    dtype: np.dtype[Any]
    buffers: dict[str, onnxruntime.OrtValue]
    shapes: dict[str, tuple[int, int, int]]
    bound: dict[tuple[int, int, bool], _Bound] = field(default_factory=dict)

    def rows(self, name: str, first: int, count: int) -> tuple[tuple[int, ...], int]:
        """The shape and address of some slots' part of a buffer."""
        shape = self.shapes[name]
        offset = first * math.prod(shape) * self.dtype.itemsize
        return (count, *shape), self.buffers[name].data_ptr() + offset


class OnnxExecutor:
    """Runs an exported model step by step.

    Args:
        model: a file that :func:`~.export.write_model` wrote with ``rows="chosen"``.
        layers: of every cache, the heads and the widths of keys and values.
        weights: bytes of the model's data.
        settings: how.
    """

    batch_invariant = False  # a product of other sizes may add up in another order

    def __init__(
        self, model: Path, layers: tuple[tuple[int, int, int], ...], weights: int, settings: Settings
    ) -> None:
        self._settings, self._weights = settings, weights
        self.device = "cuda" if settings.provider == "cuda" else "cpu"
        self._session = open_session(model, settings)
        pasts = [it for it in self._session.get_inputs() if it.name.startswith("past_key_values.")]
        self._pasts = {it.name: (int(it.shape[1]), settings.positions, int(it.shape[3])) for it in pasts}
        self._dtype = _DTYPES[pasts[0].type]
        self.kv_dtypes = (f"f{8 * self._dtype.itemsize}",)
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])  # logits
        self.cache_spec = CacheSpec(settings.positions, layers, sequence_blocks=1)
        self._inputs = frozenset(it.name for it in self._session.get_inputs())
        self._idle = "query_seqlens" in self._inputs
        self._argmax = any(it.name == "token_ids" for it in self._session.get_outputs())
        self._cache: _Cache | None = None
        self._last: tuple[bytes, list[Run]] = (b"", [])  # the latest step's composition and runs

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """See ``Executor.block_bytes``."""
        self._check_kv_dtype(kv_dtype)
        return sum(self._dtype.itemsize * math.prod(shape) for shape in self._pasts.values())

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """See ``Executor.memory``. ONNX Runtime does not say what it takes: the workspace is an estimate."""
        widest = max(heads * width for heads, _, width in self._pasts.values())
        return MemoryNeeds(self._weights, 4 * (2 * rows * self.vocab_size + 16 * tokens * widest))

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """See ``Executor.allocate``."""
        self._check_kv_dtype(kv_dtype)
        self._cache = None
        self._cache = self._allocated(num_blocks, self._settings.positions)

    def submit(self, step: StepInputs, *, logits: bool = True) -> Done:
        """See ``Executor.submit``. The step has run when this returns."""
        if self._cache is None:
            raise CapacityError("The executor has no cache yet; allocate one first.")
        check_step(step, self._cache.slots, self.cache_spec.block_size, self.vocab_size)
        return Done(self._step(step, self._cache, logits))

    def logits(self, token_ids: Ints, rows: Ints | None = None) -> NDArray[np.float32]:
        """See ``Executor.logits``.

        Raises:
            RequestError: more tokens than a slot has positions, for which the model's tables are made.
        """
        check_tokens(token_ids, self.vocab_size)
        if len(token_ids) > self._settings.positions:
            raise RequestError(
                f"The onnx model is made for {self._settings.positions} positions, not for {len(token_ids)}.",
                hint="load it with more slot_tokens",
            )
        step = one_sequence(token_ids, len(token_ids))
        if rows is not None:
            step = StepInputs(**{**vars(step), "logit_rows": np.asarray(rows, dtype=np.int64)})
        found = self._step(step, self._allocated(1, len(token_ids)), True).logits
        assert found is not None, "the step asked for logits"
        return found

    def close(self) -> None:
        """Nothing runs beside the caller, so there is nothing to end."""

    def _check_kv_dtype(self, kv_dtype: str | None) -> None:
        if kv_dtype not in (None, *self.kv_dtypes):
            raise CapacityError(
                f"The cache of this onnx model is {self.kv_dtypes[0]} only, not '{kv_dtype}'."
            )

    def _allocated(self, slots: int, positions: int) -> _Cache:
        shapes = {name: (heads, positions, width) for name, (heads, _, width) in self._pasts.items()}
        try:
            buffers = {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    (slots, *shape), self._dtype.type, self.device
                )
                for name, shape in shapes.items()
            }
        except (MemoryError, RuntimeError) as error:
            raise CapacityError(f"A cache of {slots} slots of {positions} positions does not fit.") from error
        return _Cache(slots, self._dtype, buffers, shapes)

    def _step(self, step: StepInputs, cache: _Cache, logits: bool) -> StepResult:
        parts = self._runs(step)
        if len(parts) == 1 and len(parts[0].rows) == len(step.logit_rows):
            return StepResult(*self._run(parts[0], step, cache, logits))
        ids = np.zeros(len(step.logit_rows), np.int64)
        rows = np.zeros((len(ids), self.vocab_size), np.float32) if logits else None
        for run in parts:
            found_ids, found_rows = self._run(run, step, cache, logits)
            ids[run.rows] = found_ids
            if rows is not None:
                rows[run.rows] = found_rows
        return StepResult(ids, rows)

    def _runs(self, step: StepInputs) -> list[Run]:
        key = composition(step)
        if key != self._last[0]:
            self._last = key, runs(step, idle=self._idle, positions=self._settings.positions)
        return self._last[1]

    def _run(
        self, run: Run, step: StepInputs, cache: _Cache, logits: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """One run of the model: the likeliest tokens of some rows, and their logits if wanted."""
        run.write(step)
        bound = self._bound(cache, run.first, run.slots, logits)
        again = bound.run is run and self.device == "cpu"  # a GPU's inputs are copied as they are bound
        if not again:
            for name in run.inputs.keys() & self._inputs:  # a model may read no positions
                bound.binding.bind_cpu_input(name, run.inputs[name])
            bound.run = run
        if logits or not again:  # logits that were asked for are the caller's
            bound.found = self._outputs(bound.binding, len(run.rows), logits)
        bound.binding.synchronize_inputs()  # copies to a GPU; on a CPU there are none
        self._session.run_with_iobinding(bound.binding)
        bound.binding.synchronize_outputs()
        rows = bound.found.get("logits")
        if self._argmax:
            return bound.found["token_ids"].copy(), rows
        assert rows is not None, "a model that chooses no tokens gives logits"
        return rows.argmax(-1), rows if logits else None

    def _outputs(self, binding: onnxruntime.IOBinding, count: int, logits: bool) -> dict[str, NDArray[Any]]:
        """Room for what a run gives, bound: tokens [R], logits [R, V]."""
        found: dict[str, NDArray[Any]] = {}
        if self._argmax:
            found["token_ids"] = np.empty(count, np.int64)
        if logits or not self._argmax:
            found["logits"] = np.empty((count, self.vocab_size), np.float32)
        for name, array in found.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return found

    def _bound(self, cache: _Cache, first: int, count: int, logits: bool) -> _Bound:
        """Some slots' caches, bound: past and present are one buffer."""
        bound = cache.bound.pop((first, count, logits), None)
        if bound is None:
            bound = _Bound(self._session.io_binding())
            for name in self._pasts:
                shape, address = cache.rows(name, first, count)
                place = (self.device, 0, cache.dtype.type, shape, address)
                bound.binding.bind_input(name, *place)
                bound.binding.bind_output(name.replace("past_key_values", "present"), *place)
            if len(cache.bound) == _BINDINGS:
                del cache.bound[next(iter(cache.bound))]
        cache.bound[first, count, logits] = bound
        return bound

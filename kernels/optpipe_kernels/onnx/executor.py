"""The executor of the ``onnx`` target: continuous batching over slots.

A slot is a row of the cache's buffers [slots, heads, positions, width], one sequence's; to the engine it is a
block as long as a sequence can get. A step is cut into runs of the model: sequences with equally many new
tokens in neighbouring slots share one, so that nothing is padded but the slots between them that sit out.

B rows of a run · S new tokens of each · R rows of logits
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from optpipe.errors import CapacityError, RequestError
from optpipe.targets.protocol import CacheSpec, Ints, MemoryNeeds, StepInputs, StepResult
from optpipe.targets.steps import Done, check_step, check_tokens, one_sequence

_BINDINGS = 64  # ranges of slots that are remembered
_HOLES = 1  # slots that may sit out for each that takes part, before a run is split in two


@dataclass(frozen=True)
class Settings:
    """How a session runs.

    Attributes:
        provider: "cpu" or "cuda".
        threads: of the CPU provider; None leaves it to ONNX Runtime.
        positions: of a slot.
    """

    provider: str = "cpu"
    threads: int | None = None
    positions: int = 2048


@dataclass(frozen=True)
class _Cache:
    """Every buffer, keys and values, by the name of the model's input.

    Attributes:
        slots: how many.
        buffers, shapes: the whole buffer, and one slot's shape.
        bindings: of the ranges of slots that have run: first, count, whether with logits → the caches' part
            of a run's inputs and outputs, the latest last.
    """

    slots: int
    buffers: dict[str, onnxruntime.OrtValue]
    shapes: dict[str, tuple[int, int, int]]
    bindings: dict[tuple[int, int, bool], onnxruntime.IOBinding] = field(default_factory=dict)

    def rows(self, name: str, first: int, count: int) -> tuple[tuple[int, ...], int]:
        """The shape and address of some slots' part of a buffer."""
        shape = self.shapes[name]
        return (count, *shape), self.buffers[name].data_ptr() + first * math.prod(shape) * 4


class OnnxExecutor:
    """Runs an exported model step by step.

    Args:
        model: a file that :func:`~.export.write_model` wrote with ``rows="chosen"``.
        layers: of every cache, the heads and the widths of keys and values.
        weights: bytes of the model's data.
        settings: how.
    """

    batch_invariant = False  # a product of other sizes may add up in another order
    kv_dtypes = ("f32",)

    def __init__(
        self, model: Path, layers: tuple[tuple[int, int, int], ...], weights: int, settings: Settings
    ) -> None:
        self._settings, self._weights = settings, weights
        self.device = "cuda" if settings.provider == "cuda" else "cpu"
        self._session = _session(model, settings)
        self._pasts = {
            it.name: (int(it.shape[1]), settings.positions, int(it.shape[3]))
            for it in self._session.get_inputs()
            if it.name.startswith("past_key_values.")
        }
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])  # logits
        self.cache_spec = CacheSpec(settings.positions, layers, sequence_blocks=1)
        self._idle = any(it.name == "query_seqlens" for it in self._session.get_inputs())
        self._argmax = any(it.name == "token_ids" for it in self._session.get_outputs())
        self._scratch = np.empty((0, self.vocab_size), np.float32)
        self._cache: _Cache | None = None

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """See ``Executor.block_bytes``."""
        self._check_kv_dtype(kv_dtype)
        return sum(4 * math.prod(shape) for shape in self._pasts.values())

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
        """See ``Executor.logits``."""
        check_tokens(token_ids, self.vocab_size)
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
            raise CapacityError(f"The onnx target keeps its cache as f32 only, not as '{kv_dtype}'.")

    def _allocated(self, slots: int, positions: int) -> _Cache:
        shapes = {name: (heads, positions, width) for name, (heads, _, width) in self._pasts.items()}
        try:
            buffers = {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    (slots, *shape), np.float32, self.device
                )
                for name, shape in shapes.items()
            }
        except (MemoryError, RuntimeError) as error:
            raise CapacityError(f"A cache of {slots} slots of {positions} positions does not fit.") from error
        return _Cache(slots, buffers, shapes)

    def _step(self, step: StepInputs, cache: _Cache, logits: bool) -> StepResult:
        ids = np.zeros(len(step.logit_rows), np.int64)
        rows = np.zeros((len(step.logit_rows), self.vocab_size), np.float32) if logits else None
        owner = np.searchsorted(step.query_start, step.logit_rows, side="right") - 1
        for run in _runs(step, self._idle):
            wanted = np.flatnonzero(np.isin(owner, run.sequences))
            places = np.array(
                [run.place(step, int(step.logit_rows[i]), int(owner[i])) for i in wanted], np.int64
            )
            found_ids, found_rows = self._run(run, step, cache, places, logits)
            ids[wanted] = found_ids
            if rows is not None:
                rows[wanted] = found_rows
        return StepResult(ids, rows)

    def _run(
        self, run: _Run, step: StepInputs, cache: _Cache, places: Ints, logits: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """One run of the model: the likeliest tokens of some rows, and their logits if wanted."""
        binding = self._binding(cache, run.first, run.slots, logits)
        for name, array in run.inputs(step, self._idle).items():
            binding.bind_cpu_input(name, array)
        binding.bind_cpu_input("logit_rows", places)
        ids = np.empty(len(places), np.int64)
        rows = self._rows(len(places), own=logits)
        found: dict[str, NDArray[Any]] = {"token_ids": ids} if self._argmax else {}
        if logits or not self._argmax:
            found["logits"] = rows
        for name, array in found.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        if not self._argmax:
            ids = rows.argmax(-1)
        return ids, rows if logits else None

    def _rows(self, count: int, *, own: bool) -> NDArray[np.float32]:
        """Room for logits [count, V]: the caller's own, or some that the next run writes over."""
        if own:
            return np.empty((count, self.vocab_size), np.float32)
        if count > len(self._scratch):
            self._scratch = np.empty((count, self.vocab_size), np.float32)
        return self._scratch[:count]

    def _binding(self, cache: _Cache, first: int, count: int, logits: bool) -> onnxruntime.IOBinding:
        """A binding that has some slots' caches already: past and present are one buffer."""
        binding = cache.bindings.pop((first, count, logits), None)
        if binding is None:
            binding = self._session.io_binding()
            for name in self._pasts:
                shape, address = cache.rows(name, first, count)
                place = (self.device, 0, np.float32, shape, address)
                binding.bind_input(name, *place)
                binding.bind_output(name.replace("past_key_values", "present"), *place)
            if len(cache.bindings) == _BINDINGS:
                del cache.bindings[next(iter(cache.bindings))]
        cache.bindings[first, count, logits] = binding
        return binding


@dataclass(frozen=True)
class _Run:
    """Neighbouring slots in one run of the model.

    Attributes:
        first, slots: the slots' range.
        tokens: S, new tokens of every sequence that takes part.
        sequences: which of the step's take part, in the order of their slots.
        rows: the row of each.
    """

    first: int
    slots: int
    tokens: int
    sequences: tuple[int, ...]
    rows: tuple[int, ...]

    def inputs(self, step: StepInputs, idle: bool) -> dict[str, NDArray[Any]]:
        """The model's inputs. A slot that sits out, where ``idle`` allows it, has no query."""
        shape = (self.slots, self.tokens)
        ids, at = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        queries, ends = np.zeros(self.slots, np.int32), np.zeros(self.slots, np.int32)
        for sequence, row in zip(self.sequences, self.rows, strict=True):
            begin = int(step.query_start[sequence])
            ids[row] = step.token_ids[begin : begin + self.tokens]
            at[row] = step.positions[begin : begin + self.tokens]
            queries[row], ends[row] = self.tokens, int(step.context_lens[sequence]) - 1
        longest = np.asarray(int(ends.max()) + 1, np.int32)
        return {
            "input_ids": ids,
            "position_ids": at,
            **({"query_seqlens": queries} if idle else {}),
            "seqlens_k": ends,
            "total_sequence_length": longest,
        }

    def place(self, step: StepInputs, token: int, sequence: int) -> int:
        """Where a token of the step is among this run's rows and columns."""
        row = self.rows[self.sequences.index(sequence)]
        return row * self.tokens + token - int(step.query_start[sequence])


def _runs(step: StepInputs, idle: bool) -> Iterator[_Run]:
    """A step's sequences by their number of new tokens, in ranges of slots with few holes.

    Args:
        idle: a slot may sit out. Without it there are no holes, and chunks of prompts run one by one, as
            attention takes rows of several new tokens and different lengths only then.
    """
    counts = np.diff(step.query_start)
    for count in sorted(set(counts.tolist()) - {0}):
        members = sorted((int(step.block_tables[it, 0]), int(it)) for it in np.flatnonzero(counts == count))
        together = len(members) if idle or count == 1 else 1
        for group in _ranges(members, _HOLES if idle else 0, together):
            first = group[0][0]
            yield _Run(
                first,
                group[-1][0] - first + 1,
                int(count),
                tuple(sequence for _, sequence in group),
                tuple(slot - first for slot, _ in group),
            )


def _ranges(members: Iterable[tuple[int, int]], holes: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """(slot, sequence) pairs in neighbouring slots.

    Args:
        holes: slots that may sit out, for each that takes part.
        most: pairs of a range.
    """
    group: list[tuple[int, int]] = []
    for slot, sequence in members:
        if group and (slot - group[0][0] > (1 + holes) * len(group) or len(group) == most):
            yield group
            group = []
        group.append((slot, sequence))
    if group:
        yield group


def _session(model: Path, settings: Settings) -> onnxruntime.InferenceSession:
    """A session on the wanted provider.

    Raises:
        RequestError: ONNX Runtime has no such provider here.
    """
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[settings.provider]
    if provider not in onnxruntime.get_available_providers():
        raise RequestError(
            f"ONNX Runtime has no {provider} here.",
            hint="pip install 'optpipe[onnx-gpu]', and a driver" if settings.provider == "cuda" else None,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    providers = [provider] if settings.provider == "cpu" else [provider, "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(model), options, providers=providers)

"""The ``cpu`` target's executor: a step is one native call over packed weights and a paged cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import CapacityError, KernelError
from optpipe.targets.protocol import CacheSpec, Ints, MemoryNeeds, StepInputs, StepResult
from optpipe.targets.steps import INPUTS, Done, check_step, check_tokens, one_sequence

from .cache import cache_bytes
from .library import Library, Pool
from .lowering import Plans
from .lowering.arena import ALIGNMENT
from .lowering.extent import Unit
from .lowering.view import External
from .lowerings import Lowerings
from .plan import Plan
from .segments import run_segments
from .weights import Packed

_DTYPES = {"i64": np.int64, "i32": np.int32}


@dataclass
class _Cache:
    """One allocation: a plan is bound to one at a time."""

    blocks: int
    arrays: dict[External, NDArray[Any]]


class _Ready:
    """A lowering in the native library, reading the weights.

    Attributes:
        plans: the lowering.
        logits, greedy: its plans.
        segment: runs what torch has to run.
        inputs: of each plan, (array of a step, its place, its dtype).
    """

    def __init__(self, library: Library, plans: Plans, weights: Packed) -> None:
        if missing := plans.weights.keys() - weights.arrays.keys():
            first = min(external.name for external in missing)
            raise KernelError(f"{len(missing)} weights of a plan are not packed, such as {first}.")
        self.plans = plans
        self.segment = run_segments(plans.lowered.segments)
        self.logits = Plan(library, plans.logits)
        self.greedy = Plan(library, plans.greedy)
        for plan in (self.logits, self.greedy):
            plan.bind(weights.arrays)
        self.inputs = {plan: _inputs(plan, plans.inputs) for plan in (self.logits, self.greedy)}
        self._cache: _Cache | None = None

    def use(self, cache: _Cache) -> None:
        """Let steps read and write a cache."""
        if cache is not self._cache:
            self.logits.bind(cache.arrays)
            self.greedy.bind(cache.arrays)
            self._cache = cache

    def close(self) -> None:
        self.logits.close()
        self.greedy.close()


class CpuExecutor:
    """Runs the plans of one artifact.

    Args:
        lowerings: of its Program.
        weights: of every weight external, packed for the library's instruction set.
        library: the native library.
        pool: the threads, which end with the executor.

    Raises:
        ArtifactError: a node has no kernel, and torch cannot run it either.
    """

    batch_invariant = True

    def __init__(
        self,
        lowerings: Lowerings,
        weights: Packed,
        library: Library,
        pool: Pool,
    ) -> None:
        self._weights, self._library, self._pool = weights, library, pool
        self._lowerings = lowerings
        self.kv_dtypes = lowerings.kv_dtypes
        self._parts: dict[int, _Ready] = {}  # the model's first layers, by how many
        self._cache: _Cache | None = None
        self.profile = False
        self._take(self.kv_dtypes[0])

    @property
    def cache_spec(self) -> CacheSpec:
        """See ``Executor.cache_spec``."""
        return self._whole.plans.cache_spec

    @property
    def vocab_size(self) -> int:
        """See ``Executor.vocab_size``."""
        return self._whole.plans.vocab_size

    @property
    def num_layers(self) -> int:
        """See ``LayeredExecutor.num_layers``."""
        return self._lowerings.num_layers

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """See ``Executor.block_bytes``."""
        return sum(self._bytes_of(kv_dtype or self.kv_dtypes[0]).values())

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """See ``Executor.memory``."""
        arenas = self._whole.logits.emitted.arena_bytes
        units = {Unit.ONE: 1, Unit.T: tokens, Unit.R: rows, Unit.B: tokens}
        workspace = sum(arenas[unit] * count for unit, count in units.items())
        return MemoryNeeds(self._weights.nbytes, workspace, loaded=self._weights.loaded)

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """See ``Executor.allocate``."""
        wanted = kv_dtype or self.kv_dtypes[0]
        if wanted not in self.kv_dtypes:
            raise CapacityError(
                f"The cpu target has no cache of {wanted}; it has {', '.join(self.kv_dtypes)}."
            )
        self._cache = None
        self._take(wanted)
        self._cache = self._allocated(num_blocks)

    def prepare_layers(self, layers: int) -> None:
        """See ``LayeredExecutor.prepare_layers``. A part's arena is its own, and as large as its steps."""
        if layers not in self._parts:
            plans = self._lowerings.plans(self._kv_dtype, layers)
            self._parts[layers] = _Ready(self._library, plans, self._weights)

    def submit(self, step: StepInputs, *, logits: bool = True, layers: int | None = None) -> Done:
        """See ``LayeredExecutor.submit``. The step has run when this returns."""
        if self._cache is None:
            raise CapacityError("The executor has no cache yet; allocate one first.")
        check_step(step, self._cache.blocks, self.cache_spec.block_size, self.vocab_size)
        if layers is not None:
            self.prepare_layers(layers)
        part = self._whole if layers is None else self._parts[layers]
        return Done(self._run(step, self._cache, logits, part))

    def logits(self, token_ids: Ints, rows: Ints | None = None) -> NDArray[np.float32]:
        """See ``Executor.logits``."""
        check_tokens(token_ids, self.vocab_size)
        block = self.cache_spec.block_size
        step = one_sequence(token_ids, block)
        if rows is not None:
            step = StepInputs(**{**_fields(step), "logit_rows": np.asarray(rows, dtype=np.int64)})
        found = self._run(step, self._allocated(-(-len(token_ids) // block)), True, self._whole).logits
        assert found is not None, "the step asked for logits"
        return found

    def close(self) -> None:
        """Free the plans and end the threads; the executor is of no use afterwards."""
        self._close_plans()
        self._pool.close()

    @property
    def pool(self) -> Pool:
        """The threads."""
        return self._pool

    def step_times(self) -> NDArray[np.int64]:
        """Nanoseconds of each step of the lowering with logits, in order, over every run with ``profile``."""
        return self._whole.logits.step_times(self._whole.plans.lowered.steps)

    def _take(self, kv_dtype: str) -> None:
        """Make the plans for a dtype of the cache."""
        if hasattr(self, "_whole"):
            self._close_plans()
        self._kv_dtype = kv_dtype
        self._whole = _Ready(self._library, self._lowerings.plans(kv_dtype), self._weights)

    def _close_plans(self) -> None:
        for ready in (self._whole, *self._parts.values()):
            ready.close()
        self._parts.clear()

    def _bytes_of(self, kv_dtype: str) -> dict[External, int]:
        spec = self.cache_spec
        found = {}
        for layer, (heads, keys, values) in enumerate(spec.layers):
            key, value = External("cache", f"k_cache.{layer}"), External("cache", f"v_cache.{layer}")
            found[key] = cache_bytes(spec.block_size, heads, keys, kv_dtype, keys=True)
            found[value] = cache_bytes(spec.block_size, heads, values, kv_dtype, keys=False)
        return found

    def _allocated(self, blocks: int) -> _Cache:
        try:
            arrays = {
                external: np.zeros(size * blocks + ALIGNMENT, np.uint8)
                for external, size in self._bytes_of(self._kv_dtype).items()
            }
        except MemoryError as error:
            raise CapacityError(f"A cache of {blocks} blocks does not fit into memory.") from error
        return _Cache(blocks, {external: _aligned(array) for external, array in arrays.items()})

    def _run(self, step: StepInputs, cache: _Cache, logits: bool, part: _Ready) -> StepResult:
        plan = part.logits if logits else part.greedy
        part.use(cache)
        for name, number, dtype in part.inputs[plan]:
            plan.point(number, np.ascontiguousarray(getattr(step, name), dtype=dtype))
        counts = (
            len(step.token_ids),
            len(step.logit_rows),
            len(step.context_lens),
            step.block_tables.shape[1],
            cache.blocks,
        )
        plan.run(self._pool, counts, segment=part.segment, profile=self.profile)
        if not logits:
            return StepResult(plan.output(), None)
        rows = plan.output()
        return StepResult(rows.argmax(-1), rows)


def _inputs(plan: Plan, wanted: Mapping[External, str]) -> list[tuple[str, int, np.dtype[Any]]]:
    """Where arrays of a step go, if the plan has them: (name, place in the plan, dtype)."""
    found = []
    for field in fields(StepInputs):
        external = External("input", INPUTS.get(field.name, field.name))
        number = plan.number(external)
        if number is not None and external in wanted:
            found.append((field.name, number, np.dtype(_DTYPES[wanted[external]])))
    return found


def _fields(step: StepInputs) -> dict[str, Any]:
    return {field.name: getattr(step, field.name) for field in fields(step)}


def _aligned(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part of an array that begins at a cache line."""
    skip = -array.ctypes.data % ALIGNMENT
    return array[skip : len(array) - ALIGNMENT + skip]

"""The ``cuda`` target's executor: steps on a GPU, decode steps replayed from graphs, one ahead if wanted.

submit:  stage → [a graph's replay | calls] → tokens stay on the device, the most likely or drawn ─┐
                                              tokens → pinned memory   the next step may take them │
result:  wait for the transfer                                                                     ┘
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from optpipe.errors import CapacityError
from optpipe.targets.protocol import CacheSpec, Draws, Ints, MemoryNeeds, StepInputs
from optpipe.targets.steps import INPUTS, check_step, check_tokens, one_sequence

from . import cache, drawing
from .attention import Counts, Lists, layer_of
from .buckets import SEQUENCES, Shape, bucket_of, nothing, padded, shape_of
from .calls import Calls, Facts
from .chooser import Chooser
from .feed import fed_tokens
from .graphs import Graphs, Recorder
from .operations import Operations
from .pending import Given, Pending
from .staging import Staging
from .steps import Lowered
from .weights import nbytes_of
from .workspace import workspace_bytes

FED_ROWS = 4096  # of a step, at most, whose tokens the next may take


class Staged(NamedTuple):
    """A step on the device.

    Attributes:
        inputs: a tensor for each input of the Program, and attention's lists.
        shape: the sizes of its arrays.
        facts: attention's lists as its kernels take them.
    """

    inputs: dict[str, torch.Tensor]
    shape: Shape
    facts: Facts


class CudaExecutor:
    """Runs the steps of one artifact.

    Args:
        lowered: its steps.
        weights: a tensor for each recipe of them.
        calls: the steps, bound to the weights.
        operations: what they run on.
        device: where; the CPU interprets the kernels, for tests.
        recorder: captures decode steps; None runs every step as it is.
    """

    feeds_tokens = True

    def __init__(
        self,
        lowered: Lowered,
        weights: Mapping[Any, Any],
        calls: Calls,
        operations: Operations,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self.lowered, self.calls, self.operations, self.device = lowered, calls, operations, device
        self.weight_bytes = sum(nbytes_of(weight) for weight in weights.values())
        self._graphs: Graphs[Given] | None = None if recorder is None else Graphs(recorder)
        self._staging, self._captured = Staging(device), Staging(device)
        self._chooser = Chooser(operations, device)
        self._sampled = torch.zeros(FED_ROWS, dtype=torch.int64, device=device)
        self._told = torch.zeros(0, self.vocab_size, dtype=torch.float32, device=device)
        self._made_lists: dict[str, Lists | None] = {}
        self._kv_dtype = self.kv_dtypes[0]
        self._fed = 0  # rows of the last step whose tokens are in _sampled
        self._cache: dict[str, cache.Stored] = {}
        self._blocks = 0

    @property
    def batch_invariant(self) -> bool:
        """See ``Executor.batch_invariant``."""
        return self.operations.invariant(self.lowered.steps)

    @property
    def cache_spec(self) -> CacheSpec:
        """See ``Executor.cache_spec``."""
        return self.lowered.cache_spec

    @property
    def vocab_size(self) -> int:
        """See ``Executor.vocab_size``."""
        return self.lowered.vocab_size

    @property
    def draws_tokens(self) -> bool:
        """Whether tokens can be drawn on the device."""
        return self.operations.draws

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """See ``Executor.kv_dtypes``."""
        return self.operations.kv_dtypes

    @property
    def graphs(self) -> int:
        """How many steps were captured so far."""
        return 0 if self._graphs is None else len(self._graphs)

    def block_bytes(self, kv_dtype: str | None = None) -> int:
        """See ``Executor.block_bytes``."""
        return cache.block_bytes(self.cache_spec, self._known(kv_dtype))

    def memory(self, *, tokens: int, rows: int) -> MemoryNeeds:
        """See ``Executor.memory``."""
        workspace = self._workspace(tokens, rows)
        if self._graphs is not None:  # whose pool lends nothing to steps that run as they are
            workspace += self._workspace(min(tokens, SEQUENCES[-1]), min(rows, SEQUENCES[-1]))
        if self.device.type != "cuda":
            return MemoryNeeds(self.weight_bytes, workspace, loaded=self.weight_bytes)
        free, _ = torch.cuda.mem_get_info(self.device)
        idle = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return MemoryNeeds(self.weight_bytes, workspace, free + idle, loaded=self.weight_bytes)

    def _workspace(self, tokens: int, rows: int) -> int:
        return workspace_bytes(self.lowered, self.operations.dtype.itemsize, tokens=tokens, rows=rows)

    def allocate(self, num_blocks: int, *, kv_dtype: str | None = None) -> None:
        """See ``Executor.allocate``."""
        wanted = self._known(kv_dtype)
        self._cache, self._blocks, self._fed = {}, 0, 0
        if self._graphs is not None:
            self._graphs.clear()
        self._cache = cache.allocate(self.cache_spec, num_blocks, wanted, self.device)
        self._blocks, self._kv_dtype = num_blocks, wanted

    def _here(self) -> contextlib.AbstractContextManager[None]:
        """The device is the current one: an engine's thread has another until told."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    @torch.inference_mode()
    def submit(self, step: StepInputs, *, logits: bool = True, draws: Draws | None = None) -> Pending:
        """See ``Executor.submit``. Returns while the step runs."""
        if not self._blocks:
            raise CapacityError("The executor has no cache yet; allocate one first.")
        spec = self.cache_spec
        check_step(step, self._blocks, spec.block_size, self.vocab_size, fed=self._fed)
        rows = len(step.logit_rows)
        drawing.check(draws, rows, self.vocab_size, able=self.draws_tokens)
        bucket = None if self._graphs is None else bucket_of(step)
        with self._here():
            if draws is not None and drawing.ruled(draws):
                given = self._chosen(self._run(step, bucket, True, None), draws, rows)
                given = given if logits else given._replace(logits=None)
            else:
                given = self._run(step, bucket, logits, draws)
            self._fed = min(rows, FED_ROWS)
            return Pending(given, rows)

    def _run(self, step: StepInputs, bucket: Shape | None, logits: bool, draws: Draws | None) -> Given:
        if bucket is None:
            return self._as_it_is(step, logits, draws)
        return self._replayed(step, bucket, logits, draws)

    def _chosen(self, given: Given, draws: Draws, rows: int) -> Given:
        """The tokens of a step whose rows have rules: they feed the next step in place of the most likely."""
        assert given.logits is not None, "rules are of logits"
        chosen = self._chooser.choose(given.logits[:rows], draws)
        self._feed(chosen.ids)
        return chosen

    def _feed(self, ids: torch.Tensor) -> None:
        """Keep tokens for the next step; a row without a token feeds one all the same."""
        kept = min(len(ids), FED_ROWS)
        torch.clamp_min(ids[:kept], 0, out=self._sampled[:kept])

    @torch.inference_mode()
    def logits(self, token_ids: Ints, rows: Ints | None = None) -> NDArray[np.float32]:
        """See ``Executor.logits``."""
        check_tokens(token_ids, self.vocab_size)
        spec = self.cache_spec
        step = one_sequence(token_ids, spec.block_size)
        if rows is not None:
            wanted = np.asarray(rows, dtype=np.int64)
            step = StepInputs(**{**vars(step), "logit_rows": wanted})
        blocks = step.block_tables.shape[1]
        kept = cache.allocate(spec, blocks, self.kv_dtypes[0], self.device)
        with self._here():
            found = self._model(self._staged(step, self.kv_dtypes[0]), kept, blocks)
            return np.asarray(self.operations.logits(found).cpu().numpy())

    def close(self) -> None:
        """Let the device's memory go; the executor is of no use afterwards."""
        if self._graphs is not None:
            self._graphs.clear()
        self._cache, self._blocks, self._told = {}, 0, self._told[:0].clone()

    def _known(self, kv_dtype: str | None) -> str:
        wanted = kv_dtype or self.kv_dtypes[0]
        if wanted not in self.kv_dtypes:
            raise CapacityError(
                f"The cuda target has no cache of {wanted} here; it has {', '.join(self.kv_dtypes)}."
            )
        return wanted

    def _as_it_is(self, step: StepInputs, logits: bool, draws: Draws | None) -> Given:
        feeds = int(step.token_ids.min()) < 0
        return self._step(self._staged(step, self._kv_dtype, draws), logits, feeds=feeds)

    def _staged(self, step: StepInputs, kv_dtype: str, draws: Draws | None = None) -> Staged:
        """A step that runs as it is, on the device."""
        lists = self._lists(kv_dtype)
        arrays, counts = self._with_lists(step, None, lists)
        arrays |= drawing.arrays(draws, len(step.logit_rows))
        return _on_device(self._staging.stage(arrays), shape_of(step), counts, lists)

    def _with_lists(
        self, step: StepInputs, bucket: Shape | None, lists: Lists | None
    ) -> tuple[dict[str, Any], tuple[Counts, ...]]:
        """A step's arrays with attention's lists, and what those are launched by."""
        arrays: dict[str, Any] = dict(vars(step))
        if lists is None:
            return arrays, ()
        made, counts = lists.arrays(step, bucket, self.cache_spec.block_size)
        return arrays | made, counts

    def _lists(self, kv_dtype: str) -> Lists | None:
        if kv_dtype not in self._made_lists:
            layers = dict.fromkeys(
                layer_of(step) for step in self.lowered.steps if step.kernel == "paged_attention"
            )
            wide = cache.DTYPES[kv_dtype].itemsize
            self._made_lists[kv_dtype] = self.operations.lists(layers, wide, self.device)
        return self._made_lists[kv_dtype]

    def _replayed(self, step: StepInputs, bucket: Shape, logits: bool, draws: Draws | None) -> Given:
        """A decode step from its graph, which is captured first where there is none."""
        assert self._graphs is not None, "steps are captured where there is a recorder"
        grown = self._captured.grown
        self._captured.stage(self._padded(step, bucket, draws)[0])
        if self._captured.grown != grown:  # the graphs read memory that is gone
            self._graphs.clear()
        key = (bucket, logits, draws is not None)
        if key not in self._graphs:
            self._capture(key)
            self._captured.stage(self._padded(step, bucket, draws)[0])
        return self._graphs.replay(key)

    def _capture(self, key: tuple[Shape, bool, bool]) -> None:
        """Capture a bucket's graph, on padding alone: what the step before gave stays as it is."""
        assert self._graphs is not None, "steps are captured where there is a recorder"
        bucket, logits, drawn = key
        arrays, counts = self._padded(nothing(bucket), bucket, drawing.NOTHING if drawn else None)
        staged = _on_device(self._captured.stage(arrays), bucket, counts, self._lists(self._kv_dtype))
        kept, told = self._sampled.clone(), self._told_rows(bucket.rows) if logits else None
        self._graphs.record(key, lambda: self._step(staged, logits, feeds=True, told=told))
        self._sampled.copy_(kept)

    def _told_rows(self, rows: int) -> torch.Tensor:
        """Where captured steps put their logits, each over those of the last: no graph keeps its own."""
        if len(self._told) < rows:  # graphs that have the old one keep it
            self._told = self._told.new_empty(rows, self.vocab_size)
        return self._told[:rows]

    def _padded(
        self, step: StepInputs, bucket: Shape, draws: Draws | None
    ) -> tuple[dict[str, Any], tuple[Counts, ...]]:
        """A step's arrays in the shapes of its graph."""
        arrays, counts = self._with_lists(padded(step, bucket), bucket, self._lists(self._kv_dtype))
        return arrays | drawing.arrays(draws, bucket.rows), counts

    def _step(self, staged: Staged, logits: bool, *, feeds: bool, told: torch.Tensor | None = None) -> Given:
        """One step: its tokens go to ``_sampled``, its logits to ``told`` where there is one."""
        inputs = staged.inputs
        if feeds:
            inputs = {**inputs, "input_ids": fed_tokens(inputs["input_ids"], self._sampled)}
        drawn = drawing.FLOATS in inputs
        greedy = not logits and not drawn
        found = self._model(staged._replace(inputs=inputs), self._cache, self._blocks, greedy=greedy)
        rows = None if greedy else self.operations.logits(found)
        if drawn and rows is not None:
            ids = self.operations.drawn(rows, inputs[drawing.FLOATS], inputs[drawing.INTEGERS])
        else:
            ids = found if found.dim() == 1 else self.operations.greedy(found)
        self._feed(ids)
        if told is not None and rows is not None:
            rows = told.copy_(rows)
        return Given(ids, rows if logits else None)

    def _model(
        self, staged: Staged, kept: Mapping[str, cache.Stored], blocks: int, *, greedy: bool = False
    ) -> torch.Tensor:
        inputs = {**staged.inputs, **kept}
        return self.calls.run(inputs, staged.shape.sizes(blocks), staged.facts, greedy=greedy)


def _on_device(
    views: dict[str, torch.Tensor], shape: Shape, counts: tuple[Counts, ...], lists: Lists | None
) -> Staged:
    inputs = {INPUTS.get(name, name): view for name, view in views.items()}
    return Staged(inputs, shape, None if lists is None else lists.works(views, counts))

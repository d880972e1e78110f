"""A kernel for each step, over weights as ``weights`` made them; see ``kernel_finder``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F

from optpipe.dialect import OPS
from optpipe.errors import KernelError

from .cache_operations import CacheOperations
from .recipes import Quantized, Recipe
from .row_wise import RowWise
from .steps import Step

_ROW_MIXERS = frozenset({"paged_attention", "quant_linear", "row_wise_linear", "moe", "quant_moe"})


def _mixes(step: Step) -> bool:
    """Whether a leftover may sum in an order that depends on the number of rows."""
    return step.leftover and step.kernel.split(".")[1] in (
        "linear",
        "addmm",
        "mm",
        "bmm",
        "matmul",
        "_grouped_mm",
    )


def _wide_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits in float32 of 16-bit operands, by cuBLAS."""
    out = torch.mm(x, weight.T, out_dtype=torch.float32) if x.dtype.itemsize == 2 else F.linear(x, weight)
    return out if bias is None else out + bias


def _chosen(logits: torch.Tensor, slots: int, *, over_chosen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = logits.float().softmax(-1).topk(slots)
    return ids, weights / weights.sum(-1, keepdim=True) if over_chosen else weights


def _finished(x: torch.Tensor, *, factor: float, cap: float | None) -> torch.Tensor:
    scaled = x.float() * factor
    return scaled if cap is None else cap * torch.tanh(scaled / cap)


def _quant_logits(
    launches: Callable[..., Any], invariant: bool, x: torch.Tensor, weight: Any, bias: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty(x.shape[0], weight.rows, dtype=torch.float32, device=x.device)
    if out.numel():
        for launch in launches(x.contiguous(), weight, out, bias, batch_invariant=invariant):
            launch.run()
    return out


class Operations(CacheOperations):
    """Finds what runs a step."""

    def embedding(self, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows [T, K] of a float table."""
        return F.embedding(ids, weight)

    def linear(self) -> Callable[..., torch.Tensor]:
        """``(x [..., K], weight [N, K], bias [N]?) → [..., N]``."""
        return self._cast(self._invariant_linear() or F.linear, (0,))

    def _invariant_linear(self) -> Callable[..., torch.Tensor] | None:
        """A linear layer whose rows do not depend on each other; None where none is wanted, or there."""
        return self._kernel("dense_linear", "dense_linear") if self.batch_invariant else None

    def head(self, weight: Any, recipe: Recipe) -> Callable[..., torch.Tensor]:
        """``(x [R, K], weight, bias?) → logits [R, V]``, in float32 where nothing need round them."""
        if isinstance(recipe, Quantized):
            launches = self._kernel("quant_linear", "launches")
            if launches is None or isinstance(weight, tuple):
                return self.quant_linear(recipe.bits, recipe.group)
            return self._cast(functools.partial(_quant_logits, launches, self.batch_invariant), (0,))
        dense = self._invariant_linear()
        if dense is not None:
            return self._cast(functools.partial(dense, dtype=torch.float32), (0,))
        return self._cast(_wide_product if weight.is_cuda else F.linear, (0,))

    def greedy_head(self, weight: Any) -> Callable[..., torch.Tensor] | None:
        """``(x [R, K], weight, bias?) → each row's most likely token``, where one kernel does both."""
        kernel = self._kernel("greedy_head", "greedy_head")
        return None if kernel is None or isinstance(weight, tuple) else self._cast(kernel, (0,))

    def packed(
        self,
        packed: torch.Tensor,
        scale: torch.Tensor,
        minimum: torch.Tensor | None,
        bits: int,
        group: int,
    ) -> Any:
        """A quantized matrix as ``quant_linear`` wants it: repacked, or as it is where the kernels cannot."""
        repack = self._kernel("packing", "repack")
        if repack is not None:
            with contextlib.suppress(KernelError):
                return repack(packed, scale, minimum, bits=bits, group=group, dtype=self.dtype)
        self.on_bodies.add("quant_linear")
        return (packed, scale, minimum)

    def quant_linear(self, bits: int, group: int) -> Callable[..., torch.Tensor]:
        """``(x [..., K], weight as ``packed`` gives it, bias?) → [..., N]``."""
        body = functools.partial(OPS["quant_linear"].body, bits=bits, group=group)
        kernel, invariant = self._kernel("quant_linear", "quant_linear"), self.batch_invariant

        def run(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
            if kernel is None or isinstance(weight, tuple):
                return cast("torch.Tensor", body(x, *weight, bias))
            return cast("torch.Tensor", kernel(x, weight, bias, batch_invariant=invariant))

        return self._cast(run, (0,))

    @functools.cached_property
    def _row_wise(self) -> RowWise:
        return RowWise(self._kernel, self.dtype, self.batch_invariant, self.on_bodies)

    def row_wise_linear(self) -> Callable[..., torch.Tensor]:
        """``(x [..., K], rows of 8 bits, bias?) → [..., N]``."""
        return self._row_wise.linear()

    def row_wise_codes(self) -> Callable[..., torch.Tensor]:
        """``(codes [..., K], scale [...], rows of 8 bits, bias?) → [..., N]``."""
        return self._row_wise.product()

    def rms_norm_codes(self) -> Callable[..., Any]:
        """``(x, weight; kind, …) → codes, scale``."""
        return self._row_wise.norm(add=False)

    def add_rms_norm_codes(self) -> Callable[..., Any]:
        """``(x, residual, weight; kind, …) → codes, scale, sum``."""
        return self._row_wise.norm(add=True)

    def quant_gate_up(self, bits: int, group: int) -> Callable[..., torch.Tensor]:
        """``(x, weight of gate and up, bias?; kind) → act(gate) · up``."""
        whole, gated = self.quant_linear(bits, group), self.dialect("gated_act")
        kernel, invariant = self._kernel("quant_linear", "quant_gate_up"), self.batch_invariant

        def run(x: torch.Tensor, weight: Any, bias: torch.Tensor | None, *, kind: str) -> torch.Tensor:
            if kernel is None or isinstance(weight, tuple):
                gate, up = whole(x, weight, bias).chunk(2, -1)
                return cast("torch.Tensor", gated(gate, up, kind=kind))
            return cast("torch.Tensor", kernel(x, weight, bias, kind=kind, batch_invariant=invariant))

        return self._cast(run, (0,))

    def quant_embedding(self) -> Callable[..., torch.Tensor]:
        """``(ids [T], grid as it is stored; bits, group) → [T, K]`` in the compute dtype."""
        kernel, dtype = self._kernel("quant_embedding", "quant_embedding"), self.dtype
        if kernel is None:
            self.on_bodies.add("quant_embedding")
            body = OPS["quant_embedding"].body
            return lambda ids, grid, **kwargs: body(ids, *grid, **kwargs).to(dtype)
        return lambda ids, grid, **kwargs: kernel(ids, *grid, dtype=dtype, **kwargs)

    def packed_experts(self, stored: Sequence[Any], how: Mapping[str, Any]) -> Callable[..., Any] | None:
        """``(x, experts, weights)`` of ``quant_moe`` over experts that are repacked here, once.

        Args:
            stored: the operands from ``gate_up`` on, as the artifact has them.
            how: the keywords.

        Returns:
            None where there is no kernel, or none for this grid.
        """
        pack, run = self._kernel("expert_weights", "pack"), self._kernel("experts", "packed_moe")
        if pack is None or run is None:
            return None
        gate_up, down, biases = stored[:3], stored[3:6], [*stored[6:8], None, None]
        grid = {"bits": how["bits"], "group": how["group"], "dtype": self.dtype}
        gating = {name: it for name, it in how.items() if name not in ("bits", "group", "interleaved")}
        try:
            first = pack(*gate_up, biases[0], **grid, interleaved=how.get("interleaved", False))
            second = pack(*down, biases[1], **grid)
        except KernelError:
            return None
        kernel = run
        return self._cast(lambda x, ids, scale: kernel(x, ids, scale, first, second, **gating), (0,))

    def branch_add_rms_norm(self) -> Callable[..., Any]:
        """``(x, residual, weight, branch?; eps, unit_offset, factor) → normed sum, sum``.

        x is normed with the weight ``branch`` first, or multiplied by ``factor``.
        """
        norm = self._kernel("rms_norm", "norm")
        if norm is None:
            self.on_bodies.update(("rms_norm", "add_rms_norm"))

        def run(x: Any, residual: Any, weight: Any, branch: Any, *, factor: float, **how: Any) -> Any:
            if norm is not None:
                made = norm(x, weight, residual=residual, branch=branch, factor=factor, **how)
                return made.out, made.total
            x = x * factor if branch is None else OPS["rms_norm"].body(x, branch, **how)
            return OPS["add_rms_norm"].body(x, residual, weight, **how)

        return self._cast(run, (0, 1))

    def add_layer_norm(self) -> Callable[..., Any]:
        """``(x, residual, second?, weight?, bias?; eps) → normed sum, sum``."""
        norm = self._kernel("layer_norm", "norm")
        if norm is None:
            self.on_bodies.add("layer_norm")

        def run(x: Any, residual: Any, second: Any, weight: Any, bias: Any, *, eps: float) -> Any:
            if norm is not None:
                made = norm(x, weight, bias, eps=eps, residual=residual, second=second)
                return made.out, made.total
            total = x + residual if second is None else x + residual + second
            return OPS["layer_norm"].body(total, weight, bias, eps=eps), total

        return self._cast(run, (0, 1, 2))

    def choose_experts(self) -> Callable[..., Any]:
        """``(logits [T, E]; slots, over_chosen) → ids [T, S] int64, weights [T, S] float32``."""
        return self._kernel("router", "choose_experts") or _chosen

    def finish_logits(self) -> Callable[..., torch.Tensor]:
        """``(x [R, V] of the head; factor, cap) → logits [R, V]`` in float32."""
        return self._kernel("finish_logits", "finish_logits") or _finished

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits as they are told: [R, V] float32."""
        return rows.float()

    def greedy(self, rows: torch.Tensor) -> torch.Tensor:
        """The most likely token of each row of logits: [R] int64, the lowest id of equals."""
        return rows.argmax(-1)

    @property
    def draws(self) -> bool:
        """Whether there is a kernel that draws tokens."""
        return self._kernel("sampling", "sample") is not None

    def drawn(self, rows: torch.Tensor, floats: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
        """A token for each row of logits: [R] int64; see ``optpipe.targets.protocol.Draws``."""
        sample, settings = self._kernel("sampling", "sample"), self._kernel("sampling", "Settings")
        assert sample is not None and settings is not None, "tokens are drawn where there is a kernel"
        return cast("torch.Tensor", sample(rows, settings(floats, integers)))

    def edited(self, rows: torch.Tensor, edits: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Rows of logits as they are drawn from: [R, V] float32; see ``optpipe.targets.protocol.Edits``."""
        edit, rules = self._kernel("logit_edits", "edited"), self._kernel("logit_edits", "Edits")
        assert edit is not None and rules is not None, "rows are edited where tokens are drawn"
        return cast("torch.Tensor", edit(rows, rules(**edits)))

    def logprobs(self, rows: torch.Tensor, ids: torch.Tensor, top: int) -> tuple[torch.Tensor, ...]:
        """See ``optpipe.targets.protocol.Logprobs``."""
        kernel = self._kernel("logprobs", "logprobs")
        assert kernel is not None, "log-probabilities are told where tokens are drawn"
        return cast("tuple[torch.Tensor, ...]", kernel(rows, ids, top))

    def invariant(self, steps: Iterable[Step]) -> bool:
        """Whether a row's bits are the same whatever else is in a step that is made of these."""
        if not (self.batch_invariant and self.triton) or self.on_bodies & _ROW_MIXERS:
            return False
        return self._invariant_linear() is not None and not any(_mixes(step) for step in steps)

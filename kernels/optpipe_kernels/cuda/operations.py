"""A kernel for each step, or the body of the dialect's operation where no kernel of ours does it.

Kernels take what the dialect's bodies take, in the compute dtype; what they are given in another is cast
here, so that a step that torch widened (a router's weights, a scaled embedding) meets the next kernel as it
should. ``Operations.on_bodies`` says what is left to bodies, for the report.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from optpipe.dialect import OPS
from optpipe.errors import KernelError

from .attention import Layer, Lists
from .cache import Stored, kv_dtypes

KERNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "add_rms_norm": ("rms_norm", (0, 1)),
    "gated_act": ("gated_act", (0, 1)),
    "gather_rows": ("gather_rows", ()),
    "layer_norm": ("layer_norm", (0,)),
    "moe": ("experts", (0,)),
    "quant_embedding": ("quant_embedding", ()),
    "quant_moe": ("experts", (0,)),
    "rms_norm": ("rms_norm", (0,)),
    "rope": ("rope", (0,)),
}
"""Operations that take the dialect's operands: the file of the kernel, and the operands that are cast."""


class Operations:
    """Finds what runs a step.

    Args:
        dtype: the compute dtype.
        batch_invariant: a row's bits may not depend on the other rows.
        triton: use the Triton kernels; without them every operation runs on its body.
    """

    def __init__(self, dtype: torch.dtype, *, batch_invariant: bool = True, triton: bool = True) -> None:
        self.dtype, self.batch_invariant, self.triton = dtype, batch_invariant, triton
        self.on_bodies: set[str] = set()

    def dialect(self, name: str) -> Callable[..., Any]:
        """What runs an operation of ``KERNELS``."""
        file, casts = KERNELS[name]
        function = self._kernel(file, name)
        if function is None:
            self.on_bodies.add(name)
            function = OPS[name].body
        return self._cast(function, casts)

    def _kernel(self, file: str, name: str) -> Callable[..., Any] | None:
        if not self.triton:
            return None
        try:
            module = importlib.import_module(f"optpipe_kernels.triton.{file}")
        except (ImportError, KernelError):
            return None
        found: Callable[..., Any] | None = getattr(module, name, None)
        return found

    def _cast(self, function: Callable[..., Any], casts: tuple[int, ...]) -> Callable[..., Any]:
        if not casts:
            return function
        dtype = self.dtype

        def run(*args: Any, **kwargs: Any) -> Any:
            given = list(args)
            for at in casts:
                if given[at].dtype is not dtype:
                    given[at] = given[at].to(dtype)
            return function(*given, **kwargs)

        return run

    def embedding(self, weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows [T, K] of a float table."""
        return F.embedding(ids, weight)

    def linear(self) -> Callable[..., torch.Tensor]:
        """``(x [..., K], weight [N, K], bias [N]?) → [..., N]``."""
        return self._cast(F.linear, (0,))

    def packed(
        self,
        packed: torch.Tensor,
        scale: torch.Tensor,
        minimum: torch.Tensor | None,
        bits: int,
        group: int,
    ) -> Any:
        """A quantized matrix as ``quant_linear`` wants it, from how the artifact stores it."""
        return (packed, scale, minimum)

    def quant_linear(self, bits: int, group: int) -> Callable[..., torch.Tensor]:
        """``(x [..., K], weight as ``packed`` gives it, bias?) → [..., N]``."""
        self.on_bodies.add("quant_linear")
        body = functools.partial(OPS["quant_linear"].body, bits=bits, group=group)
        return self._cast(lambda x, grid, bias: body(x, *grid, bias), (0,))

    def quant_embedding(self) -> Callable[..., torch.Tensor]:
        """``(ids [T], grid as it is stored; bits, group) → [T, K]`` in the compute dtype."""
        function = self.dialect("quant_embedding")
        return lambda ids, grid, **kwargs: function(ids, *grid, **kwargs).to(self.dtype)

    def kv_write(self) -> Callable[..., None]:
        """``(k, v, k_cache, v_cache, slots)``: this step's keys and values into their slots."""
        self.on_bodies.add("kv_write")
        body = OPS["kv_write"].body

        def run(k: Any, v: Any, keys: Stored, values: Stored, slots: Any) -> None:
            body(k, v, keys.data, values.data, slots)

        return self._cast(run, (0, 1))

    def rope_kv_write(self) -> Callable[..., torch.Tensor | None]:
        """``(q?, k, v, cos, sin, k_cache, v_cache, slots; interleaved) → the turned q``."""
        rope, write = self.dialect("rope"), self.kv_write()

        def run(
            q: Any, k: Any, v: Any, cos: Any, sin: Any, keys: Any, values: Any, slots: Any, **kwargs: Any
        ) -> torch.Tensor | None:
            write(rope(k, cos, sin, **kwargs), v, keys, values, slots)
            return None if q is None else rope(q, cos, sin, **kwargs)

        return run

    def paged_attention(self, layer: Layer) -> Callable[..., torch.Tensor]:
        """``(facts, q, …)``: the dialect's operands behind the lists of ``attention``."""
        kernel = self._kernel("paged_attention", "paged_attention")
        if kernel is None:
            self.on_bodies.add("paged_attention")
            body = OPS["paged_attention"].body

            def by_body(_: Any, q: Any, keys: Stored, values: Stored, *args: Any, **kwargs: Any) -> Any:
                return body(q, keys.data, values.data, *args, **kwargs)

            return self._cast(by_body, (1,))
        function, invariant = kernel, self.batch_invariant

        def run(facts: Any, q: Any, keys: Stored, values: Stored, *args: Any, **kwargs: Any) -> Any:
            return function(
                q, keys.data, values.data, *args, **kwargs,
                k_scales=keys.scale, v_scales=values.scale, work=facts[layer], batch_invariant=invariant,
            )  # fmt: skip

        return self._cast(run, (1,))

    def lists(self, layers: Iterable[Layer], kv_bytes: int, device: torch.device) -> Lists | None:
        """What makes the lists of attention's kernels; None where attention runs on its body."""
        if self._kernel("paged_attention", "paged_attention") is None:
            return None
        return Lists(layers, kv_bytes, device, batch_invariant=self.batch_invariant)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits as they are told: [R, V] float32."""
        return rows.float()

    def greedy(self, rows: torch.Tensor) -> torch.Tensor:
        """The most likely token of each row of logits: [R] int64, the lowest id of equals."""
        return rows.argmax(-1)

    @property
    def kv_dtypes(self) -> tuple[str, ...]:
        """How the cache can store numbers; the first is the default."""
        names = kv_dtypes(self.dtype)
        return names[:1]

    @property
    def invariant(self) -> bool:
        """Whether a row's bits are the same whatever else is in the step."""
        return False

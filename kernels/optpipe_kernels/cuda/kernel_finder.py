"""A kernel for an operation of the dialect, or the operation's body where no kernel of ours does it.

Kernels take what the dialect's bodies take, in the compute dtype; what they are given in another is cast
here, so that a step that torch widened (a router's weights, a scaled embedding) meets the next kernel as it
should. ``on_bodies`` says what is left to bodies.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from optpipe.dialect import OPS

KERNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "add_rms_norm": ("rms_norm", (0, 1)),
    "gated_act": ("gated_act", (0, 1)),
    "gather_rows": ("gather_rows", ()),
    "layer_norm": ("layer_norm", (0,)),
    "moe": ("experts", (0,)),
    "quant_moe": ("experts", (0,)),
    "rms_norm": ("rms_norm", (0,)),
    "rope": ("rope", (0,)),
}
"""Operations that take the dialect's operands: the file of the kernel, and the operands that are cast."""


class KernelFinder:
    """Finds what runs an operation of the dialect.

    Args:
        dtype: the compute dtype.
        batch_invariant: a row's bits may not depend on the other rows.
        triton: use the Triton kernels; without them every operation runs on its body.

    Attributes:
        on_bodies: operations that have no kernel here.
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
        """What a file of the Triton kernels calls by that name; None where bodies are asked for."""
        if not self.triton:
            return None
        found: Callable[..., Any] = getattr(importlib.import_module(f"optpipe_kernels.triton.{file}"), name)
        return found

    def _cast(self, function: Callable[..., Any], casts: tuple[int, ...]) -> Callable[..., Any]:
        if not casts:
            return function
        dtype = self.dtype

        def run(*args: Any, **kwargs: Any) -> Any:
            given = list(args)
            for at in casts:
                if given[at] is not None and given[at].dtype is not dtype:
                    given[at] = given[at].to(dtype)
            return function(*given, **kwargs)

        return run

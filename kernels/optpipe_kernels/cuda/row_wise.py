"""Layers over rows of 8 bits, activations too: what runs them, on kernels or on the dialect's body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch

from optpipe.dialect import OPS
from optpipe.dialect.row_wise_linear import rounded_rows, smooth
from optpipe.errors import CapacityError

CODES = {"i8": torch.int8, "f8": torch.float8_e4m3fn}
_KERNELS_NAME = {"i8": "int8", "f8": "fp8"}
FLOAT8 = (8, 9)  # the first compute capability that multiplies float8

Kernel = Callable[[str, str], Callable[..., Any] | None]
"""(file, name) → the function of a Triton file, or None to use the body."""


class RowsOf8(NamedTuple):
    """A weight: codes [N, K] int8 or float8 e4m3, and scale [N] float32 that multiplies them."""

    codes: torch.Tensor
    scale: torch.Tensor


def check_device(recipes: Iterable[Any], device: torch.device) -> None:
    """Raise unless the device multiplies the rows that the recipes ask for.

    Raises:
        CapacityError: float8 is asked of a GPU that has none.
    """
    if device.type != "cuda" or all(getattr(it, "kind", None) != "f8" for it in recipes):
        return
    here = torch.cuda.get_device_capability(device)
    if here < FLOAT8:
        raise CapacityError(
            f"The artifact multiplies rows of float8, which takes compute capability 8.9;"
            f" {device} has {here[0]}.{here[1]}.",
            hint="quant{scheme=w8a8} runs on every GPU that the target takes",
        )


def joined(parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> RowsOf8:
    """Matrices of codes one below the other, and their scales [N, 1] end to end."""
    codes, scales = zip(*parts, strict=True)
    whole = torch.cat([it.view(torch.uint8) for it in codes]).view(codes[0].dtype)
    return RowsOf8(whole, torch.cat([it.float().reshape(-1) for it in scales]))


class RowWise:
    """Finds what runs such a layer.

    Args:
        kernel: finds a kernel.
        dtype: of activations and results.
        batch_invariant: a row's bits may not depend on the other rows.
        on_bodies: told what is left to bodies.
    """

    def __init__(
        self, kernel: Kernel, dtype: torch.dtype, batch_invariant: bool, on_bodies: set[str]
    ) -> None:
        self._kernel, self._dtype, self._invariant, self._on_bodies = (
            kernel,
            dtype,
            batch_invariant,
            on_bodies,
        )

    def linear(self) -> Callable[..., torch.Tensor]:
        """``(x [..., K], weight, bias?) → [..., N]``: rounds, then multiplies."""
        quantize, product = self._kernel("row_wise", "quantize"), self.product()

        def run(x: torch.Tensor, weight: RowsOf8, bias: torch.Tensor | None) -> torch.Tensor:
            codes, scale = _rounded(quantize, x.to(self._dtype), weight.codes.dtype)
            return product(codes, scale, weight, bias)

        return run

    def product(self) -> Callable[..., torch.Tensor]:
        """``(codes [..., K], scale [...], weight, bias?) → [..., N]``."""
        kernel, dtype = self._kernel("row_wise", "row_wise_linear"), self._dtype
        if kernel is None:
            self._on_bodies.add("row_wise_linear")

        def run(
            codes: torch.Tensor, scale: torch.Tensor, weight: RowsOf8, bias: torch.Tensor | None
        ) -> torch.Tensor:
            if kernel is None:
                wide, factors = codes.to(torch.float32), weight.scale.unsqueeze(-1)
                return smooth(wide, weight.codes, factors, bias, scale.unsqueeze(-1)).to(dtype)
            how: dict[str, Any] = {"dtype": dtype, "batch_invariant": self._invariant}
            return cast("torch.Tensor", kernel(codes, scale, *weight, bias, **how))

        return run

    def norm(self, add: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
        """``(x, [residual,] weight; kind, …) → codes, scale[, the sum]``."""
        norm = self._kernel("rms_norm", "norm")
        body = OPS["add_rms_norm" if add else "rms_norm"].body
        dtype = self._dtype

        def run(x: torch.Tensor, *rest: Any, kind: str, **how: Any) -> tuple[torch.Tensor, ...]:
            x, operands = x.to(dtype), list(rest)
            if add:
                operands[0] = operands[0].to(dtype)
            if norm is None:
                found = body(x, *operands, **how)
                out, *total = found if add else (found,)
                return (*_rounded(None, out, CODES[kind]), *total)
            residual = operands.pop(0) if add else None
            made = norm(x, *operands, residual=residual, quantize=_KERNELS_NAME[kind], write=False, **how)
            return (made.codes, made.scale, made.total) if add else (made.codes, made.scale)

        return run


def _rounded(
    quantize: Callable[..., Any] | None, x: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale [...] of rows."""
    if quantize is not None:
        kind = next(name for name, it in CODES.items() if it is dtype)
        return cast("tuple[torch.Tensor, torch.Tensor]", quantize(x, _KERNELS_NAME[kind]))
    codes, scale = rounded_rows(x.float(), dtype)
    return codes.to(dtype), scale.squeeze(-1)

"""Layers over rows of 8 bits: a large product of each kind and one of few rows, beside cuBLAS's."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch

from optpipe_kernels.triton.row_wise import quantize, row_wise_linear
from optpipe_kernels.triton.rows import Quantization

from .cases import Case, Place, Run, copies, distance

KINDS: tuple[Quantization, ...] = ("fp8", "int8")
SIZES = (8192, 8192, 8192), (16, 28672, 4096)  # M, N, K
Rows = tuple[torch.Tensor, torch.Tensor]
"""Codes [N, K] and scales [N]."""


def cases(place: Place) -> Iterator[Case]:
    """Every kind and size."""
    for kind in KINDS:
        for sizes in SIZES:
            yield _case(place, kind, sizes)


def _case(place: Place, kind: Quantization, named: tuple[int, int, int]) -> Case:
    m, n, k = (place.size(it, tiny) for it, tiny in zip(named, (16, 64, 128), strict=True))
    a = _rows(place, kind, m, k)
    sets = [_rows(place, kind, n, k) for _ in range(copies(n * k, place))]
    large = kind == "fp8" and m >= 8192

    def check() -> float:
        exact = (a[0].double() @ sets[0][0].double().T) * a[1].double()[:, None] * sets[0][1].double()
        return distance(_ours(place, a, sets[0]), exact)

    return Case(
        f"{kind} row-wise {'x'.join(map(str, named))}",
        [functools.partial(_ours, place, a, b) for b in sets],
        {} if place.dry else _others(place, kind, a, sets),
        bytes=n * k + m * k + 2 * m * n,
        operations=m * n * k,  # the floor's rate is of 16 bits, 8 run twice as fast
        must=0.92 if large else None,
        stretch=1.0 if large else None,
        beside="_scaled_mm" if large else "",
        check=check,
    )


def _rows(place: Place, kind: Quantization, count: int, width: int) -> Rows:
    return quantize(torch.randn(count, width, device=place.device, dtype=place.dtype), kind)


def _ours(place: Place, a: Rows, b: Rows) -> torch.Tensor:
    return row_wise_linear(*a, *b, dtype=place.dtype)


def _others(place: Place, kind: Quantization, a: Rows, sets: Sequence[Rows]) -> dict[str, Sequence[Run]]:
    if kind == "fp8":
        return {"_scaled_mm": [functools.partial(_scaled_mm, place, a, b) for b in sets]}
    if a[0].shape[0] <= 16:  # it takes more
        return {}
    return {"_int_mm, not scaled": [functools.partial(torch._int_mm, a[0], b[0].T) for b in sets]}


def _scaled_mm(place: Place, a: Rows, b: Rows) -> torch.Tensor:
    return torch._scaled_mm(a[0], b[0].T, a[1][:, None], b[1][None, :], out_dtype=place.dtype)

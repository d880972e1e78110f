"""Routed experts, dense and in 4 bits: the matrices of the experts that have tokens are the floor."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from optpipe.dialect import OPS
from optpipe_kernels.triton import experts as kernels
from optpipe_kernels.triton.expert_weights import pack

from .cases import Case, Place, copies, distance

# name: E, S, K, I
SHAPES = {"Mixtral": (8, 2, 4096, 14336), "Qwen3-30B-A3B": (128, 8, 2048, 768)}
TINY = (4, 2, 128, 64)
GROUP = 128
KIND = "silu"
CHECKED = 64  # rows


def cases(place: Place) -> Iterator[Case]:
    """One token, a batch and a prompt."""
    for name, shape in SHAPES.items():
        shape = TINY if place.dry else shape
        for tokens in (1, 64, 4096) if not place.dry else (3,):
            yield _dense(place, name, shape, tokens)
            yield _packed(place, name, shape, tokens)


class _Routings:
    """A router without favourites, asked so often that no cache keeps the experts that tokens meet."""

    def __init__(self, place: Place, tokens: int, shape: tuple[int, int, int, int], each: float) -> None:
        count, slots, width, _ = shape
        self.x = torch.randn(tokens, width, device=place.device, dtype=place.dtype)
        self.weights = torch.rand(tokens, slots, device=place.device)
        many = copies(each * min(count, tokens * slots), place)
        scores = torch.rand(many, tokens, count, device=place.device)
        self.ids = list(scores.topk(slots).indices)
        self.used = sum(int(ids.unique().numel()) for ids in self.ids) / many  # experts, on the average

    def first(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, experts and weights of the first tokens, to check by."""
        return self.x[:CHECKED], self.ids[0][:CHECKED], self.weights[:CHECKED]


def _dense(place: Place, name: str, shape: tuple[int, int, int, int], tokens: int) -> Case:
    count, slots, width, inner = shape
    make: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
    each = 6.0 * width * inner
    routed = _Routings(place, tokens, shape, each)
    matrices = (
        torch.randn(count, 2 * inner, width, **make) / width**0.5,
        torch.randn(count, width, inner, **make) / inner**0.5,
    )

    def run(ids: torch.Tensor) -> torch.Tensor:
        return kernels.moe(routed.x, ids, routed.weights, *matrices, kind=KIND)

    def check() -> float:
        x, ids, weights = routed.first()
        exact = OPS["moe"].body(x.float(), ids, weights, *matrices, kind=KIND)
        return distance(kernels.moe(x, ids, weights, *matrices, kind=KIND), exact)

    return Case(
        f"experts of {name}, {tokens} rows",
        [functools.partial(run, ids) for ids in routed.ids],
        bytes=routed.used * each + 4.0 * tokens * width,
        operations=6.0 * tokens * slots * width * inner,
        check=check,
    )


def _packed(place: Place, name: str, shape: tuple[int, int, int, int], tokens: int) -> Case:
    count, slots, width, inner = shape
    group = min(GROUP, inner)
    each = 3.0 * width * inner * (0.5 + 2.0 / group)
    routed = _Routings(place, tokens, shape, each)

    def grid(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = (count, rows, columns // 8)
        packed = torch.randint(-(1 << 31), (1 << 31) - 1, size, dtype=torch.int32, device=place.device)
        return packed, torch.full((count, rows, columns // group), 0.2 / columns**0.5, device=place.device)

    first, second = grid(2 * inner, width), grid(width, inner)
    sizes: dict[str, Any] = {"bits": 4, "group": group}
    gate_up, down = (pack(*it, None, None, **sizes, dtype=place.dtype) for it in (first, second))

    def run(ids: torch.Tensor) -> torch.Tensor:
        return kernels.packed_moe(routed.x, ids, routed.weights, gate_up, down, kind=KIND)

    def check() -> float:
        x, ids, weights = routed.first()
        exact = OPS["quant_moe"].body(
            x.float(), ids, weights, *first, None, *second, None, **sizes, kind=KIND
        )
        return distance(kernels.packed_moe(x, ids, weights, gate_up, down, kind=KIND), exact)

    return Case(
        f"experts of {name} in 4 bits, {tokens} rows",
        [functools.partial(run, ids) for ids in routed.ids],
        bytes=routed.used * each + 4.0 * tokens * width,
        operations=6.0 * tokens * slots * width * inner,
        check=check,
    )

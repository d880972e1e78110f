"""Routed experts, dense and in 4 bits: the matrices of the experts that have tokens are the floor."""

from __future__ import annotations

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
HOW = {"kind": "silu"}


def cases(place: Place) -> Iterator[Case]:
    """One token, a batch and a prompt."""
    for name, shape in SHAPES.items():
        shape = TINY if place.dry else shape
        for tokens in (1, 64, 4096) if not place.dry else (3,):
            yield _dense(place, name, shape, tokens)
            yield _packed(place, name, shape, tokens)


def _routing(place: Place, tokens: int, count: int, slots: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Experts and weights [T, S] of a router that has no favourites, and how many experts have tokens."""
    scores = torch.rand(tokens, count, device=place.device)
    ids = scores.topk(slots).indices
    return ids, torch.rand(tokens, slots, device=place.device), int(ids.unique().numel())


def _dense(place: Place, name: str, shape: tuple[int, int, int, int], tokens: int) -> Case:
    count, slots, width, inner = shape
    make: dict[str, Any] = {"device": place.device, "dtype": place.dtype}
    ids, weights, used = _routing(place, tokens, count, slots)
    x = torch.randn(tokens, width, **make)
    sets = [
        (
            torch.randn(count, 2 * inner, width, **make) / width**0.5,
            torch.randn(count, width, inner, **make) / inner**0.5,
        )
        for _ in range(min(copies(6.0 * used * width * inner, place), 4))
    ]
    return Case(
        f"experts of {name}, {tokens} rows",
        [lambda it=it: kernels.moe(x, ids, weights, *it, **HOW) for it in sets],
        {"a loop over experts": [lambda: OPS["moe"].body(x, ids, weights, *sets[0], **HOW)]}
        if place.dry
        else {},
        bytes=6.0 * used * width * inner + 4.0 * tokens * width,
        operations=6.0 * tokens * slots * width * inner,
        check=lambda: distance(
            kernels.moe(x[:64], ids[:64], weights[:64], *sets[0], **HOW),
            OPS["moe"].body(x[:64].float(), ids[:64], weights[:64], *sets[0], **HOW),
        ),
    )


def _packed(place: Place, name: str, shape: tuple[int, int, int, int], tokens: int) -> Case:
    count, slots, width, inner = shape
    group = min(GROUP, inner)
    ids, weights, used = _routing(place, tokens, count, slots)
    x = torch.randn(tokens, width, device=place.device, dtype=place.dtype)

    def grid(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = (count, rows, columns // 8)
        packed = torch.randint(-(1 << 31), (1 << 31) - 1, size, dtype=torch.int32, device=place.device)
        return packed, torch.full((count, rows, columns // group), 0.2 / columns**0.5, device=place.device)

    first, second = grid(2 * inner, width), grid(width, inner)
    sizes: dict[str, Any] = {"bits": 4, "group": group}
    gate_up, down = (pack(*it, None, None, **sizes, dtype=x.dtype) for it in (first, second))
    each = 3.0 * width * inner * (0.5 + 2.0 / group)
    return Case(
        f"experts of {name} in 4 bits, {tokens} rows",
        [lambda: kernels.packed_moe(x, ids, weights, gate_up, down, **HOW)],
        bytes=used * each + 4.0 * tokens * width,
        operations=6.0 * tokens * slots * width * inner,
        check=lambda: distance(
            kernels.packed_moe(x[:64], ids[:64], weights[:64], gate_up, down, **HOW),
            OPS["quant_moe"].body(
                x[:64].float(), ids[:64], weights[:64], *first, None, *second, None, **sizes, **HOW
            ),
        ),
    )

"""Linear layers: 4 and 8 bits, dense, and 8-bit activations, beside cuBLAS and torch's own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from optpipe.dialect.quant_linear import dequantize
from optpipe_kernels.triton.dense_linear import dense_linear
from optpipe_kernels.triton.packing import QuantWeight, repack
from optpipe_kernels.triton.quant_linear import quant_linear

from . import row_wise
from .cases import Case, Place, Run, copies, distance

GROUP = 128
SHAPES = {(28672, 4096): (0.75, 0.85), (4096, 4096): (0.40, 0.55)}  # N, K → must, stretch at few rows


class _Quantized:
    """A weight as artifacts store it, as the kernels want it, and its values."""

    def __init__(self, place: Place, rows: int, columns: int, bits: int, group: int) -> None:
        count = columns * bits // 32
        self.packed = torch.randint(
            -(1 << 31), 1 << 31, (rows, count), device=place.device, dtype=torch.int64
        )
        self.packed = self.packed.to(torch.int32)
        groups = columns // group if group > 0 else 1
        self.scale = (torch.rand(rows, groups, device=place.device) / 64 + 1e-3).half()
        self.weight: QuantWeight = repack(self.packed, self.scale, bits=bits, group=group, dtype=place.dtype)
        self.bits = bits

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        values = dequantize(self.packed, self.scale, None, self.bits, torch.float64)
        return x.double() @ values.T


def cases(place: Place) -> Iterator[Case]:
    """Every shape and number of rows."""
    for (rows, columns), goals in SHAPES.items():
        n, k = place.size(rows, 128), place.size(columns, 256)
        for tokens in (1, 16, 64, 1024, 4096) if not place.dry else (1, 16):
            for bits, group in ((4, GROUP), (8, -1)):
                yield from _quantized(place, (rows, columns), (n, k), tokens, (bits, group), goals)
            yield _dense(place, (rows, columns), (n, k), tokens)
    yield from row_wise.cases(place)


def _quantized(
    place: Place,
    named: tuple[int, int],
    size: tuple[int, int],
    tokens: int,
    grid: tuple[int, int],
    goals: tuple[float, float],
) -> Iterator[Case]:
    n, k = size
    made = _Quantized(place, n, k, *grid)
    x = torch.randn(tokens, k, device=place.device, dtype=place.dtype)
    sets = [made, *(_Quantized(place, n, k, *grid) for _ in range(copies(made.weight.nbytes, place) - 1))]
    few = tokens <= 16 and grid[0] == 4
    many = tokens >= 1024 and grid[0] == 4
    must, stretch = goals if few else (400e12 / place.rate, 550e12 / place.rate) if many else (None, None)
    for invariant in (True, False):
        multiply = functools.partial(quant_linear, x, batch_invariant=invariant)
        yield Case(
            f"W{grid[0]}A16 {named[0]}x{named[1]}, {tokens} rows"
            + ("" if invariant else ", not batch invariant"),
            [functools.partial(multiply, it.weight) for it in sets],
            _others(place, x, made) if invariant else {},
            bytes=made.weight.nbytes + 2 * tokens * (n + k),
            operations=2 * tokens * n * k,
            must=must,
            stretch=stretch,
            check=functools.partial(_error, multiply, x, made),
        )


def _error(multiply: functools.partial[torch.Tensor], x: torch.Tensor, made: _Quantized) -> float:
    return distance(multiply(made.weight), made.exact(x))


def _others(place: Place, x: torch.Tensor, made: _Quantized) -> dict[str, Sequence[Run]]:
    if place.dry:
        return {}
    n, k = made.weight.rows, made.weight.columns
    found: dict[str, Sequence[Run]] = {
        "cuBLAS bf16": [functools.partial(F.linear, x, w) for w in _matrices(place, n, k)]
    }
    if made.bits == 4:
        found["_weight_int4pack_mm"] = [_int4pack(x, n, k) for _ in range(copies(0.5 * n * k, place))]
    return found


def _matrices(place: Place, n: int, k: int) -> list[torch.Tensor]:
    """Dense weights [N, K], so many that no cache keeps them."""
    count = copies(2.0 * n * k, place)
    return [torch.randn(n, k, device=place.device, dtype=place.dtype) for _ in range(count)]


def _int4pack(x: torch.Tensor, n: int, k: int) -> Run:
    made: list[torch.Tensor] = []

    def run() -> object:
        if not made:  # before it is captured
            codes = torch.randint(0, 256, (n, k // 2), device=x.device, dtype=torch.uint8)
            made.append(torch._convert_weight_to_int4pack(codes, 8))
            made.append(torch.rand(k // GROUP, n, 2, device=x.device, dtype=torch.bfloat16))
        return torch._weight_int4pack_mm(x, made[0], GROUP, made[1])

    return run


def _dense(place: Place, named: tuple[int, int], size: tuple[int, int], tokens: int) -> Case:
    n, k = size
    x = torch.randn(tokens, k, device=place.device, dtype=place.dtype)
    sets = _matrices(place, n, k)
    return Case(
        f"dense {named[0]}x{named[1]}, {tokens} rows",
        [functools.partial(dense_linear, x, w) for w in sets],
        {"cuBLAS bf16": [functools.partial(F.linear, x, w) for w in sets]},
        bytes=2 * (n * k + tokens * (n + k)),
        operations=2 * tokens * n * k,
        check=lambda: distance(dense_linear(x, sets[0]), x.double() @ sets[0].double().T),
    )

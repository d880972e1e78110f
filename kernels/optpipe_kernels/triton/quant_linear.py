"""``quant_linear`` and ``quant_gate_up``: linear layers whose weights are stored in 4 or 8 bits.

    y [M, N] = x · Wᵀ + bias (+ residual)          act(x · Wgᵀ + bg) · (x · Wuᵀ + bu) for gate and up

    batch_invariant     one row's bits depend on W's shape alone: ``quant_tile`` for every M
    otherwise           M = 1          a row of dot products without tensor cores (``quant_gemv``), or tiles
                        M < 1024       tiles; runs (``quant_tile.splits``) only while tiles are few
                        M ≥ 1024       the weight once to 16 bits (``quant_dequantize``), then cuBLAS

Activations are not rounded. Bytes a weight: bits/8 and the grid's 2/g or 4/g, which bound a step of few rows.
Equals the body ``optpipe.dialect.quant_linear`` (and ``gated_act``) up to one rounding of each weight and the
order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton

from optpipe.dialect.activations import activation
from optpipe.errors import KernelError

from . import gated_act, quant_dequantize, quant_gemv
from .launch import Launch
from .packing import BLOCK_K, QuantWeight
from .quant_tile import splits, sums_kernel, tile_kernel
from .tiles import device_key, tile

SCRATCH_ROWS = 1024  # of x, from which a dequantized weight and cuBLAS are the fastest way
BLOCK_SUMS = 1024  # columns of the result a program that adds runs


def quant_linear(
    x: torch.Tensor,
    weight: QuantWeight,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    batch_invariant: bool = True,
) -> torch.Tensor:
    """A linear layer.

    Args:
        x: [..., K], of the weight's dtype.
        weight: from ``packing.repack``.
        bias: [N] or None.
        residual: [..., N] or None, added before the result is rounded.
        batch_invariant: a row's bits may not depend on how many rows there are.

    Returns:
        [..., N], in x's dtype.

    Raises:
        KernelError: x has another dtype or width than the weight takes.
    """
    return _public(x, weight, bias, residual, "", batch_invariant)


def quant_gate_up(
    x: torch.Tensor,
    weight: QuantWeight,
    bias: torch.Tensor | None = None,
    *,
    kind: str,
    batch_invariant: bool = True,
) -> torch.Tensor:
    """The first half of a gated feed-forward layer: act(gate) · up.

    Args:
        x: [..., K], of the weight's dtype.
        weight: gate's rows, then up's, [2I, K].
        bias: [2I] or None, likewise.
        kind: an activation of the dialect's ``gated_act``.

    Returns:
        [..., I], in x's dtype.

    Raises:
        KernelError: as ``quant_linear``; or there is no activation named ``kind``.
    """
    activation(kind)
    return _public(x, weight, bias, None, kind, batch_invariant)


def _public(
    x: torch.Tensor,
    weight: QuantWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    kind: str,
    batch_invariant: bool,
) -> torch.Tensor:
    _check(x, weight)
    flat = _rows(x)
    width = weight.rows // 2 if kind else weight.rows
    out = torch.empty(flat.shape[0], width, dtype=x.dtype, device=x.device)
    if residual is not None:
        residual = _rows(residual)
    if flat.shape[0] >= SCRATCH_ROWS and not batch_invariant:
        _through_scratch(flat, weight, bias, residual, out, kind)
    elif out.numel():
        for launch in launches(flat, weight, out, bias, residual, kind=kind, batch_invariant=batch_invariant):
            launch.run()
    return out.view(*x.shape[:-1], width)


def launches(
    x: torch.Tensor,
    weight: QuantWeight,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    kind: str = "",
    batch_invariant: bool = True,
    key: str = "",
) -> tuple[Launch, ...]:
    """What runs a layer whose weight stays packed: one kernel, or two when the sum is cut into runs.

    Args:
        x: [M, K], rows contiguous.
        out: [M, N] contiguous, or [M, N/2] with ``kind``.
        residual: [M, N], rows contiguous.
        kind: the activation between the halves of the weight's rows; empty for a plain layer.
        key: of the tile table; the device's own where empty.
    """
    rows = x.shape[0]
    key = key or device_key(x.device)
    table = "quant_gate_up" if kind else "quant_linear"
    tiles = tile(table, key, invariant=int(batch_invariant), rows=rows, bits=weight.bits)
    words = quant_gemv.words(x) if "GEMV" in tiles.constants else None
    if words is None and "GEMV" in tiles.constants:
        tiles = tile(table, key, invariant=1, rows=rows, bits=weight.bits)
    inside = bool(tiles.constants.get("INSIDE", 0))
    runs = splits(weight.rows, weight.columns) if batch_invariant or not inside else 1
    sums = None
    if runs > 1 and not inside:
        sums = torch.empty(runs, rows, weight.rows, dtype=torch.float32, device=x.device)
    constants: dict[str, Any] = {
        name: size for name, size in tiles.constants.items() if name not in ("INSIDE", "GEMV")
    }
    constants |= {
        "BITS": weight.bits, "GROUP": weight.group, "HAS_MINIMUM": weight.has_minimum, "KIND": kind,
        "BF16": x.dtype is torch.bfloat16, "DRY": x.device.type == "cpu",
    }  # fmt: skip
    stored = (weight.codes, weight.grid, weight.scale, bias, residual, out, sums)
    sizes = (weight.rows, weight.columns)
    per_run = triton.cdiv(weight.blocks, runs)
    count = triton.cdiv(out.shape[1], constants["BLOCK_N"])
    args: tuple[Any, ...]
    if words is not None:
        kernel, args = quant_gemv.gemv_kernel, (words, *stored, *sizes, per_run)
    else:
        count *= triton.cdiv(rows, constants["BLOCK_M"])
        constants |= {"SPLITS": runs, "INSIDE": inside and runs > 1, "EVEN": weight.columns % BLOCK_K == 0}
        kernel, args = tile_kernel, (x, *stored, rows, *sizes, x.stride(0), _stride(residual), per_run)
    grid = (count, 1 if sums is None else runs, 1)
    title = _title(weight, kind, rows)
    first = Launch(kernel, grid, args, constants, tiles.num_warps, tiles.num_stages, title)
    return (first,) if sums is None else (first, add_runs(sums, weight, bias, residual, out, kind))


def add_runs(
    sums: torch.Tensor,
    weight: QuantWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    kind: str,
) -> Launch:
    """The second kernel: sums [runs, M, N] float32 → out."""
    runs, rows, columns = sums.shape
    args = (sums, weight.scale, bias, residual, out, rows, columns, _stride(residual))
    constants = {"KIND": kind, "SPLITS": runs, "SCALED": weight.scale is not None, "BLOCK": BLOCK_SUMS}
    grid = (rows, triton.cdiv(out.shape[1], BLOCK_SUMS), 1)
    title = f"{_title(weight, kind, rows)}, sums"
    return Launch(sums_kernel, grid, args, constants, num_stages=1, name=title)


def _through_scratch(
    x: torch.Tensor,
    weight: QuantWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    kind: str,
) -> None:
    """The weight in 16 bits, then a product by torch."""
    dense = quant_dequantize.dequantize(weight)
    if kind:
        both = torch.nn.functional.linear(x, dense, bias)
        half = out.shape[1]
        for launch in gated_act.launches(both[:, :half], both[:, half:], out, kind=kind):
            launch.run()
        return
    if residual is None:
        torch.mm(x, dense.T, out=out)
    else:
        torch.addmm(residual, x, dense.T, out=out)
    if bias is not None:
        out += bias


def _check(x: torch.Tensor, weight: QuantWeight) -> None:
    if x.dtype is not weight.dtype:
        raise KernelError(f"quant_linear: the weight takes activations of {weight.dtype}, got {x.dtype}")
    if x.shape[-1] != weight.columns:
        raise KernelError(f"quant_linear: the weight takes {weight.columns} inputs, got {x.shape[-1]}")


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[M, K] with contiguous rows; a copy only where a view cannot be."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _stride(residual: torch.Tensor | None) -> int:
    return 0 if residual is None else residual.stride(0)


def _title(weight: QuantWeight, kind: str, rows: int) -> str:
    grid = "row" if not weight.group else f"g{weight.group}"
    return (
        f"{'gate_up' if kind else 'linear'} w{weight.bits}{grid}{'m' if weight.has_minimum else ''}"
        f" {weight.rows}x{weight.columns} M={rows}"
    )


def meta_weight(
    rows: int, columns: int, bits: int, group: int, minimum: bool, dtype: torch.dtype = torch.bfloat16
) -> QuantWeight:
    """A weight without data, to compile for."""
    blocks, groups = -(-columns // BLOCK_K), 1
    if group != -1:
        groups = blocks * BLOCK_K // group // (1 if minimum or group == 128 else 2)
    exact = group == -1 and not minimum
    return QuantWeight(
        torch.empty(blocks * bits // 4, rows, 16, dtype=torch.int32, device="meta"),
        None if exact else torch.empty(groups, rows, dtype=torch.int32, device="meta"),
        torch.empty(rows, dtype=torch.float32, device="meta") if exact else None,
        rows, columns, bits, max(group, 0), minimum, dtype,
    )  # fmt: skip


def shipped(key: str) -> Iterator[Launch]:
    """Layers of a Llama 3.1 8B: the default 4-bit grid and 8 bits for any number of rows, and others."""
    every = (1, 32, 64, 128, 4096)
    layers = (
        (4096, 4096, 4, 32, True, "", every),
        (4096, 14336, 8, -1, False, "", every),
        (6144, 4096, 4, 128, False, "", (16, 4096)),
        (6144, 4096, 4, 64, True, "", (64,)),
        (28672, 4096, 4, 32, True, "silu", every),
        (28672, 4096, 8, -1, False, "silu", every),
        (28672, 4096, 4, 128, False, "silu", (16, 4096)),
        (28672, 4096, 8, 32, True, "silu", (64, 4096)),
    )
    for rows, columns, bits, group, minimum, kind, counts in layers:
        weight = meta_weight(rows, columns, bits, group, minimum)
        for count in counts:
            yield from _shipped(key, weight, kind, count)
    half = meta_weight(4096, 4096, 4, 32, True, torch.float16)
    yield from _shipped(key, half, "", 4096)
    for weight, kind in (
        (meta_weight(4096, 4096, 4, 32, True), ""), (meta_weight(28672, 4096, 8, -1, False), "silu"),
    ):  # fmt: skip
        yield from _shipped(key, weight, kind, 1, batch_invariant=False)
        yield from _shipped(key, weight, kind, 512, batch_invariant=False)
        out = torch.empty(weight.rows, weight.columns, dtype=weight.dtype, device="meta")
        yield from quant_dequantize.launches(weight, out)


def _shipped(
    key: str, weight: QuantWeight, kind: str, count: int, *, batch_invariant: bool = True
) -> Iterator[Launch]:
    x = torch.empty(count, weight.columns, dtype=weight.dtype, device="meta")
    out = torch.empty(count, weight.rows // 2 if kind else weight.rows, dtype=weight.dtype, device="meta")
    yield from launches(x, weight, out, kind=kind, batch_invariant=batch_invariant, key=key)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """Dots of 64 rows of weights are wgmma on Hopper; weights come in 16 bytes a thread."""
    if launch.kernel is not tile_kernel:
        return ()
    copies = ("cp.async.cg.shared.global",)
    return (*copies, "wgmma.mma_async") if key == "sm_90" else copies

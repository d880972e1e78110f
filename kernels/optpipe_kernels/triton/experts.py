"""``moe`` and ``quant_moe``: routed experts.

    y[t] = Σ_s weight[t, s] · down[e] · act(gate_up[e] · x[t])                    e = expert[t, s]

    routing     pairs (token, slot) in the order of their experts       routing.py, 1 launch, 2 over 512 pairs
    grouped     gate and up and what is between them, [T·S, I]          grouped.py, 1
                down, [T·S, K] float32                                  1
    combine     the slots of a token, in order                          1

Nothing is read back by the host and every grid follows from T and S, so that a step can be captured. A row's
bits depend on nothing but its token and experts. Bytes moved: every matrix of an expert that has tokens, once
for each BLOCK_M of them; 4 T·S·I and 8 T·S·K.
Equals the bodies ``optpipe.dialect.moe`` and ``quant_moe`` up to the rounding of [T·S, I] to x's type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton

from optpipe.dialect.activations import activation
from optpipe.dialect.moe import Gating

from . import grouped, routing
from .expert_weights import Dense, Packed, Projection, pack
from .launch import Launch
from .packing import BLOCK_K
from .tiles import Tile, device_key, tile

BLOCK_COMBINE = 1024  # columns of a token a program


def routed(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Projection,
    down: Projection,
    gating: Gating,
) -> torch.Tensor:
    """Routed experts.

    Args:
        x: [T, K].
        experts: [T, S] int64; ids outside [0, E) contribute nothing.
        weights: [T, S], what each expert's output is multiplied by.
        gate_up: E matrices [2·I, K], [I, K] when not gated; ``gating.interleaved`` is about dense ones only.
        down: E matrices [N, I].
        gating: what happens between the projections.

    Returns:
        [T, N], in x's dtype.
    """
    activation(gating.kind)
    out = torch.empty((x.shape[0], down.shape[1]), dtype=x.dtype, device=x.device)
    if experts.numel() == 0:
        return out.zero_()
    x = x if x.stride(1) == 1 else x.contiguous()
    for launch in launches(x, experts.contiguous(), weights, gate_up, down, gating, out):
        launch.run()
    return out


def launches(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Projection,
    down: Projection,
    gating: Gating,
    out: torch.Tensor,
    *,
    key: str = "",
) -> tuple[Launch, ...]:
    """Everything that runs: x [T, K] with contiguous rows, experts [T, S] contiguous, weights [T, S]."""
    count, width, _ = gate_up.shape
    width = width // 2 if gating.gated else width
    (tokens, slots), result = experts.shape, down.shape[1]
    key = key or device_key(x.device)
    bucket = {"rows": triton.cdiv(tokens * slots, count)}
    first = tile(_table(gate_up, gating.gated), key, **bucket)
    second = tile(_table(down, False), key, **bucket)
    assert first.constants["BLOCK_M"] == second.constants["BLOCK_M"], f"one order for both: {bucket = }"
    order, placing = routing.launches(experts, count, first.constants["BLOCK_M"])
    middle = torch.empty((tokens * slots, width), dtype=x.dtype, device=x.device)
    parts = torch.empty((tokens * slots, result), dtype=torch.float32, device=x.device)
    plain = Gating("", gated=False)
    adding = Launch(
        grouped.combine_kernel, (tokens, triton.cdiv(result, BLOCK_COMBINE), 1),
        (parts, experts, weights, out, slots, count, result, weights.stride(0)),
        {"BLOCK": BLOCK_COMBINE}, num_stages=1,
    )  # fmt: skip
    return (
        *placing,
        _product(x, slots, gate_up, gating, middle, order, first),
        _product(middle, 1, down, plain, parts, order, second),
        adding,
    )


def _table(matrix: Projection, gated: bool) -> str:
    return ("quant_experts" if isinstance(matrix, Packed) else "experts") + ("_gated" if gated else "")


def _product(
    x: torch.Tensor,
    share: int,
    matrix: Projection,
    gating: Gating,
    out: torch.Tensor,
    order: routing.Order,
    sizes: Tile,
) -> Launch:
    """One grouped product: pair p reads row p // share of x."""
    _, rows, columns = matrix.shape
    width = out.shape[1]
    places = (order.order, order.of_block, order.limits, order.used)
    factors = (gating.limit or 0.0, gating.alpha or 0.0, gating.up_offset)
    bias_stride = 0 if matrix.bias is None else matrix.bias.stride(0)
    constants: dict[str, Any] = {
        **sizes.constants, "KIND": gating.kind, "GATED": gating.gated,
        "HAS_LIMIT": gating.limit is not None, "SCALED": gating.alpha is not None,
    }  # fmt: skip
    grid = (triton.cdiv(width, sizes.constants["BLOCK_N"]), order.blocks, 1)
    title = f"{_table(matrix, gating.gated)} {sizes.constants['BLOCK_M']}"
    half = x.dtype is torch.bfloat16
    if isinstance(matrix, Dense):
        wide = half and x.device.type == "cpu"
        constants |= {
            "INTERLEAVED": gating.interleaved,
            "EVEN": columns % constants["BLOCK_K"] == 0,
            "WIDE": wide,
        }
        args = (
            x, matrix.weight, matrix.bias, out, *places, width, columns, share, x.stride(0),
            *matrix.weight.stride(), bias_stride, *factors,
        )  # fmt: skip
        return Launch(grouped.dense_kernel, grid, args, constants, sizes.num_warps, sizes.num_stages, title)
    stored = matrix.parts
    constants |= {
        "BITS": stored.bits, "GROUP": stored.group, "HAS_MINIMUM": stored.has_minimum,
        "EVEN": columns % BLOCK_K == 0, "BF16": half, "INTERPRETED": x.device.type == "cpu",
    }  # fmt: skip
    grid_stride = 0 if stored.grid is None else stored.grid.stride(0)
    args = (
        x, stored.codes, stored.grid, stored.scale, matrix.bias, out, *places, width, rows, columns, share,
        x.stride(0), stored.codes.stride(0), grid_stride, bias_stride, *factors,
    )  # fmt: skip
    title = f"{title} w{stored.bits}"
    return Launch(grouped.quant_kernel, grid, args, constants, sizes.num_warps, sizes.num_stages, title)


def moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    kind: str,
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    limit: float | None = None,
    alpha: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """The dialect's ``moe`` [T, K]; its matrices are in x's type."""
    if transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    gating = Gating(kind, gated, interleaved, limit, alpha, up_offset)
    return routed(x, experts, weights, Dense(gate_up, gate_up_bias), Dense(down, down_bias), gating)


def packed_moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Packed,
    down: Packed,
    **gating: Any,
) -> torch.Tensor:
    """Routed experts with projections from ``pack``: [T, K].

    Args:
        gating: kind, gated, limit, alpha, up_offset; ``pack`` has been told what is interleaved.
    """
    return routed(x, experts, weights, gate_up, down, Gating(**gating))


def quant_moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor,
    gate_up_minimum: torch.Tensor | None,
    down: torch.Tensor,
    down_scale: torch.Tensor,
    down_minimum: torch.Tensor | None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    bits: int,
    group: int,
    interleaved: bool = False,
    **gating: Any,
) -> torch.Tensor:
    """The dialect's ``quant_moe`` [T, K]. It packs at every call: models call ``pack`` once."""
    how: dict[str, Any] = {"bits": bits, "group": group, "dtype": x.dtype}
    first = pack(gate_up, gate_up_scale, gate_up_minimum, gate_up_bias, **how, interleaved=interleaved)
    second = pack(down, down_scale, down_minimum, down_bias, **how)
    return packed_moe(x, experts, weights, first, second, **gating)


def shipped(key: str) -> Iterator[Launch]:
    """Mixtral's experts dense, and Qwen3-30B-A3B's and gpt-oss's in 4 bits: a decode step and a prompt."""
    swiglu = Gating("silu")
    clamped = Gating("silu", limit=7.0, alpha=1.702, up_offset=1.0)
    for tokens in (16, 96, 4096):  # 4, 24 and 1024 rows an expert
        found = _meta_step(tokens, (8, 2, 4096, 14336), 0, False, swiglu, key)
        yield from found if tokens == 16 else found[:-1]  # tokens are combined alike
    for tokens, shape, group, biased in (
        (16, (128, 8, 2048, 768), 128, False), (400, (128, 8, 2048, 768), 128, False),
        (4096, (128, 8, 2048, 768), 128, False), (4096, (32, 4, 2880, 2880), 32, True),
    ):  # fmt: skip
        found = _meta_step(tokens, shape, group, biased, clamped if biased else swiglu, key)
        yield from (it for it in found if it.kernel is grouped.quant_kernel)


def _meta_step(
    tokens: int, shape: tuple[int, int, int, int], group: int, biased: bool, gating: Gating, key: str
) -> tuple[Launch, ...]:
    """A step of a model of E experts, S slots, K and I; its matrices are dense where there is no group."""
    count, slots, width, inner = shape
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    sizes = (2 * inner, width), (width, inner)
    first, second = (
        _meta_pack(count, *it, group, biased) if group else Dense(torch.empty(count, *it, **meta))
        for it in sizes
    )
    x = torch.empty(tokens, width, **meta)
    experts = torch.empty(tokens, slots, device="meta", dtype=torch.int64)
    weights = torch.empty(tokens, slots, **meta)
    return launches(x, experts, weights, first, second, gating, torch.empty_like(x), key=key)


def _meta_pack(count: int, rows: int, columns: int, group: int, biased: bool) -> Packed:
    """A projection in 4 bits that has shapes only."""
    packed = torch.empty(1, rows, columns // 8, device="meta", dtype=torch.int32)
    scale = torch.empty(1, rows, columns // group, device="meta", dtype=torch.float16)
    one = pack(packed, scale, None, None, bits=4, group=group, dtype=torch.bfloat16)
    bias = torch.empty(count, rows, device="meta", dtype=torch.bfloat16) if biased else None
    return Packed(one.parts, count, bias)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """PTX that a launch's code has: copies past the registers, and Hopper's matrix instructions."""
    if launch.kernel not in (grouped.dense_kernel, grouped.quant_kernel):
        return ()
    return ("cp.async", "wgmma.mma_async") if key.startswith("sm_90") else ("cp.async",)

"""``quant{scheme=w8a8}`` and ``quant{scheme=fp8}``: linear layers over rows of 8 bits, activations too.

Before: %y = aten.linear(%x, @q_proj.weight, @q_proj.bias)
After:  %y = optpipe.row_wise_linear(%x, @q_proj.weight, @q_proj.weight_scale, @q_proj.bias)

The weight keeps its name and takes another type, as compressed-tensors' ``int-quantized`` and
``float-quantized`` have it: int8 or float8 e4m3 [N, K], and a scale [N, 1] float32 beside it.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from optpipe.dialect.row_wise_linear import rounded_rows
from optpipe.pipeline.context import PassContext
from optpipe.weights.grid import GridInfo
from optpipe.weights.store import LazyWeight

from .quant_sites import Site

SCHEMES = {"fp8": torch.float8_e4m3fn, "w8a8": torch.int8}
BYTES = GridInfo(8, -1, False)  # the grid whose codes are int8 rows
MULTIPLE = 16  # inputs: what the instructions take at once
_SLAB_BYTES = 64 << 20  # of a float32 weight at once, while rounding


def why_not(site: Site, cx: PassContext) -> str | None:
    """Why a linear layer's activations are not rounded, or None when they are."""
    inputs = site.columns(cx.weights[site.weights[0]])
    if inputs % MULTIPLE:
        return f"its {inputs} inputs are not a multiple of {MULTIPLE}"
    name = site.weights[0]
    readers = [node for node in cx.gm.graph.nodes if node.op == "get_attr" and node.target == name]
    if sum(len(node.users) for node in readers) > 1:
        return "another operation reads its weight"
    return None


def build(cx: PassContext, site: Site, dtype: torch.dtype) -> fx.Node:
    """The operation that takes a site's place."""
    (name,) = site.weights
    codes, scale = rows_of(cx.weights[name], dtype, transposed=site.transposed)
    weight = cx.set_weight(name, codes, dtype)
    factors = cx.set_weight(f"{name}_scale", scale)
    return cx.call(torch.ops.optpipe.row_wise_linear.default, site.inputs, weight, factors, site.bias)


def rows_of(
    weight: LazyWeight, dtype: torch.dtype, *, transposed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] of a weight and their scale [N, 1] float32, a slab at a time.

    A weight that arrives on the grid of int8 rows keeps it.
    """
    if dtype is torch.int8 and weight.grid == BYTES and not transposed:
        blocks = weight.blocks()
        return (blocks.codes.to(torch.int16) - 128).to(torch.int8), blocks.scale.float()
    if transposed:
        codes, scale = rounded_rows(weight.load().T.float(), dtype)
        return codes.to(dtype).contiguous(), scale
    step = max(1, _SLAB_BYTES // (4 * math.prod(weight.shape[1:])))
    parts = []
    for begin in range(0, weight.shape[0], step):
        rows = weight.rows(torch.arange(begin, min(begin + step, weight.shape[0])))
        codes, scale = rounded_rows(rows.float(), dtype)
        parts.append((codes.to(dtype), scale))
    return torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts])

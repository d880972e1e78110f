"""Products with weights that are read a slab at a time, so that no large weight is ever whole in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..dialect.op import accumulator
from ..dialect.quant_linear import dequantize, product
from ..weights.store import LazyWeight

SLAB_BYTES = 64 << 20  # of widened weight at once
STREAM_BYTES = 128 << 20  # weights whose widened form is larger than this are streamed


def is_large(weight: LazyWeight, dtype: torch.dtype) -> bool:
    """Whether a matrix is worth streaming."""
    count = 1
    for size in weight.shape:
        count *= size
    return len(weight.shape) == 2 and count * dtype.itemsize > STREAM_BYTES


def linear(x: torch.Tensor, weight: LazyWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """``F.linear(x, weight, bias)`` with the weight [N, K] read by rows.

    Args:
        x: [..., K], floating.

    Returns:
        [..., N] in ``x``'s dtype.
    """
    rows, columns = weight.shape
    step = max(SLAB_BYTES // (columns * x.element_size()), 1)
    out = x.new_empty((*x.shape[:-1], rows))
    for begin in range(0, rows, step):
        index = torch.arange(begin, min(begin + step, rows))
        out[..., begin : begin + step] = F.linear(x, weight.rows(index).to(x))
    return out if bias is None else out + bias.to(x)


def quant_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """``quant_linear``'s body with the weight widened by rows; the same slabs, and bits, as :func:`linear`.

    Args:
        values: the weight's values [N, K] where they are known already.

    Returns:
        [..., N] in ``x``'s dtype.
    """
    wide = accumulator(x)
    rows, columns = packed.shape[0], packed.shape[1] * 32 // bits
    step = max(SLAB_BYTES // (columns * wide.itemsize), 1)
    out = x.new_empty((*x.shape[:-1], rows))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        if values is None:
            lowest = None if minimum is None else minimum[part]
            slab = dequantize(packed[part], scale[part], lowest, bits, wide)
        else:
            slab = values[part]
        out[..., part] = product(x, slab, None if bias is None else bias[part])
    return out


def embedding(weight: LazyWeight, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows of a table [V, K] that ``ids`` name, in ``dtype`` on the device of ``ids``."""
    rows = weight.rows(ids.reshape(-1).cpu())
    return rows.to(device=ids.device, dtype=dtype).reshape(*ids.shape, -1)

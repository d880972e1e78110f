"""``gather_rows`` and table look-ups: rows of a matrix by their numbers.

    y[r] = factor · x[rows[r]]

Shapes: x [T, K] floats with rows of any stride, rows [R] int32 or int64, y [R, K] contiguous.
Bytes moved, of a 16-bit type: 4 an element of y.
Source: equals the body ``optpipe.dialect.gather_rows``, and ``aten.embedding``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .launch import Launch

BLOCK = 1024  # elements of a row a program: 16 bytes a thread of 4 warps


@triton.jit(do_not_specialize=["count"])
def gather_rows_kernel(
    x_ptr, rows_ptr, out_ptr, count, width, x_stride, factor, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + at).to(tl.int64)
    inside = column < tl.where((row >= 0) & (row < count), width, 0)  # padding may point anywhere
    value = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    y = (value.to(tl.float32) * factor).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at * width + column, y, mask=column < width)


def launches(
    x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor, *, factor: float = 1.0
) -> tuple[Launch, ...]:
    """The one launch: x [T, K] with contiguous rows, rows [R], out [R, K] contiguous.

    A number outside [0, T) gives a row of zeros: a captured step is padded with such.
    """
    count, width = x.shape
    grid = (rows.shape[0], triton.cdiv(width, BLOCK), 1)
    args = (x, rows, out, count, width, x.stride(0), factor)
    return (Launch(gather_rows_kernel, grid, args, {"BLOCK": BLOCK}, num_stages=1),)


def gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The dialect's ``gather_rows`` [R, K]."""
    return embedding(x, rows)


def embedding(
    table: torch.Tensor, ids: torch.Tensor, *, factor: float = 1.0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Rows of a table for token ids: [..., K].

    Args:
        table: [V, K].
        ids: [...] int32 or int64; a row of zeros for one outside [0, V).
        factor: multiplies a row before it is rounded (Gemma, Granite).
        dtype: of the result; the table's own for None.
    """
    table = table if table.stride(-1) == 1 else table.contiguous()
    out = torch.empty((*ids.shape, table.shape[1]), dtype=dtype or table.dtype, device=table.device)
    if out.numel():
        for launch in launches(table, ids.reshape(-1), out.view(-1, table.shape[1]), factor=factor):
            launch.run()
    return out


def shipped(key: str) -> Iterator[Launch]:
    """A Llama's table."""
    table = torch.empty(128256, 4096, device="meta", dtype=torch.bfloat16)
    ids = torch.empty(64, device="meta", dtype=torch.int64)
    yield from launches(table, ids, torch.empty(64, 4096, device="meta", dtype=torch.bfloat16))


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load."""
    return ("ld.global.v4.b32",)

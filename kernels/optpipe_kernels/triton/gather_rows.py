"""``gather_rows``: rows of a matrix by their numbers.

    y[r] = x[rows[r]]

Shapes: x [T, K] floats with rows of any stride, rows [R] int32 or int64, y [R, K] contiguous.
Bytes moved, of a 16-bit type: 4 an element of y.
Equals the body ``optpipe.dialect.gather_rows``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .launch import Launch

BLOCK = 1024  # elements of a row a program: 16 bytes a thread of 4 warps


@triton.jit(do_not_specialize=["count"])
def gather_rows_kernel(x_ptr, rows_ptr, out_ptr, count, width, x_stride, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + at).to(tl.int64)
    inside = column < tl.where((row >= 0) & (row < count), width, 0)  # padding may point anywhere
    value = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    tl.store(out_ptr + at * width + column, value, mask=column < width)


def launches(x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> tuple[Launch, ...]:
    """The one launch: x [T, K] with contiguous rows, rows [R], out [R, K] contiguous.

    A number outside [0, T) gives a row of zeros: a captured step is padded with such.
    """
    count, width = x.shape
    grid = (rows.shape[0], triton.cdiv(width, BLOCK), 1)
    args = (x, rows, out, count, width, x.stride(0))
    return (Launch(gather_rows_kernel, grid, args, {"BLOCK": BLOCK}, num_stages=1),)


def gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The dialect's ``gather_rows`` [R, K]."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty((rows.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    if out.numel():
        for launch in launches(x, rows, out):
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

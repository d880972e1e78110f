"""``gated_act``: y = act(gate) · up, out of one fused projection or two tensors.

Shapes: gate, up [..., I] with rows of any stride (the halves of [T, 2I], say); y [..., I] contiguous.
Bytes moved, of a 16-bit type: 6 an element.
Source: Shazeer 2020; equals the body ``optpipe.dialect.gated_act``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from optpipe.dialect.activations import activation

from .activations import activate
from .launch import Launch

BLOCK = 1024  # elements of a row a program: 8 a thread of 4 warps, 16 bytes of a 16-bit type


@triton.jit
def gated_act_kernel(
    gate_ptr, up_ptr, out_ptr, width, gate_stride, up_stride, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside, other=0.0)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    y = activate(gate.to(tl.float32), KIND) * up
    tl.store(out_ptr + row * width + column, y.to(gate.dtype), mask=inside)


def launches(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor, *, kind: str) -> tuple[Launch, ...]:
    """The one launch: gate and up [T, I] with contiguous rows, out [T, I] contiguous."""
    rows, width = gate.shape
    args = (gate, up, out, width, gate.stride(0), up.stride(0))
    grid = (rows, triton.cdiv(width, BLOCK), 1)
    return (Launch(gated_act_kernel, grid, args, {"KIND": kind, "BLOCK": BLOCK}, num_stages=1),)


def gated_act(gate: torch.Tensor, up: torch.Tensor, *, kind: str) -> torch.Tensor:
    """The dialect's ``gated_act`` [..., I].

    Raises:
        KernelError: there is no activation named ``kind``.
    """
    activation(kind)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        width = gate.shape[-1]
        for launch in launches(_flat(gate), _flat(up), out.view(-1, width), kind=kind):
            launch.run()
    return out


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[T, I] with contiguous rows; a copy only where a view cannot be."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def shipped(key: str) -> Iterator[Launch]:
    """The halves of a Llama's and of a Gemma's fused projection."""
    for width, kind in ((14336, "silu"), (10240, "gelu_tanh"), (4096, "gelu")):
        both = torch.empty(64, 2 * width, device="meta", dtype=torch.bfloat16)
        out = torch.empty(64, width, device="meta", dtype=torch.bfloat16)
        yield from launches(both[:, :width], both[:, width:], out, kind=kind)


def expects(launch: Launch, key: str) -> tuple[str, ...]:
    """16 bytes a load."""
    return ("ld.global.v4.b32",)

"""Layers whose weights are stored in 4 or 8 bits.

The artifact packs codes little end first along the inputs, 32 / bits to an int32 word: read as bytes, that is
the blob of ``MatMulNBits``. A float minimum becomes a float zero point: u · s + m = (u − z) · s, z = −m / s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from optpipe.program.program import Arg, Node, WeightRef

from ..converter import Converter, UnmappedError, argument
from .table import maps

_SMALLEST, _LARGEST = 16, 256  # inputs a block, a power of two, that the operators take


@dataclass(frozen=True)
class Grid:
    """A packed weight as ONNX Runtime's operators take it.

    Attributes:
        codes: [N, K·bits/8] uint8.
        scale: [N, K/block] float32.
        zero: [N, K/block] float32, or None for the middle of the codes.
        block: inputs that share a scale.
        bits: of a code.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32] | None
    block: int
    bits: int

    @property
    def inputs(self) -> int:
        """K."""
        return int(self.codes.shape[1]) * 8 // self.bits


def grid(packed: NDArray[Any], scale: NDArray[Any], minimum: NDArray[Any] | None, bits: int) -> Grid:
    """Split groups into blocks, and turn minima into zero points.

    Args:
        packed: [N, K·bits/32] int32.
        scale, minimum: [N, K/g]; no minimum on the symmetric grid.

    Raises:
        UnmappedError: the groups hold no whole number of blocks.
    """
    codes = np.ascontiguousarray(packed).view(np.uint8)
    inputs = codes.shape[1] * 8 // bits
    group = inputs // scale.shape[1]
    block = min(group & -group, _LARGEST)  # the largest power of two in it
    if block < _SMALLEST:
        raise UnmappedError(
            f"Groups of {group} inputs have no mapping: a block is a power of two from 16 on."
        )
    wide = scale.astype(np.float32)
    zero = None
    if minimum is not None:
        codes, wide, zero = _zero_points(codes, wide, minimum.astype(np.float32))
    times = group // block
    return Grid(
        codes,
        np.repeat(wide, times, axis=1),
        None if zero is None else np.repeat(zero, times, axis=1),
        block,
        bits,
    )


def _zero_points(
    codes: NDArray[np.uint8], scale: NDArray[np.float32], minimum: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """A group without a scale is constant: its codes are cleared, and its minimum is its scale."""
    flat = scale == 0
    if flat.any():
        groups = codes.reshape(*scale.shape, -1).copy()
        groups[flat] = 0
        codes = groups.reshape(codes.shape)
        scale = np.where(flat, np.where(minimum == 0, np.float32(1), minimum), scale)
    return codes, scale, -minimum / scale


def stored_grid(c: Converter, packed: Arg, scale: Arg, minimum: Arg, bits: int) -> tuple[str, Grid]:
    """The grid of a weight of the artifact, and the weight's name."""
    for arg in (packed, scale, minimum):
        if arg is not None and not isinstance(arg, WeightRef):
            raise UnmappedError("A packed weight that the graph computes has no mapping.")
    first = cast("WeightRef", packed).name
    low = None if minimum is None else c.read(cast("WeightRef", minimum).name)
    return first, grid(c.read(first), c.read(cast("WeightRef", scale).name), low, bits)


def matmul(c: Converter, x: str, name: str, found: Grid, bias: str | None) -> str:
    """``MatMulNBits`` over a grid stored under ``name``."""
    rows, blocks = found.scale.shape
    codes = c.writer.tensor(f"{name}.blob", found.codes.reshape(rows, blocks, -1), data_of=name)
    scale = c.writer.tensor(f"{name}.scales", found.scale.reshape(rows, blocks))
    zero = None if found.zero is None else c.writer.tensor(f"{name}.zero_points", found.zero)
    made: str = c.microsoft(
        "MatMulNBits", x, codes, scale, zero, None, bias, N=rows, K=found.inputs, bits=found.bits,
        block_size=found.block, accuracy_level=c.options.accuracy_level,
    )  # fmt: skip
    return made


def dequantized(c: Converter, name: str, found: Grid) -> str:
    """The weight [N, K] by the standard operator, which takes codes of 4 bits as a type of their own."""
    rows = found.codes.shape[0]
    middle = found.zero is None
    if not middle:
        raise UnmappedError("A float minimum has no mapping to the standard DequantizeLinear.")
    codes = c.writer.packed_tensor(f"{name}.codes", found.codes, (rows, found.inputs), found.bits)
    scale = c.writer.tensor(f"{name}.scales", found.scale)
    zero = c.writer.packed_tensor(
        f"{name}.zero_points",
        np.full(
            (rows, -(-found.scale.shape[1] * found.bits // 8)), 0x88 if found.bits == 4 else 0x80, np.uint8
        ),
        found.scale.shape,
        found.bits,
    )
    made: str = c.emit("DequantizeLinear", codes, scale, zero, axis=1, block_size=found.block)
    return made


@maps("optpipe.quant_linear")
def quant_linear(c: Converter, node: Node) -> None:
    """``MatMulNBits``, or the standard ``DequantizeLinear`` before a product."""
    packed, scale = node.args[1], node.args[2]
    minimum, bias = argument(node, 3, "minimum"), argument(node, 4, "bias")
    name, found = stored_grid(c, packed, scale, minimum, cast("int", node.kwargs["bits"]))
    x, added = c.name(node.args[0]), None if bias is None else c.name(bias)
    if c.options.microsoft:
        c.bind(node.results[0], matmul(c, x, name, found, added))
        return
    c.bind(node.results[0], c.emit("Gemm", x, dequantized(c, name, found), added, transB=1))


@maps("optpipe.quant_embedding")
def quant_embedding(c: Converter, node: Node) -> None:
    """``GatherBlockQuantized``; with float minima, rows of bytes that standard operators unpack."""
    name, found = stored_grid(
        c, node.args[1], node.args[2], argument(node, 3, "minimum"), cast("int", node.kwargs["bits"])
    )
    ids = c.name(node.args[0])
    codes = c.writer.tensor(f"{name}.rows", found.codes, data_of=name)
    scale = c.writer.tensor(f"{name}.scales", found.scale)
    if c.options.microsoft and found.zero is None:
        made = c.microsoft(
            "GatherBlockQuantized", codes, ids, scale, bits=found.bits, block_size=found.block,
            quantize_axis=1, gather_axis=0,
        )  # fmt: skip
        c.bind(node.results[0], made)
        return
    rows = c.emit("Gather", codes, ids, axis=0)
    if found.bits == 4:
        high = c.emit("BitShift", rows, c.constant(4, "u8"), direction="RIGHT")
        low = c.emit("BitwiseAnd", rows, c.constant(15, "u8"))
        last = c.constant([2])
        rows = c.emit("Concat", c.emit("Unsqueeze", low, last), c.emit("Unsqueeze", high, last), axis=2)
    blocks = found.scale.shape[1]
    wide = c.reshape(c.emit("Cast", rows, to=1), [-1, blocks, found.block])
    zero = np.full_like(found.scale, 1 << (found.bits - 1)) if found.zero is None else found.zero
    offset = c.writer.tensor(f"{name}.zero_points", zero)
    tables = [
        c.emit("Unsqueeze", c.emit("Gather", it, ids, axis=0), c.constant([2])) for it in (offset, scale)
    ]
    values = c.emit("Mul", c.emit("Sub", wide, tables[0]), tables[1])
    c.bind(node.results[0], c.reshape(values, [-1, found.inputs]))

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
from .tokens import by_token, ids_in_rows

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


def product(c: Converter, x: str, name: str, found: Grid, bias: str | None) -> str:
    """x · Wᵀ + bias over a grid stored under ``name``: ``MatMulNBits``, or standard operators."""
    return _matmul(c, x, name, found, bias) if c.options.microsoft else _standard(c, x, name, found, bias)


def _matmul(c: Converter, x: str, name: str, found: Grid, bias: str | None) -> str:
    rows, blocks = found.scale.shape
    codes = c.writer.tensor(f"{name}.blob", found.codes.reshape(rows, blocks, -1), data_of=name)
    scale = c.writer.tensor(f"{name}.scales", found.scale)
    zero = None if found.zero is None else c.writer.tensor(f"{name}.zero_points", found.zero)
    made: str = c.microsoft(
        "MatMulNBits", x, codes, scale, zero, None, bias, N=rows, K=found.inputs, bits=found.bits,
        block_size=found.block, accuracy_level=c.options.accuracy_level,
    )  # fmt: skip
    return made


def _standard(c: Converter, x: str, name: str, found: Grid, bias: str | None) -> str:
    """``DequantizeLinear`` and a product. Its zero points are integers: a float minimum adds a product of its
    own with the sums of each block's inputs, as x · (u · s + m) = x · (u · s) + Σx · m.
    """
    rows, blocks = found.scale.shape
    codes = c.writer.packed_tensor(f"{name}.codes", found.codes, (rows, found.inputs), found.bits)
    scale = c.writer.tensor(f"{name}.scales", found.scale)
    zero = None
    if found.zero is None:
        middle = np.full((rows, -(-blocks * found.bits // 8)), 0x88 if found.bits == 4 else 0x80, np.uint8)
        zero = c.writer.packed_tensor(f"{name}.zero_points", middle.reshape(-1), (rows, blocks), found.bits)
    weight = c.emit("DequantizeLinear", codes, scale, zero, axis=1, block_size=found.block)
    made: str = c.emit("Gemm", x, weight, bias, transB=1)
    if found.zero is None:
        return made
    minimum = c.writer.tensor(f"{name}.minimum", -found.zero * found.scale)
    sums = c.emit("ReduceSum", c.reshape(x, [-1, blocks, found.block]), c.constant([2]), keepdims=0)
    return str(c.emit("Add", made, c.emit("Gemm", sums, minimum, transB=1)))


@maps("optpipe.quant_linear")
def quant_linear(c: Converter, node: Node) -> None:
    """A product over packed codes."""
    minimum, bias = argument(node, 3, "minimum"), argument(node, 4, "bias")
    bits = cast("int", node.kwargs["bits"])
    name, found = stored_grid(c, node.args[1], node.args[2], minimum, bits)
    added = None if bias is None else c.name(bias)
    (x,), bind = by_token(c, node, node.args[0])
    bind(node.results[0], product(c, x, name, found, added))


@maps("optpipe.quant_embedding")
def quant_embedding(c: Converter, node: Node) -> None:
    """``GatherBlockQuantized``; with float minima, rows of bytes that standard operators unpack."""
    name, found = stored_grid(
        c, node.args[1], node.args[2], argument(node, 3, "minimum"), cast("int", node.kwargs["bits"])
    )
    rows = ids_in_rows(c, node.args[0])
    ids, bind = (rows, c.bind_rows) if rows else (c.name(node.args[0]), c.bind)
    codes = c.writer.tensor(f"{name}.rows", found.codes, data_of=name)
    scale = c.writer.tensor(f"{name}.scales", found.scale)
    if c.options.microsoft and found.zero is None:
        made = c.microsoft(
            "GatherBlockQuantized", codes, ids, scale, bits=found.bits, block_size=found.block,
            quantize_axis=1, gather_axis=0,
        )  # fmt: skip
        bind(node.results[0], made)
        return
    ids = c.name(node.args[0])
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

"""Queries, keys and values of one product: what attention takes packed is computed packed.

A projection waits until somebody asks for it. Attention asks for none of the three when one product over all
their weights gives what it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from optpipe.program.program import Node, Value

from ..converter import Converter, argument
from .quantized import Grid, product, stored_grid

_LINEAR = ("aten.linear", "optpipe.quant_linear")
_TAKES_HEADS = ("optpipe.rope", "optpipe.kv_write", "optpipe.paged_attention")


def waits(c: Converter, node: Node) -> bool:
    """Whether a node is a projection, or its reshape into heads, that only attention takes."""
    if not c.options.microsoft:
        return False
    if node.op == "aten.reshape":
        source = node.args[0]
        waiting = isinstance(source, Value) and source.name in c.later
        return waiting and all(it.op in _TAKES_HEADS for it in c.users(node.results[0]))
    if node.op not in _LINEAR:
        return False
    users = c.users(node.results[0])
    return (
        len(users) == 1
        and users[0].op == "aten.reshape"
        and bool(c.users(users[0].results[0]))
        and all(it.op in _TAKES_HEADS for it in c.users(users[0].results[0]))
    )


def packed(c: Converter, values: tuple[Value, ...]) -> str | None:
    """[batch, sequence, all heads]: the product that makes all the values at once, or None.

    Args:
        values: [T, heads, width] each, none of them in the model yet.
    """
    reshapes = [c.later.get(it.name) for it in values]
    if any(it is None for it in reshapes):
        return None
    sources = [cast("Value", it.args[0]) for it in reshapes if it is not None]
    linears = [c.later[it.name] for it in sources]
    first = linears[0]
    alike = all((it.op, it.args[0]) == (first.op, first.args[0]) for it in linears)
    if not alike or len({id(it) for it in linears}) != len(linears):
        return None
    path, c.path = c.path, f"{c.path}.qkv_proj"
    made = (_dense if first.op == "aten.linear" else _quantized)(c, linears)
    c.path = path
    return made


def _bias(c: Converter, linears: list[Node], place: int) -> tuple[bool, str | None]:
    """Whether all have one or none has, and all of them in one."""
    given = [argument(it, place, "bias") for it in linears]
    if all(it is None for it in given):
        return True, None
    if any(it is None or isinstance(it, Value) for it in given):
        return False, None
    stored = np.concatenate([c.read(cast("Any", it).name).astype(np.float32) for it in given])
    return True, c.writer.tensor(f"{c.path}.bias", stored)


def _dense(c: Converter, linears: list[Node]) -> str | None:
    fits, bias = _bias(c, linears, 2)
    weights = [it.args[1] for it in linears]
    if not fits or any(isinstance(it, Value) for it in weights):
        return None
    stored: NDArray[Any] = np.concatenate([c.read(cast("Any", it).name).astype(np.float32) for it in weights])
    weight = c.writer.tensor(f"{c.path}.weight", stored)
    made: str = c.microsoft("FusedMatMul", c.row_name(cast("Value", linears[0].args[0])), weight, transB=1)
    return made if bias is None else cast("str", c.emit("Add", made, bias))


@dataclass(frozen=True)
class _Kind:
    """What packed weights must have in common."""

    bits: object
    block: int
    inputs: int
    zero: bool


def _quantized(c: Converter, linears: list[Node]) -> str | None:
    bits = [cast("int", it.kwargs["bits"]) for it in linears]
    grids = [
        stored_grid(c, it.args[1], it.args[2], argument(it, 3, "minimum"), width)[1]
        for it, width in zip(linears, bits, strict=True)
    ]
    kinds = {_Kind(it.bits, it.block, it.inputs, it.zero is not None) for it in grids}
    fits, bias = _bias(c, linears, 4) if len(kinds) == 1 else (False, None)
    if not fits:
        return None
    zeros = [it.zero for it in grids if it.zero is not None]
    below = Grid(
        np.concatenate([it.codes for it in grids]),
        np.concatenate([it.scale for it in grids]),
        np.concatenate(zeros) if zeros else None,
        grids[0].block,
        grids[0].bits,
    )
    x = c.row_name(cast("Value", linears[0].args[0]))
    return product(c, x, f"{c.path}.weight_packed", below, bias)

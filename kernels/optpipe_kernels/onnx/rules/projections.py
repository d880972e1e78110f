"""Products of one input as one product: queries, keys and values, which attention takes packed; gate and up.

A projection waits until somebody asks for it. Attention asks for none of the three when one product over all
their weights gives what it takes, and a gate for neither of its two. A product of one row is a few
microseconds of work, and to start it costs as much: of SmolLM2's decode steps gate and up in one are 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from optpipe.program.program import Arg, Node, Value, WeightRef

from ..converter import Converter, argument
from .quantized import Grid, product, stored_grid

_LINEAR = ("aten.linear", "optpipe.quant_linear")
_TAKES_HEADS = ("optpipe.rope", "optpipe.kv_write", "optpipe.paged_attention")
_GATE = "optpipe.gated_act"


def waits(c: Converter, node: Node) -> bool:
    """Whether a node is a projection, or its reshape into heads, that only attention or a gate takes."""
    if not c.options.microsoft:
        return False
    if norm_of_heads(c, node):
        return True
    if node.op == "aten.reshape":
        source = node.args[0]
        waiting = isinstance(source, Value) and source.name in c.later
        return waiting and _for_attention(c, node)
    if node.op not in _LINEAR:
        return False
    users = c.users(node.results[0])
    if len(users) == 1 and users[0].op == _GATE:
        return all(_flat(it) for it in (node.args[0], node.results[0]))
    return len(users) == 1 and users[0].op == "aten.reshape" and _for_attention(c, users[0])


def _for_attention(c: Converter, node: Node) -> bool:
    """Whether only attention takes what a node makes, after a norm that it does itself."""
    users = c.users(node.results[0])
    return bool(users) and all(it.op in _TAKES_HEADS or norm_of_heads(c, it) for it in users)


def norm_of_heads(c: Converter, node: Node) -> bool:
    """Whether a node is a norm of queries or keys, [T, H, D] over D, that attention does itself."""
    if not c.options.norms or node.op != "optpipe.rms_norm":
        return False
    weight, x = argument(node, 1, "weight"), node.args[0]
    users = c.users(node.results[0])
    return (
        isinstance(weight, WeightRef)
        and len(c.program.weights[weight.name].type.shape) == 1
        and isinstance(x, Value)
        and len(x.type.shape) == 3
        and bool(users)
        and all(it.op in _TAKES_HEADS for it in users)
    )


def packed(c: Converter, values: tuple[Value, ...]) -> str | None:
    """[batch, sequence, all heads]: the product that makes all the values at once, or None.

    Args:
        values: [T, heads, width] each, none of them in the model yet.
    """
    reshapes = [c.later.get(it.name) for it in values]
    if any(it is None or it.op != "aten.reshape" for it in reshapes):
        return None
    sources = [cast("Value", it.args[0]) for it in reshapes if it is not None]
    return _one_product(c, [c.later[it.name] for it in sources], "qkv_proj")


def gate_and_up(c: Converter, gate: Arg, up: Arg) -> list[str] | None:
    """Both [batch, sequence, width], the halves of one product; None where they are not of one.

    Args:
        gate, up: [T, width] each, none of them in the model yet.
    """
    linears = [c.later.get(it.name) if isinstance(it, Value) else None for it in (gate, up)]
    found = [it for it in linears if it is not None]
    made = _one_product(c, found, "gate_up_proj") if len(found) == 2 else None
    if made is None:
        return None
    widths = c.constant([cast("int", it.results[0].type.shape[1]) for it in found])
    return cast("list[str]", c.emit("Split", made, widths, outputs=2, axis=-1))


def _flat(arg: Arg) -> bool:
    """Whether a tensor is [T, width]."""
    shape = arg.type.shape if isinstance(arg, Value) else ()
    return len(shape) == 2 and shape[0] == "T" and isinstance(shape[1], int)


def _one_product(c: Converter, linears: list[Node], name: str) -> str | None:
    """[batch, sequence, all widths]: the results of some products side by side, or None.

    Args:
        linears: products, none of them in the model yet.
        name: of the module that computes them all.
    """
    first = linears[0]
    alike = all((it.op, it.args[0]) == (first.op, first.args[0]) for it in linears)
    if not alike or len({id(it) for it in linears}) != len(linears):
        return None
    path, c.path = c.path, f"{c.path}.{name}"
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

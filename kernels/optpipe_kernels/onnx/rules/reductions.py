"""ATen operations that make one number of many."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Arg, Node

from ..converter import DTYPES, Converter, argument, tensor_type
from ..model import element_type
from .table import Rule, maps


def _dims(dims: Arg) -> list[int]:
    return [cast("int", it) for it in (dims if isinstance(dims, tuple) else (dims,))]


def _reduction(op: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        dims, wanted = argument(node, 1, "dim"), node.results[0].type.dtype
        x = c.name(node.args[0])
        if tensor_type(node.args[0], c.program).dtype != wanted:
            x = c.emit("Cast", x, to=element_type(DTYPES[wanted]))
        axes = None if dims is None else c.constant(_dims(dims))
        keep = int(bool(argument(node, 2, "keepdim", False)))
        c.bind(node.results[0], c.emit(op, x, axes, keepdims=keep))

    return rule


maps("aten.sum.dim_IntList", "aten.sum")(_reduction("ReduceSum"))
maps("aten.mean.dim", "aten.mean")(_reduction("ReduceMean"))
maps("aten.amax")(_reduction("ReduceMax"))
maps("aten.amin")(_reduction("ReduceMin"))


@maps("aten.max.dim", "aten.min.dim")
def extreme(c: Converter, node: Node) -> None:
    """The largest or smallest of one dimension, and where it is."""
    kind = "Max" if node.op == "aten.max.dim" else "Min"
    (dim,), keep = _dims(argument(node, 1, "dim")), int(bool(argument(node, 2, "keepdim", False)))
    x = c.name(node.args[0])
    c.bind(node.results[0], c.emit(f"Reduce{kind}", x, c.constant([dim]), keepdims=keep))
    c.bind(node.results[1], c.emit(f"Arg{kind}", x, axis=dim, keepdims=keep))


@maps("aten.std.dim")
def std(c: Converter, node: Node) -> None:
    """The standard deviation; ``unbiased`` divides by one less than the count."""
    dims, x = _dims(argument(node, 1, "dim")), c.name(node.args[0])
    axes = c.constant(dims)
    apart = c.emit("Sub", x, c.emit("ReduceMean", x, axes, keepdims=1))
    keep = int(bool(argument(node, 3, "keepdim", False)))
    variance = c.emit("ReduceMean", c.emit("Mul", apart, apart), axes, keepdims=keep)
    if argument(node, 2, "unbiased", True):
        count = 1
        for dim in dims:
            count *= cast("int", tensor_type(node.args[0], c.program).shape[dim])
        variance = c.emit("Mul", variance, c.constant(count / (count - 1), node.results[0].type.dtype))
    c.bind(node.results[0], c.emit("Sqrt", variance))

"""Routed experts, expert by expert: the rows that chose one are gathered, and no other is computed.

Packed experts whose grid ``QMoE`` has are that one operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from optpipe.program.program import Arg, Node, WeightRef

from ..converter import Converter, UnmappedError, argument, tensor_type
from .arithmetic import activation
from .qmoe import qmoe
from .quantized import grid, product
from .table import maps

Linear = Callable[[str, int], str]


@maps("optpipe.moe")
def moe(c: Converter, node: Node) -> None:
    """Experts with plain weights."""
    down = _weight(node.args[4])
    transposed = bool(node.kwargs.get("transposed"))
    first = _dense(c, _weight(node.args[3]), argument(node, 5, "gate_up_bias"), transposed)
    second = _dense(c, down, argument(node, 6, "down_bias"), transposed)
    _route(c, node, c.program.weights[down].type.shape[0], first, second)


@maps("optpipe.quant_moe")
def quant_moe(c: Converter, node: Node) -> None:
    """Experts with packed weights."""
    if qmoe(c, node):
        return
    bits = cast("int", node.kwargs["bits"])
    first = _packed(c, node.args[3:6], argument(node, 9, "gate_up_bias"), bits)
    second = _packed(c, node.args[6:9], argument(node, 10, "down_bias"), bits)
    _route(c, node, c.program.weights[_weight(node.args[6])].type.shape[0], first, second)


def _weight(arg: Arg) -> str:
    if not isinstance(arg, WeightRef):
        raise UnmappedError("Weights of experts that the graph computes have no mapping.")
    return arg.name


def _bias(c: Converter, bias: Arg, expert: int) -> str | None:
    if bias is None:
        return None
    name = _weight(bias)
    return c.writer.tensor(f"{name}.{expert}", c.read(name)[expert].astype(np.float32))


def _dense(c: Converter, name: str, bias: Arg, transposed: bool) -> Linear:
    """x · W[e]ᵀ + b[e]; a transposed weight has its inputs first."""
    values = c.read(name)

    def run(x: str, expert: int) -> str:
        weight = c.writer.tensor(f"{name}.{expert}", values[expert].astype(np.float32))
        made: str = c.emit("Gemm", x, weight, _bias(c, bias, expert), transB=int(not transposed))
        return made

    return run


def _packed(c: Converter, args: tuple[Arg, ...], bias: Arg, bits: int) -> Linear:
    name = _weight(args[0])
    packed, scale, minimum = (None if it is None else c.read(_weight(it)) for it in args)
    assert packed is not None and scale is not None, "only the minimum may be missing"

    def run(x: str, expert: int) -> str:
        low = None if minimum is None else minimum[expert]
        found = grid(packed[expert], scale[expert], low, bits)
        return product(c, x, f"{name}.{expert}", found, _bias(c, bias, expert))

    return run


def _route(c: Converter, node: Node, experts: Any, first: Linear, second: Linear) -> None:
    """Each (token, slot) result lands in its own row; then the slots of a token are weighted and added."""
    x, chosen, weights = (c.name(it) for it in node.args[:3])
    slots = cast("int", tensor_type(node.args[1], c.program).shape[1])
    flat = c.reshape(chosen, [-1])
    outputs, places = [], []
    for expert in range(int(experts)):
        hit = c.emit("NonZero", c.emit("Equal", flat, c.constant(expert)))
        place = c.reshape(hit, [-1])
        rows = c.emit("Gather", x, c.emit("Div", place, c.constant(slots)), axis=0)
        outputs.append(second(_gated(c, node, first(rows, expert)), expert))
        places.append(place)
    # Every (token, slot) is in at most one expert's rows; one that is in none adds nothing.
    order = c.emit("Concat", *places, axis=0)
    width = node.results[0].type.shape[1]
    rows = c.emit("Concat", *outputs, axis=0)
    shape = c.emit("Concat", c.emit("Shape", flat), c.constant([width]), axis=0)
    blank = c.emit("Expand", c.constant(0, "f32"), shape)
    sorted_ = c.emit("ScatterND", blank, c.emit("Unsqueeze", order, c.constant([1])), rows)
    apart = c.reshape(sorted_, [-1, slots, int(width)])
    scaled = c.emit("Mul", apart, c.emit("Unsqueeze", weights, c.constant([2])))
    c.bind(node.results[0], c.emit("ReduceSum", scaled, c.constant([1]), keepdims=0))


def _gated(c: Converter, node: Node, h: str) -> str:
    """The activation between an expert's projections: ``optpipe.dialect.moe.Gating``."""
    kind, alpha = cast("str", node.kwargs["kind"]), node.kwargs.get("alpha")
    if not node.kwargs.get("gated", True):
        return activation(c, kind, h)
    gate, up = _halves(c, h, bool(node.kwargs.get("interleaved")))
    limit = node.kwargs.get("limit")
    if limit is not None:
        most, least = c.constant(limit, "f32"), c.constant(-float(cast("float", limit)), "f32")
        gate, up = c.emit("Clip", gate, None, most), c.emit("Clip", up, least, most)
    if alpha is None:
        act = activation(c, kind, gate)
    else:
        act = c.emit("Mul", gate, c.emit("Sigmoid", c.emit("Mul", gate, c.constant(alpha, "f32"))))
    if offset := node.kwargs.get("up_offset"):
        up = c.emit("Add", up, c.constant(offset, "f32"))
    made: str = c.emit("Mul", act, up)
    return made


def _halves(c: Converter, h: str, interleaved: bool) -> tuple[str, str]:
    if not interleaved:
        gate, up = c.emit("Split", h, outputs=2, axis=1, num_outputs=2)
        return gate, up
    ends, axis, step = c.constant([(1 << 63) - 1]), c.constant([1]), c.constant([2])
    gate, up = (c.emit("Slice", h, c.constant([it]), ends, axis, step) for it in (0, 1))
    return gate, up

"""The dialect's norms, activations and rows."""

from __future__ import annotations

from typing import cast

import numpy as np

from optpipe.program.program import Node, Value, WeightRef

from ..converter import Converter, argument, tensor_type
from ..model import MICROSOFT
from .arithmetic import activation
from .projections import gate_and_up
from .table import maps
from .tokens import by_token


@maps("optpipe.rms_norm")
def rms_norm(c: Converter, node: Node) -> None:
    """One operator; a unit offset goes into the weight."""
    (x,), bind = by_token(c, node, node.args[0])
    made = c.emit("RMSNormalization", x, norm_weight(c, node, 1), axis=-1, epsilon=epsilon(node))
    bind(node.results[0], made)


@maps("optpipe.add_rms_norm")
def add_rms_norm(c: Converter, node: Node) -> None:
    """Sum and norm in one operator where there is one."""
    (x, residual), bind = by_token(c, node, *node.args[:2])
    scale = norm_weight(c, node, 2)
    if c.options.microsoft:
        op = "SkipSimplifiedLayerNormalization"
        normed, total = (c.writer.fresh(c.path, it) for it in ("normed", "sum"))
        c.writer.node(
            op, [x, residual, scale], path=c.path, outputs=[normed, "", "", total], domain=MICROSOFT,
            epsilon=epsilon(node),
        )  # fmt: skip
    else:
        total = c.emit("Add", x, residual)
        normed = c.emit("RMSNormalization", total, scale, axis=-1, epsilon=epsilon(node))
    bind(node.results[0], normed)
    bind(node.results[1], total)


def epsilon(node: Node) -> float:
    """What a norm adds to the mean of squares."""
    return float(cast("float", node.kwargs["eps"]))


def norm_weight(c: Converter, node: Node, place: int) -> str:
    """The weight of a root-mean-square norm with its offset in it."""
    weight = argument(node, place, "weight")
    width = cast("int", tensor_type(node.args[0], c.program).shape[-1])
    if weight is None:
        return c.constant(np.ones(width), "f32")
    if not node.kwargs.get("unit_offset"):
        return c.name(weight)
    if not isinstance(weight, WeightRef):
        added: str = c.emit("Add", c.name(weight), c.constant(1, "f32"))
        return added
    return c.writer.tensor(f"{weight.name}.plus_one", c.read(weight.name).astype(np.float32) + 1)


@maps("optpipe.layer_norm")
def layer_norm(c: Converter, node: Node) -> None:
    """One operator, unless every head has its own weight."""
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    width = cast("int", tensor_type(node.args[0], c.program).shape[-1])
    if weight is not None and len(tensor_type(weight, c.program).shape) > 1:
        ones = c.constant(np.ones(width), "f32")
        made = c.emit("LayerNormalization", c.name(node.args[0]), ones, axis=-1, epsilon=epsilon(node))
        made = c.emit("Mul", made, c.name(weight))
        c.bind(node.results[0], made if bias is None else c.emit("Add", made, c.name(bias)))
        return
    scale = c.constant(np.ones(width), "f32") if weight is None else c.name(weight)
    offset = None if bias is None else c.name(bias)
    (x,), bind = by_token(c, node, node.args[0])
    made = c.emit("LayerNormalization", x, scale, offset, axis=-1, epsilon=epsilon(node))
    bind(node.results[0], made)


@maps("optpipe.gated_act")
def gated_act(c: Converter, node: Node) -> None:
    """act(gate) · up."""
    kind = cast("str", node.kwargs["kind"])
    both = gate_and_up(c, *node.args[:2])
    gate_up, bind = by_token(c, node, *node.args[:2]) if both is None else (both, c.bind_rows)
    bind(node.results[0], c.emit("Mul", activation(c, kind, gate_up[0]), gate_up[1]))


@maps("optpipe.gather_rows")
def gather_rows(c: Converter, node: Node) -> None:
    """The rows whose logits are wanted, or all of them."""
    x, result = cast("Value", node.args[0]), node.results[0]
    if x.name in c.rows and c.options.rows == "all":
        c.bind_rows(result, c.rows[x.name])
        return
    if x.name in c.rows and c.options.rows == "last":
        c.bind_rows(result, c.emit("Gather", c.rows[x.name], c.constant([-1]), axis=1))
        return
    if c.options.rows == "all":
        c.bind(result, c.name(x))
        return
    c.bind(node.results[0], c.emit("Gather", c.name(node.args[0]), c.name(node.args[1]), axis=0))

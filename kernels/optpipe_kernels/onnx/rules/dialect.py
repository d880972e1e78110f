"""The dialect's norms, activations and rows."""

from __future__ import annotations

from typing import cast

import numpy as np

from optpipe.program.program import Node, WeightRef

from ..converter import Converter, argument, tensor_type
from .arithmetic import activation
from .table import maps


@maps("optpipe.rms_norm")
def rms_norm(c: Converter, node: Node) -> None:
    """One operator; a unit offset goes into the weight."""
    made = c.emit("RMSNormalization", c.name(node.args[0]), _scale(c, node, 1), axis=-1, epsilon=_eps(node))
    c.bind(node.results[0], made)


@maps("optpipe.add_rms_norm")
def add_rms_norm(c: Converter, node: Node) -> None:
    """Sum and norm in one operator where there is one."""
    x, residual, scale = c.name(node.args[0]), c.name(node.args[1]), _scale(c, node, 2)
    if c.options.microsoft:
        normed, _, _, total = c.microsoft(
            "SkipSimplifiedLayerNormalization", x, residual, scale, outputs=4, epsilon=_eps(node)
        )
    else:
        total = c.emit("Add", x, residual)
        normed = c.emit("RMSNormalization", total, scale, axis=-1, epsilon=_eps(node))
    c.bind(node.results[0], normed)
    c.bind(node.results[1], total)


def _eps(node: Node) -> float:
    return float(cast("float", node.kwargs["eps"]))


def _scale(c: Converter, node: Node, place: int) -> str:
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
        made = c.emit("LayerNormalization", c.name(node.args[0]), ones, axis=-1, epsilon=_eps(node))
        made = c.emit("Mul", made, c.name(weight))
        c.bind(node.results[0], made if bias is None else c.emit("Add", made, c.name(bias)))
        return
    scale = c.constant(np.ones(width), "f32") if weight is None else c.name(weight)
    offset = None if bias is None else c.name(bias)
    made = c.emit("LayerNormalization", c.name(node.args[0]), scale, offset, axis=-1, epsilon=_eps(node))
    c.bind(node.results[0], made)


@maps("optpipe.gated_act")
def gated_act(c: Converter, node: Node) -> None:
    """act(gate) · up."""
    kind = cast("str", node.kwargs["kind"])
    c.bind(node.results[0], c.emit("Mul", activation(c, kind, c.name(node.args[0])), c.name(node.args[1])))


@maps("optpipe.gather_rows")
def gather_rows(c: Converter, node: Node) -> None:
    """The rows whose logits are wanted, or all of them."""
    if c.options.rows == "all":
        c.bind(node.results[0], c.name(node.args[0]))
        return
    c.bind(node.results[0], c.emit("Gather", c.name(node.args[0]), c.name(node.args[1]), axis=0))

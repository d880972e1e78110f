"""``QMoE``: all packed experts of a layer in one operator.

It routes by itself, from scores; here the router is part of the graph, as models differ there. So the choice
is handed over as scores, 1 for a chosen expert and 0 for another, and the weights beside them. Gate and up
lie channel by channel, the only order that the CPU provider takes. Zero points are integers: experts on a
grid with float minima are written one by one. Source: ONNX Runtime 1.32, ``contrib_defs`` and its CPU kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from optpipe.program.program import Arg, Node, WeightRef

from ..converter import Converter, argument, tensor_type
from .quantized import Grid, grid


@dataclass(frozen=True)
class Experts:
    """The same projection of every expert.

    Attributes:
        codes: [E, N, K·bits/8] uint8.
        scale: [E, N, K/block] float32.
        zero: packed integer zero points [E, N, ⌈K/block·bits/8⌉] uint8, or None for the middle.
        block: inputs that share a scale.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8] | None
    block: int

    def interleaved(self) -> Experts:
        """Rows of the two halves by turns."""
        return Experts(
            by_turns(self.codes),
            by_turns(self.scale),
            None if self.zero is None else by_turns(self.zero),
            self.block,
        )

    def in_blocks(self, block: int) -> Experts:
        """The same numbers in smaller blocks; packed zero points stay as they are."""
        return Experts(self.codes, np.repeat(self.scale, self.block // block, axis=2), self.zero, block)


def by_turns(rows: NDArray[Any]) -> NDArray[Any]:
    """[E, 2·N, ...] with the first and the second half's rows by turns."""
    halves = rows.reshape(rows.shape[0], 2, -1, *rows.shape[2:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def qmoe(c: Converter, node: Node) -> bool:
    """Write the operator where it fits; whether it did."""
    bits, act = cast("int", node.kwargs["bits"]), _activation(node)
    exact = bits == 4 or c.options.accuracy_level == 4  # of 8 bits there is no product with float activations
    if (
        not (c.options.microsoft and c.options.experts)
        or act is None
        or not exact
        or not _every_id_fits(c, node)
    ):
        return False
    first, second = (experts_of(c, node.args[i : i + 3], bits) for i in (3, 6))
    if first is None or second is None:
        return False
    block = min(first.block, second.block)
    apart = act["activation_type"] == "swiglu" and not node.kwargs.get("interleaved")
    if not all(it.block == block or it.zero is None for it in (first, second)):
        return False
    first = first.interleaved() if apart else first
    _write(c, node, (first.in_blocks(block), second.in_blocks(block)), act, apart)
    return True


def _every_id_fits(c: Converter, node: Node) -> bool:
    """Whether both projections have as many experts: with fewer in one, some ids mean no expert."""
    return int(_shape(c, node.args[3])[0]) == int(_shape(c, node.args[6])[0])


def _shape(c: Converter, arg: Arg) -> Any:
    return tensor_type(arg, c.program).shape


def _activation(node: Node) -> dict[str, Any] | None:
    """The operator's attributes for what is between the projections, or None."""
    kind, alpha, limit = node.kwargs["kind"], node.kwargs.get("alpha"), node.kwargs.get("limit")
    if not node.kwargs.get("gated", True):
        return {"activation_type": kind} if kind in ("relu", "silu") else None
    if kind != "silu" and alpha is None:
        return None
    return {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0 if alpha is None else float(cast("float", alpha)),
        "activation_beta": float(cast("float", node.kwargs.get("up_offset") or 0.0)),
        "swiglu_limit": None if limit is None else float(cast("float", limit)),
    }


def experts_of(c: Converter, args: tuple[Arg, ...], bits: int) -> Experts | None:
    """A packed projection of all experts; None when a zero point is no integer of its bits."""
    if not all(it is None or isinstance(it, WeightRef) for it in args):
        return None
    packed, scale, minimum = (None if it is None else c.read(cast("WeightRef", it).name) for it in args)
    assert packed is not None and scale is not None, "only the minimum may be missing"
    grids = [
        grid(packed[e], scale[e], None if minimum is None else minimum[e], bits) for e in range(len(packed))
    ]
    zero = None if minimum is None else _integers(grids, bits)
    if minimum is not None and zero is None:
        return None
    return Experts(
        np.stack([it.codes for it in grids]), np.stack([it.scale for it in grids]), zero, grids[0].block
    )


def _integers(grids: list[Grid], bits: int) -> NDArray[np.uint8] | None:
    """Zero points packed along the blocks, low bits first."""
    given = np.stack([cast("NDArray[np.float32]", it.zero) for it in grids])
    whole = np.rint(given)
    if np.abs(given - whole).max() > 1e-4 or whole.min() < 0 or whole.max() >= 1 << bits:
        return None
    codes = whole.astype(np.uint8)
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    pairs: NDArray[np.uint8] = np.bitwise_or(codes[..., 0::2], codes[..., 1::2] << 4, dtype=np.uint8)
    return pairs


def _write(
    c: Converter, node: Node, sides: tuple[Experts, Experts], act: dict[str, Any], apart: bool
) -> None:
    """The operator.

    Args:
        apart: the graph's gate and up are one behind the other.
    """
    x, chosen, weights = (c.name(it) for it in node.args[:3])
    count, slots = len(sides[0].codes), cast("int", _shape(c, node.args[1])[1])
    size = c.sizes([_shape(c, node.args[1])[0], count])
    blank = c.emit("Expand", c.constant(0, "f32"), size)
    ones = c.emit("Expand", c.constant(1, "f32"), c.emit("Shape", chosen))
    scores, mixed = (c.emit("ScatterElements", blank, chosen, it, axis=1) for it in (ones, weights))
    stored = [
        [c.writer.tensor(f"{name}.blob", side.codes), c.writer.tensor(f"{name}.scales", side.scale)]
        for side, name in zip(sides, _names(node), strict=True)
    ]
    biases = [
        _bias(c, argument(node, 9, "gate_up_bias"), apart),
        _bias(c, argument(node, 10, "down_bias"), False),
    ]
    zeros = [
        None if side.zero is None else c.writer.tensor(f"{name}.zeros", side.zero)
        for side, name in zip(sides, _names(node), strict=True)
    ]
    made = c.microsoft(
        "QMoE", x, scores, *stored[0], biases[0], *stored[1], biases[1], None, None, None, *zeros, None,
        mixed, k=slots, normalize_routing_weights=0, expert_weight_bits=node.kwargs["bits"],
        block_size=sides[0].block, weights_prepacked=0, accuracy_level=c.options.accuracy_level, **act,
    )  # fmt: skip
    c.bind(node.results[0], made)


def _names(node: Node) -> tuple[str, str]:
    return cast("WeightRef", node.args[3]).name, cast("WeightRef", node.args[6]).name


def _bias(c: Converter, bias: Arg, apart: bool) -> str | None:
    """[E, N] float32."""
    if bias is None:
        return None
    name = cast("WeightRef", bias).name
    values = c.read(name).astype(np.float32)
    return c.writer.tensor(f"{name}.experts", by_turns(values) if apart else values)

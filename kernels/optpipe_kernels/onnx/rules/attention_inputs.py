"""What both forms of attention are given: rotated heads, rows and columns, what is added to scores."""

from __future__ import annotations

from typing import cast

import numpy as np

from optpipe.program.program import Node, Value

from ..converter import Converter, argument
from ..rotary import Turned
from .table import sizes_of

UNSEEN = float(np.finfo(np.float32).min) / 4  # several of them still add up to a number


def turn_now(c: Converter, value: Value) -> None:
    """A rotation that was left to attention is done now."""
    if value.name in c.turned and value.name not in c.rows:
        c.bind_rows(value, turn(c, c.turned[value.name]))


def turn(c: Converter, turned: Turned) -> str:
    """The rotation as an operator of its own, from tables: [batch, sequence, heads · width]."""
    heads, width = sizes_of(turned.x)
    rows = c.row_name(turned.x)
    partial = turned.tables.width if turned.tables.width != width else 0
    where = c.shared["position_rows"]
    cos, sin = turned.tables.cos, turned.tables.sin
    if c.options.microsoft:
        made = c.microsoft(
            "RotaryEmbedding", rows, where, cos, sin, num_heads=heads, rotary_embedding_dim=partial,
            interleaved=int(turned.interleaved),
        )  # fmt: skip
    else:
        made = c.emit(
            "RotaryEmbedding", rows, cos, sin, where, num_heads=heads, rotary_embedding_dim=partial,
            interleaved=int(turned.interleaved),
        )  # fmt: skip
    return str(made)


def padded_rows(c: Converter, value: Value, width: int) -> str:
    """[T, H, D] as [batch, sequence, H · width], every head with zeros behind it where D < width."""
    heads, own = sizes_of(value)
    turn_now(c, value)
    if own == width:
        return c.row_name(value)
    wide = c.emit("Pad", c.name(value), c.constant([0, 0, 0, 0, 0, width - own]))
    return c.as_rows(wide, heads * width)


def key_bias(c: Converter, node: Node, *, causal: bool = False) -> str | None:
    """What is added to the scores, [batch, heads or 1, sequence, total], or None.

    Slopes by distance; what lies in another chunk is out of sight. With ``causal`` also what lies behind the
    query or outside its window, which operators that know positions see to themselves.
    """
    alibi, chunk = argument(node, 7, "alibi"), node.kwargs.get("chunk")
    window = node.kwargs.get("window") if causal else None
    key = f"bias {alibi} {chunk} {window} {causal}"
    if key not in c.shared:
        parts = _bias_parts(c, alibi, chunk, window, causal)
        for extra in parts[1:]:
            parts[0] = c.emit("Add", parts[0], extra)
        c.shared[key] = parts[0] if parts else ""
    return c.shared[key] or None


def _bias_parts(c: Converter, alibi: object, chunk: object, window: object, causal: bool) -> list[str]:
    if alibi is None and chunk is None and not causal:
        return []
    queries = c.emit("Unsqueeze", c.shared["position_rows"], c.constant([1, 3]))  # [batch, 1, sequence, 1]
    keys = c.shared["key_positions"]  # [total]
    distance = c.emit("Sub", keys, queries)  # negative before the query
    seen: list[str] = []
    if causal:
        seen.append(c.emit("LessOrEqual", distance, c.constant(0)))
    if window is not None:
        seen.append(c.emit("Greater", distance, c.constant(-cast("int", window))))
    if chunk is not None:
        size = c.constant(chunk)
        seen.append(c.emit("Equal", c.emit("Div", keys, size), c.emit("Div", queries, size)))
    for extra in seen[1:]:
        seen[0] = c.emit("And", seen[0], extra)
    parts = []
    if seen:
        parts.append(c.emit("Where", seen[0], c.constant(0, "f32"), c.constant(UNSEEN, "f32")))
    if alibi is not None:
        slopes = c.reshape(c.name(cast("Value", alibi)), [1, -1, 1, 1])
        parts.append(c.emit("Mul", c.emit("Cast", distance, to=1), slopes))
    return parts

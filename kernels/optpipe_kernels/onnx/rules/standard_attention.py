"""Attention by operators of the standard alone: ``TensorScatter`` into the cache, then ``Attention``.

Which keys a query sees is said by a mask made from positions, so the model needs no other input.
``Attention`` knows no sinks, and runtimes differ on whether it caps scores before or after the mask: with
either, the scores are computed one operator at a time.
"""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Node, Value

from ..converter import Converter, argument, head_width
from .attention_inputs import key_bias, padded_rows
from .table import sizes_of


def standard_attention(c: Converter, node: Node, k: Value, v: Value, layer: str) -> str:
    """Write and attend: [T, H, Dv]."""
    q = cast("Value", node.args[0])
    wide = head_width(c.program, cast("Value", node.args[1]))
    heads = sizes_of(q)[0]
    cache = cast("Value", node.args[1]).name
    keys, values = (f"present.{layer}.{it}" for it in ("key", "value"))
    if cache not in c.present:  # else another layer has written it
        for value, name in ((k, "key"), (v, "value")):
            _write(c, value, wide, f"{layer}.{name}")
        c.present.add(cache)
    queries = _by_head(c, q, wide)
    mask = key_bias(c, node, causal=True)
    scale = float(cast("float", node.kwargs["scale"]))
    if argument(node, 6, "sinks") is None and node.kwargs.get("softcap") is None:
        out = c.emit("Attention", queries, keys, values, mask, scale=scale)
    else:
        out = _piecewise(c, node, (queries, keys, values, cast("str", mask)), heads, sizes_of(k)[0], wide)
    out = c.reshape(c.emit("Transpose", out, perm=[0, 2, 1, 3]), [-1, heads, wide])
    v_width = sizes_of(v)[1]
    if v_width != wide:
        out = c.emit("Slice", out, c.constant([0]), c.constant([v_width]), c.constant([2]))
    return cast("str", out)


def _by_head(c: Converter, value: Value, wide: int) -> str:
    """[T, H, D] as [batch, H, sequence, wide]."""
    heads = sizes_of(value)[0]
    rows = c.emit("Reshape", padded_rows(c, value, wide), c.constant([0, 0, heads, wide]))
    return cast("str", c.emit("Transpose", rows, perm=[0, 2, 1, 3]))


def _write(c: Converter, value: Value, wide: int, which: str) -> None:
    """The cache with this step's heads at their positions."""
    update = _by_head(c, value, wide)
    c.writer.node(
        "TensorScatter",
        [f"past_key_values.{which}", update, c.shared["write_indices"]],
        path=c.path,
        outputs=[f"present.{which}"],
        axis=2,
    )


def _piecewise(
    c: Converter, node: Node, names: tuple[str, str, str, str], heads: int, kv_heads: int, wide: int
) -> str:
    """softmax(cap(scale · q · k) + mask and the sinks) · v, a KV head's queries folded into rows."""
    queries, keys, values, mask = names
    scale = c.constant(node.kwargs["scale"], "f32")
    folded = c.emit("Reshape", c.emit("Mul", queries, scale), c.constant([0, kv_heads, -1, wide]))
    score = c.emit("MatMul", folded, c.emit("Transpose", keys, perm=[0, 1, 3, 2]))
    total = c.emit("Shape", c.shared["key_positions"])
    apart = [c.emit("Shape", queries, start=0, end=1), c.constant([heads, -1]), total]
    score = c.emit("Reshape", score, c.emit("Concat", *apart, axis=0))
    if (softcap := node.kwargs.get("softcap")) is not None:
        cap = c.constant(softcap, "f32")
        score = c.emit("Mul", c.emit("Tanh", c.emit("Div", score, cap)), cap)
    score = c.emit("Add", score, mask)
    sinks = argument(node, 6, "sinks")
    if sinks is not None:
        sink = c.reshape(c.name(sinks), [1, heads, 1, 1])
        column = c.emit("Slice", score, c.constant([0]), c.constant([1]), c.constant([3]))
        column = c.emit("Add", c.emit("Mul", column, c.constant(0, "f32")), sink)
        score = c.emit("Concat", score, column, axis=3)
    weight = c.emit("Softmax", score, axis=-1)
    if sinks is not None:
        weight = c.emit("Slice", weight, c.constant([0]), c.constant([-1]), c.constant([3]))
    grouped = c.emit("Concat", apart[0], c.constant([kv_heads, -1]), total, axis=0)
    out = c.emit("MatMul", c.emit("Reshape", weight, grouped), values)
    return cast("str", c.emit("Reshape", out, c.constant([0, heads, -1, wide])))

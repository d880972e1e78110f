"""Attention over a cache: ``GroupQueryAttention``, with the rotary embedding and the cache's update inside.

The Program's tokens are rows and columns here, [batch, sequence], and its block table is a buffer a sequence,
[batch, heads, positions, width], which the caller owns.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from optpipe.program.program import Node, Value

from ..converter import Converter, UnmappedError, argument, head_width
from ..rotary import Turned, rotary_tables
from .table import maps

_ROTATED_MULTIPLE = 16  # of a head's width, and of its rotated part, where it rotates too


@maps("optpipe.rope")
def rope(c: Converter, node: Node) -> None:
    """Left to the attention behind it when nobody else looks at the result."""
    cos, sin = cast("Value", node.args[1]), cast("Value", node.args[2])
    interleaved = bool(node.kwargs.get("interleaved"))
    tables = rotary_tables(c, cos, sin, interleaved)
    x = cast("Value", node.args[0])
    if tables is None:
        c.bind(node.results[0], _turn(c, c.name(x), c.name(cos), c.name(sin), x, interleaved))
        return
    turned = Turned(x, tables, interleaved)
    c.turned[node.results[0].name] = turned
    if not all(it.op in ("optpipe.kv_write", "optpipe.paged_attention") for it in c.users(node.results[0])):
        c.bind(node.results[0], turn(c, turned))


def turn(c: Converter, turned: Turned) -> str:
    """The rotation as an operator of its own, from tables."""
    _, heads, width = (int(cast("int", it)) if i else 0 for i, it in enumerate(turned.x.type.shape))
    rows = _rows(c, c.name(turned.x), heads * width)
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
    return c.reshape(made, [-1, heads, width])


def _turn(c: Converter, x: str, cos: str, sin: str, value: Value, interleaved: bool) -> str:
    raise UnmappedError("A rotary embedding that depends on more than the position has no mapping.")


@maps("optpipe.kv_write")
def kv_write(c: Converter, node: Node) -> None:
    """Left to the attention that reads the cache."""
    cache = cast("Value", node.args[2])
    c.written[cache.name] = (cast("Value", node.args[0]), cast("Value", node.args[1]))


@maps("optpipe.paged_attention")
def paged_attention(c: Converter, node: Node) -> None:
    """Write, rotate and attend in one operator."""
    q, cache = cast("Value", node.args[0]), cast("Value", node.args[1])
    if cache.name not in c.written:
        raise UnmappedError("A layer that reads another layer's cache has no mapping.")
    k, v = c.written.pop(cache.name)
    heads, width = (int(cast("int", it)) for it in q.type.shape[1:])
    kv_heads, v_width = (int(cast("int", it)) for it in v.type.shape[1:])
    wide = head_width(c.program, cache)
    fused = _rotation(c, q, k)
    tables = fused.tables if fused is not None else None
    inputs = [
        _packed_heads(c, _source(c, value, fused), size, (own, wide))
        for value, size, own in ((q, heads, width), (k, kv_heads, width), (v, kv_heads, v_width))
    ]
    layer = cache.name.rpartition(".")[2]
    past = [f"past_key_values.{layer}.{it}" for it in ("key", "value")]
    window, softcap = node.kwargs.get("window"), node.kwargs.get("softcap")
    sinks = argument(node, 6, "sinks")
    made = c.writer.node(
        "GroupQueryAttention",
        [
            *inputs, *past, c.shared["seqlens_k"], c.shared["total_sequence_length"],
            tables.cos if tables else None, tables.sin if tables else None, None, _bias(c, node),
            None if sinks is None else c.name(sinks), None, None, None, None, c.shared.get("query_seqlens"),
        ],
        path=c.path,
        outputs=[c.writer.fresh(c.path, "attention"), f"present.{layer}.key", f"present.{layer}.value"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=float(cast("float", node.kwargs["scale"])),
        local_window_size=-1 if window is None else int(cast("int", window)),
        softcap=None if softcap is None else float(cast("float", softcap)),
        do_rotary=int(fused is not None),
        rotary_interleaved=int(fused is not None and fused.interleaved),
    )  # fmt: skip
    out = c.reshape(made[0], [-1, heads, wide])
    if v_width != wide:
        out = c.emit("Slice", out, c.constant([0]), c.constant([v_width]), c.constant([2]))
    c.bind(node.results[0], out)


def _rotation(c: Converter, q: Value, k: Value) -> Turned | None:
    """The rotation that queries and keys share, to be done inside."""
    first, second = c.turned.get(q.name), c.turned.get(k.name)
    if first is None or second is None:
        return None
    same = first.tables == second.tables and first.interleaved == second.interleaved
    width = int(cast("int", q.type.shape[2]))
    fits = width % _ROTATED_MULTIPLE == 0 and first.tables.width % _ROTATED_MULTIPLE == 0
    return first if same and fits else None


def _source(c: Converter, value: Value, fused: Turned | None) -> str:
    """What goes in: the value before its rotation when that is done inside."""
    turned = c.turned.get(value.name)
    if turned is None:
        return c.name(value)
    if fused is not None:
        return c.name(turned.x)
    if value.name not in c.names:
        c.bind(value, turn(c, turned))
    return c.name(value)


def _packed_heads(c: Converter, name: str, heads: int, widths: tuple[int, int]) -> str:
    """[T, H, D] as [batch, sequence, H · D], the heads padded with zeros to the cache's width."""
    width, wanted = widths
    if width != wanted:
        name = c.emit("Pad", name, c.constant([0, 0, 0, 0, 0, wanted - width]))
    return _rows(c, name, heads * wanted)


def _rows(c: Converter, name: str, width: int) -> str:
    """Tokens as rows and columns."""
    shape = f"rows of {width}"
    if shape not in c.shared:
        c.shared[shape] = c.writer.node(
            "Concat", [c.shared["batch_and_sequence"], c.constant([width])], path="step", axis=0
        )[0]
    made: str = c.emit("Reshape", name, c.shared[shape])
    return made


def _bias(c: Converter, node: Node) -> str | None:
    """What is added to the scores: slopes by distance, and what lies in another chunk out of sight."""
    alibi, chunk = argument(node, 7, "alibi"), node.kwargs.get("chunk")
    if alibi is None and chunk is None:
        return None
    key = f"bias of {alibi} {chunk}"
    if key in c.shared:
        return c.shared[key]
    keys = c.emit("Cast", c.shared["key_positions"], to=1)  # [total]
    queries = c.emit("Cast", c.shared["position_rows"], to=1)
    queries = c.emit("Unsqueeze", queries, c.constant([1, 3]))  # [batch, 1, sequence, 1]
    parts = []
    if alibi is not None:
        slopes = c.reshape(c.name(alibi), [1, -1, 1, 1])
        parts.append(c.emit("Mul", c.emit("Sub", keys, queries), slopes))
    if chunk is not None:
        size = c.constant(float(cast("int", chunk)), "f32")
        chunks = [c.emit("Floor", c.emit("Div", it, size)) for it in (keys, queries)]
        same = c.emit("Equal", *chunks)
        seen, unseen = c.constant(0, "f32"), c.constant(np.finfo(np.float32).min, "f32")
        parts.append(c.emit("Where", same, seen, unseen))
    made: Any = parts[0] if len(parts) == 1 else c.emit("Add", *parts)
    c.shared[key] = made
    return cast("str", made)

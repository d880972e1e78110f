"""Attention over a cache: ``GroupQueryAttention``, with the rotary embedding and the cache's update inside.

The Program's tokens are rows and columns here, [batch, sequence], and its block table is a buffer a sequence,
[batch, heads, positions, width], which the caller owns.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from optpipe.program.program import Node, Value

from ..converter import Converter, UnmappedError, argument, head_width
from ..model import element_type
from ..rotary import Turned, rotary_tables
from .attention_inputs import key_bias, padded_rows, turn_now
from .dialect import epsilon, norm_weight
from .projections import packed
from .standard_attention import standard_attention
from .table import maps, sizes_of

_ROTATED_MULTIPLE = 16  # of a head's width, and of its rotated part, where it rotates too


@maps("optpipe.rope")
def rope(c: Converter, node: Node) -> None:
    """Left to the attention behind it when nobody else looks at the result."""
    cos, sin = cast("Value", node.args[1]), cast("Value", node.args[2])
    interleaved = bool(node.kwargs.get("interleaved"))
    tables = rotary_tables(c, cos, sin, interleaved)
    x = cast("Value", node.args[0])
    if tables is None:
        raise UnmappedError("A rotary embedding that depends on more than the position has no mapping.")
    turned = Turned(x, tables, interleaved)
    c.turned[node.results[0].name] = turned
    if not all(it.op in ("optpipe.kv_write", "optpipe.paged_attention") for it in c.users(node.results[0])):
        turn_now(c, node.results[0])


@maps("optpipe.kv_write")
def kv_write(c: Converter, node: Node) -> None:
    """Left to the attention that reads the cache."""
    cache = cast("Value", node.args[2])
    c.written[cache.name] = (cast("Value", node.args[0]), cast("Value", node.args[1]))


@maps("optpipe.paged_attention")
def paged_attention(c: Converter, node: Node) -> None:
    """The cache's update and attention over it.

    A layer that reads what another has written in this step is given the same keys and values again.
    """
    cache = cast("Value", node.args[1])
    if cache.name not in c.written:
        raise UnmappedError("A layer that reads a cache before anything is written has no mapping.")
    k, v = c.written[cache.name]
    layer = cache.name.rpartition(".")[2]
    if c.options.microsoft:
        _grouped(c, node, k, v, layer)
    else:
        c.bind(node.results[0], standard_attention(c, node, k, v, layer))


def _grouped(c: Converter, node: Node, k: Value, v: Value, layer: str) -> None:
    """Write, rotate and attend in one operator: [T, H, Dv]."""
    q, cache = cast("Value", node.args[0]), cast("Value", node.args[1])
    heads, (kv_heads, v_width) = sizes_of(q)[0], sizes_of(v)
    wide = head_width(c.program, cache)
    fused = _rotation(c, q, k)
    tables = fused.tables if fused is not None else None
    sources = tuple(_source(c, it, fused) for it in (q, k, v))
    norms = _norms(c, sources[0], sources[1]) if sizes_of(q)[1] == wide else None
    if norms is not None:
        sources = (*(cast("Value", it.args[0]) for it in norms), sources[2])
    inputs = _inputs(c, sources, wide)
    past = [f"past_key_values.{layer}.{it}" for it in ("key", "value")]
    present = [f"present.{layer}.{it}" for it in ("key", "value")]
    if cache.name in c.present:
        present = [c.writer.fresh(c.path, it) for it in ("key", "value")]
    c.present.add(cache.name)
    window, softcap = node.kwargs.get("window"), node.kwargs.get("softcap")
    sinks = argument(node, 6, "sinks")
    made = c.writer.node(
        "GroupQueryAttention",
        [
            *(c.halved(it) for it in inputs), *past, c.shared["seqlens_k"], c.shared["total_sequence_length"],
            c.halved(tables.cos) if tables else None, c.halved(tables.sin) if tables else None, None,
            c.halved(key_bias(c, node)), None if sinks is None else c.halved(c.name(sinks)),
            None, None, *_norm_weights(c, norms), c.shared.get("query_seqlens"),
        ],
        path=c.path,
        outputs=[c.writer.fresh(c.path, "attention"), *present],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=float(cast("float", node.kwargs["scale"])),
        local_window_size=-1 if window is None else int(cast("int", window)),
        softcap=None if softcap is None else float(cast("float", softcap)),
        do_rotary=int(fused is not None),
        rotary_interleaved=int(fused is not None and fused.interleaved),
        qk_norm_epsilon=None if norms is None else epsilon(norms[0]),
    )  # fmt: skip
    out = c.emit("Cast", made[0], to=element_type(np.float32)) if c.options.half else made[0]
    if v_width == wide:
        c.bind_rows(node.results[0], out)
        return
    apart = c.reshape(out, [-1, heads, wide])
    ends = [c.constant([it]) for it in (0, v_width, 2)]
    c.bind(node.results[0], c.emit("Slice", apart, *ends))


def _rotation(c: Converter, q: Value, k: Value) -> Turned | None:
    """The rotation that queries and keys share, to be done inside."""
    first, second = c.turned.get(q.name), c.turned.get(k.name)
    if first is None or second is None:
        return None
    same = first.tables == second.tables and first.interleaved == second.interleaved
    width = int(cast("int", q.type.shape[2]))
    fits = width % _ROTATED_MULTIPLE == 0 and first.tables.width % _ROTATED_MULTIPLE == 0
    return first if same and fits else None


def _norms(c: Converter, q: Value, k: Value) -> tuple[Node, Node] | None:
    """The norms of queries and keys that are to be done inside."""
    first, second = c.later.get(q.name), c.later.get(k.name)
    if first is None or second is None or {first.op, second.op} != {"optpipe.rms_norm"}:
        return None
    return (first, second) if epsilon(first) == epsilon(second) else None


def _norm_weights(c: Converter, norms: tuple[Node, Node] | None) -> list[str | None]:
    """[D] each, of queries and of keys."""
    return [None, None] if norms is None else [c.halved(norm_weight(c, it, 1)) for it in norms]


def _source(c: Converter, value: Value, fused: Turned | None) -> Value:
    """What goes in: the value before its rotation when that is done inside."""
    turned = c.turned.get(value.name)
    return turned.x if fused is not None and turned is not None else value


def _inputs(c: Converter, values: tuple[Value, ...], wide: int) -> list[str | None]:
    """Queries, keys and values: packed in the first where one product makes them all."""
    if all(sizes_of(it)[1] == wide for it in values) and not any(it.name in c.turned for it in values):
        made = packed(c, values)
        if made is not None:
            return [made, None, None]
    return [padded_rows(c, it, wide) for it in values]

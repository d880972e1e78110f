"""Program → instructions, one node at a time; what no rule takes becomes a segment for torch."""

from __future__ import annotations

from collections.abc import Callable

from optpipe.program.program import Node, Program, Value

from . import aten_rules, dialect_rules  # noqa: F401 - they fill the table
from .builder import Builder, Unsupported, known_dtype, sizes
from .extent import ONE, Extent, Unit
from .instruction import Lowered
from .rules import RULES
from .view import External, View, row_major


def convert(program: Program, quantized_bytes: Callable[[int], int], kv_dtype: str = "f32") -> Lowered:
    """Lower every node.

    Args:
        program: of a paged artifact.
        quantized_bytes: bytes of one token's quantized activations of width K, as the kernels lay them out.
        kv_dtype: what the cache stores.
    """
    builder = Builder(program, quantized_bytes)
    inputs = [
        _input(builder, each.value, kv_dtype if each.kind == "cache" else None) for each in program.inputs
    ]
    for node in program.nodes:
        builder.node = node
        kept = len(builder.steps)
        rule = RULES.get(node.op)
        try:
            if rule is None:
                raise Unsupported(f"{node.op} has no kernel")
            rule(builder, node)
        except Unsupported as reason:
            builder.segment(node, str(reason), kept)
    return builder.finish(inputs)


def _input(builder: Builder, value: Value, kv_dtype: str | None) -> View:
    """Where an input lies. ``query_start`` counts one more than B, which kernels know."""
    external = External("input" if kv_dtype is None else "cache", value.name)
    dtype = kv_dtype or known_dtype(value.type)
    size = (Extent(1, Unit.B),) if value.name == "query_start" else sizes(value.type.shape)
    stride = (Extent(1, Unit.M), ONE) if value.name == "block_tables" else row_major(size)
    assert stride is not None, f"{value} has plain sizes"
    view = View(external, dtype, size, stride)
    builder.bind_input(value, view)
    return view


def nodes_left(lowered: Lowered) -> list[Node]:
    """The nodes that torch has to run."""
    return [segment.node for segment in lowered.segments]

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


def convert(program: Program, quantized_bytes: Callable[[int], int]) -> Lowered:
    """Lower every node.

    Args:
        program: of a paged artifact.
        quantized_bytes: bytes of one token's quantized activations of width K, as the kernels lay them out.
    """
    builder = Builder(program, quantized_bytes)
    inputs = [_input(builder, each.value, each.kind) for each in program.inputs]
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


def _input(builder: Builder, value: Value, kind: str) -> View:
    external = External(kind, value.name)
    dtype = known_dtype(value.type)
    if kind == "cache":
        view = _cache(external, value)
    elif value.name == "query_start":  # [B + 1]: one more than sequences, which kernels know
        view = View(external, dtype, (Extent(1, Unit.B),), (ONE,))
    elif value.name == "block_tables":
        view = View(external, dtype, sizes(value.type.shape), (Extent(1, Unit.M), ONE))
    else:
        size = sizes(value.type.shape)
        stride = row_major(size)
        assert stride is not None, f"{value} has a plain shape"
        view = View(external, dtype, size, stride)
    builder.bind_input(value, view)
    return view


def _cache(external: External, value: Value) -> View:
    """Sizes [P, block, H_kv, D] as the Program has them; how a target lays a block out is its own affair."""
    size = sizes(value.type.shape)
    stride = row_major(size)
    assert stride is not None, f"{value} has a plain shape"
    return View(external, value.type.dtype, size, stride)


def nodes_left(lowered: Lowered) -> list[Node]:
    """The nodes that torch has to run."""
    return [segment.node for segment in lowered.segments]

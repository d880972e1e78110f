"""Program → instructions, one node at a time; what no rule takes becomes a segment for torch."""

from __future__ import annotations

from collections.abc import Callable

from optpipe.errors import ArtifactError
from optpipe.program.program import Node, Program, Value

from . import aten_rules, dialect_rules, view_rules  # noqa: F401 - they fill the table
from .builder import Builder, Unsupported, known_dtype, sizes
from .extent import ONE, Extent, Unit
from .instruction import Lowered
from .rules import RULES
from .view import External, View, row_major


def convert(
    program: Program, quantized_bytes: Callable[[int], int], kv_dtype: str = "f32", *, planes: int = 1
) -> Lowered:
    """Lower every node.

    Args:
        program: of a paged artifact.
        quantized_bytes: bytes of one token's quantized activations of width K, as the kernels lay them out.
        kv_dtype: what the cache stores.
        planes: 2 rounds activations to 15 bits instead of 8: native/src/ops/quantize.h.

    Raises:
        ArtifactError: a node has operands or results that a plan cannot hold.
    """
    builder = Builder(program, quantized_bytes, planes)
    inputs = [
        _input(builder, each.value, kv_dtype if each.kind == "cache" else None) for each in program.inputs
    ]
    for node in program.nodes:
        _lower(builder, node)
    return builder.finish(inputs)


def _lower(builder: Builder, node: Node) -> None:
    """By its rule, with its siblings or without them; else by torch."""
    builder.node = node
    kept = len(builder.steps)
    rule = RULES.get(node.op)
    try:
        if rule is None:
            raise Unsupported(f"{node.op} has no kernel")
        rule(builder, node)
    except Unsupported as reason:
        apart = builder.siblings.part(builder.program, node)
        if apart is None:
            _leave_to_torch(builder, node, str(reason), kept)
            return
        builder.forget(kept)
        for each in (*apart, node):
            _lower(builder, each)


def _leave_to_torch(builder: Builder, node: Node, reason: str, kept: int) -> None:
    builder.forget(kept)
    try:
        builder.segment(node, reason)
    except Unsupported as why:
        raise ArtifactError(
            f"The cpu target cannot run '{node.op}' of '{node.path}': {reason}; torch cannot either: {why}.",
            hint="use --target reference",
        ) from None


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

"""Program → ONNX: what surrounds the graph, then one rule a node."""

from __future__ import annotations

from typing import cast

import numpy as np

from optpipe.program.program import Node, Program

from .converter import Converter, UnmappedError, head_width


def convert(c: Converter) -> None:
    """Write a paged Program's graph.

    Raises:
        UnmappedError: an operation has no mapping; the sentence names it and its module.
    """
    _inputs(c)
    for item in c.program.inputs:
        if item.kind != "cache":
            continue
        kind, _, layer = item.value.name.partition("_cache.")
        heads = cast("int", item.value.type.shape[2])
        name = {"k": "key", "v": "value"}[kind]
        shape: list[int | str] = ["batch", heads, "positions", head_width(c.program, item.value)]
        c.writer.input(f"past_key_values.{layer}.{name}", _cache_dtype(c), shape)
    for node in c.program.nodes:
        convert_node(c, node)
    _outputs(c)


def convert_node(c: Converter, node: Node) -> None:
    """Write one operation.

    Raises:
        UnmappedError: there is no mapping; the sentence names the operation and its module.
    """
    from .rules import RULES
    from .rules.projections import waits

    rule = RULES.get(node.op) or c.plugins.get(node.op)
    where = f" (in '{node.path}')" if node.path else ""
    if rule is None:
        raise UnmappedError(
            f"The operation {node.op}{where} has no mapping to ONNX.",
            hint="a plugin may bring one, by the hook optpipe_onnx_mappings",
        )
    c.path = node.path
    try:
        if waits(c, node):
            c.later[node.results[0].name] = node
        else:
            rule(c, node)
    except UnmappedError as error:
        if node.op in error.message:
            raise
        raise UnmappedError(f"The operation {node.op}{where} cannot be exported: {error.message}") from None


def _inputs(c: Converter) -> None:
    """Rows and columns of tokens, and what attention and the last rows are computed from."""
    w = c.writer
    ids = w.input("input_ids", np.int64, ["batch", "sequence"])
    positions = w.input("position_ids", np.int64, ["batch", "sequence"])
    c.path = "step"
    c.names["input_ids"], c.names["position_ids"] = c.reshape(ids, [-1]), c.reshape(positions, [-1])
    c.shared["position_rows"] = positions
    c.shared["id_rows"] = ids
    c.shared["batch_and_sequence"] = c.emit("Shape", ids)
    if not c.options.microsoft:
        _lengths_of_cache(c)
    elif c.options.rows == "chosen":
        _lengths_given(c)
    else:
        _lengths_of_mask(c)
    if c.options.rows == "chosen":
        c.names["logit_rows"] = w.input("logit_rows", np.int64, ["rows"])
    elif c.options.rows == "last":
        batch, sequence = (
            c.emit("Gather", c.shared["batch_and_sequence"], c.constant(i), axis=0) for i in (0, 1)
        )
        begin = c.emit("Sub", sequence, c.constant(1))
        c.names["logit_rows"] = c.emit("Range", begin, c.emit("Mul", batch, sequence), sequence)


def _lengths_of_mask(c: Converter) -> None:
    """As generators of dense batches say it: a mask [batch, total], ones before zeros."""
    mask = c.writer.input("attention_mask", np.int64, ["batch", "total"])
    lengths = c.emit("ReduceSum", mask, c.constant([1]), keepdims=0)
    c.shared["seqlens_k"] = c.emit("Cast", c.emit("Sub", lengths, c.constant(1)), to=6)
    total = c.emit("Gather", c.emit("Shape", mask), c.constant(1), axis=0)
    c.shared["total_sequence_length"] = c.emit("Cast", total, to=6)
    c.shared["key_positions"] = c.emit("Range", c.constant(0), total, c.constant(1))


def _lengths_of_cache(c: Converter) -> None:
    """Of the standard form: buffers of a fixed length, written from each row's first position on."""
    first = next(item.value for item in c.program.inputs if item.kind == "cache")
    name = f"past_key_values.{first.name.rpartition('.')[2]}.key"
    total = c.emit("Gather", c.emit("Shape", name), c.constant(2), axis=0)
    c.shared["key_positions"] = c.emit("Range", c.constant(0), total, c.constant(1))
    begins = c.emit("Gather", c.shared["position_rows"], c.constant(0), axis=1)
    c.shared["write_indices"] = begins


def _lengths_given(c: Converter) -> None:
    """As the executor over slots says it: each row's length and its number of new tokens."""
    for name in ("seqlens_k", "query_seqlens") if c.options.idle else ("seqlens_k",):
        c.shared[name] = c.writer.input(name, np.int32, ["batch"])
    c.shared["total_sequence_length"] = c.writer.input("total_sequence_length", np.int32, [])
    total = c.emit("Cast", c.shared["total_sequence_length"], to=7)
    c.shared["key_positions"] = c.emit("Range", c.constant(0), total, c.constant(1))


def _outputs(c: Converter) -> None:
    logits = c.program.outputs[0]
    vocabulary = cast("int", logits.type.shape[-1])
    c.path = "step"
    if c.options.rows != "chosen" and logits.name in c.rows:
        c.writer.rename(c.rows[logits.name], "logits")
        _declare_logits(c, vocabulary)
        _present(c)
        return
    name = c.name(logits)
    if c.options.rows == "chosen":
        c.writer.rename(name, "logits")
        c.writer.output("logits", np.float32, ["rows", vocabulary])
        if c.options.argmax:
            c.writer.node("ArgMax", ["logits"], path="step", outputs=["token_ids"], axis=-1, keepdims=0)
            c.writer.output("token_ids", np.int64, ["rows"])
    else:
        if c.options.rows == "all":
            shape = c.emit("Concat", c.shared["batch_and_sequence"], c.constant([vocabulary]), axis=0)
        else:
            shape = c.constant([-1, 1, vocabulary])
        c.writer.node("Reshape", [name, shape], path="step", outputs=["logits"])
        _declare_logits(c, vocabulary)
    _present(c)


def _declare_logits(c: Converter, vocabulary: int) -> None:
    columns = 1 if c.options.rows == "last" else "sequence"
    c.writer.output("logits", np.float32, ["batch", columns, vocabulary])


def _present(c: Converter) -> None:
    """The caches after the step."""
    for item in c.program.inputs:
        if item.kind == "cache":
            kind, _, layer = item.value.name.partition("_cache.")
            shape_: list[int | str] = [
                "batch",
                cast("int", item.value.type.shape[2]),
                "positions_after",
                head_width(c.program, item.value),
            ]
            c.writer.output(f"present.{layer}.{'key' if kind == 'k' else 'value'}", _cache_dtype(c), shape_)


def _cache_dtype(c: Converter) -> type[np.float16] | type[np.float32]:
    return np.float16 if c.options.half else np.float32


def paged(program: Program) -> bool:
    """Whether a Program has a cache that attention reads."""
    return any(it.value.name == "block_tables" for it in program.inputs)

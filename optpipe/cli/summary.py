"""What a Program amounts to: parameters and bytes by part of the model, operations, layers. No torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..program import DTYPE_BYTES, Node, Program, Weight, WeightRef

_LAYER = re.compile(r"(?:^|\.)(?P<number>\d+)(?:\.|$)")

# How many values of the model one stored element holds, by the end of the weight's name.
_PACKED = "weight_packed"
_SIDE_TENSORS = ("weight_scale", "weight_minimum")


def layer_of(path: str) -> int | None:
    """The number of the layer that a module path or weight name belongs to, or None.

    >>> layer_of("model.layers.12.self_attn.q_proj"), layer_of("model.norm")
    (12, None)
    """
    found = _LAYER.search(path)
    return int(found["number"]) if found else None


def layer_nodes(program: Program, layer: int) -> tuple[Node, ...]:
    """The nodes whose module path lies in a layer."""
    return tuple(node for node in program.nodes if layer_of(node.path) == layer)


def summarize(program: Program) -> dict[str, Any]:
    """The figures that ``optpipe inspect`` shows."""
    layers = {layer for node in program.nodes if (layer := layer_of(node.path)) is not None}
    return {
        "inputs": {it.value.name: str(it.value.type) for it in program.inputs if it.kind == "input"},
        "caches": sum(it.kind == "cache" for it in program.inputs),
        "outputs": [str(it.type) for it in program.outputs],
        "symbols": list(program.symbols),
        "layers": len(layers),
        "nodes": len(program.nodes),
        "operations": dict(Counter(node.op for node in program.nodes).most_common()),
        "parts": parts(program),
    }


def parts(program: Program) -> list[dict[str, Any]]:
    """Parameters and stored bytes: of the layers together, and of each part outside them."""
    bits = packed_bits(program.nodes)
    totals: dict[str, dict[str, Any]] = {}
    for weight in program.weights.values():
        part = "layers" if layer_of(weight.name) is not None else weight.name.rsplit(".", 1)[0]
        row = totals.setdefault(part, {"part": part, "parameters": 0, "bytes": 0, "stored": Counter()})
        row["parameters"] += parameters(weight, bits.get(weight.name))
        row["bytes"] += stored_bytes(weight)
        row["stored"][_form(weight, bits.get(weight.name))] += stored_bytes(weight)
    for row in totals.values():
        row["stored"] = [form for form, _ in row["stored"].most_common()]
    return list(totals.values())


def parameters(weight: Weight, bits: int | None) -> int:
    """How many of the model's parameters a weight holds: none for the scales of a quantized one."""
    if weight.name.endswith(_SIDE_TENSORS):
        return 0
    count = _elements(weight)
    return count * (32 // bits) if bits and weight.name.endswith(_PACKED) else count


def stored_bytes(weight: Weight) -> int:
    """The weight's bytes in the artifact."""
    return _elements(weight) * DTYPE_BYTES[weight.stored]


def packed_bits(nodes: Iterable[Node]) -> dict[str, int]:
    """For each packed weight, the bits a value that the operation using it says."""
    found: dict[str, int] = {}
    for node in nodes:
        bits = node.kwargs.get("bits")
        if isinstance(bits, int):
            found |= {arg.name: bits for arg in node.operands() if isinstance(arg, WeightRef)}
    return found


def _elements(weight: Weight) -> int:
    sizes = [size for size in weight.type.shape if isinstance(size, int)]
    assert len(sizes) == len(weight.type.shape), f"{weight = } has a symbolic size"
    return math.prod(sizes)


def _form(weight: Weight, bits: int | None) -> str:
    return f"int{bits}" if bits and weight.name.endswith(_PACKED) else weight.stored

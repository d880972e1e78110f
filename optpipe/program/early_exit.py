"""The Program of a model's first k layers: what feeds the final norm and head is the stream after layer k.

    before    ids → embed → layer 1 → … → layer k → layer k+1 → … → layer L → norm → head
    after     ids → embed → layer 1 → … → layer k ─────────────────────────→ norm → head

Each layer has one ``paged_attention``. The *stream* is what every layer adds to; it is found by what it is,
not by names: a value on every path from ``input_ids`` to the output (caches are followed from write to read)
that is the sum of two others. The last such sum of layer L becomes the sum of what the last one of layer k
adds; what then is of no use goes. Inputs and caches stay, those of the later layers unused, so a step takes
the same arrays and the same blocks as one of the whole Program.

Source: Zhang et al., "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative
Decoding" (2024); Elhoushi et al., "LayerSkip" (2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import ArtifactError, RequestError
from .program import Arg, Node, Program, Value, WeightRef

ATTENTION = "optpipe.paged_attention"
_TOKENS = "input_ids"
_START = ""  # of every path: no value has this name


def num_layers(program: Program) -> int:
    """L, the attentions of a paged Program; 0 when it is not paged."""
    return sum(node.op == ATTENTION for node in program.nodes)


def early_exit(program: Program, layers: int) -> Program:
    """The first ``layers`` layers of ``program`` between its embedding and its head.

    Args:
        program: of a paged artifact.
        layers: k, from 1 to L − 1.

    Raises:
        RequestError: there are not so many layers.
        ArtifactError: no single stream leads from layer k to the head.
    """
    count = num_layers(program)
    if not 1 <= layers < count:
        raise RequestError(
            f"The model has {count} layers, so a part of it has from 1 to {count - 1}, not {layers}."
        )
    sums = _last_sums(program, count)
    for layer in (layers, count):
        if layer not in sums:
            raise ArtifactError(
                f"The model cannot be left after layer {layers} of {count}: "
                f"no single sum leads on from layer {layer}.",
            )
    here, end = sums[layers], sums[count]
    if here.total.type != end.total.type:
        raise ArtifactError(
            f"The model cannot be left after layer {layers} of {count}: its stream is {here.total.type} "
            f"there and {end.total.type} at the end."
        )
    short = replace(end.node, args=(*here.node.args[:2], *end.node.args[2:]))
    return _live(program, [short if node is end.node else node for node in program.nodes])


@dataclass(frozen=True)
class _Sum:
    """An addition whose result is the stream."""

    total: Value
    node: Node


@dataclass(frozen=True)
class _Known:
    """A value that depends on the tokens.

    Attributes:
        via: the nearest value before it that all paths to it go through.
        depth: how many such values there are.
        layer: the last layer whose attention it depends on, from 1; 0 for none.
    """

    via: str
    depth: int
    layer: int


def _last_sums(program: Program, count: int) -> dict[int, _Sum]:
    """For each layer the last sum that everything behind the layer comes through."""
    known, sums = _paths(program)
    found: dict[int, _Sum] = {}
    at = program.outputs[0].name if len(program.outputs) == 1 else _START
    while at != _START and at in known:
        layer = known[at].layer
        if at in sums and layer not in found:  # from the end on, so the first one met is the last
            found[layer] = sums[at]
        at = known[at].via
    return found


def _paths(program: Program) -> tuple[dict[str, _Known], dict[str, _Sum]]:
    """What is known of every value that depends on the tokens, and which of them are sums of two such."""
    caches = {item.value.name for item in program.inputs if item.kind == "cache"}
    known = {_START: _Known(_START, 0, 0), _TOKENS: _Known(_START, 1, 0)}
    sums: dict[str, _Sum] = {}
    layer = 0
    for node in program.nodes:
        layer += node.op == ATTENTION
        reads = [it.name for it in _values(node) if it.name in known]
        if not reads:
            continue
        here = _joined(known, reads, layer if node.op == ATTENTION else 0)
        if not node.results:  # its caches hold now what it was given
            known.update((it.name, here) for it in _values(node) if it.name in caches)
            continue
        known.update((value.name, here) for value in node.results)
        total = _total(node, known)
        if total is not None:
            sums[total.name] = _Sum(total, node)
            for other in node.results:
                if other is not total:  # the norm is of the sum
                    known[other.name] = _Known(total.name, here.depth + 1, here.layer)
    return known, sums


def _joined(known: dict[str, _Known], reads: list[str], layer: int) -> _Known:
    """What is known of a result of ``reads``."""
    via = reads[0]
    for other in reads[1:]:
        while via != other:
            if known[via].depth < known[other].depth:
                via, other = other, via
            via = known[via].via
    return _Known(via, known[via].depth + 1, max(layer, *(known[it].layer for it in reads)))


def _total(node: Node, known: dict[str, _Known]) -> Value | None:
    """The result that is the sum of the node's first two arguments, when both depend on the tokens."""
    first, second = (*node.args, None, None)[:2]
    if not isinstance(first, Value) or not isinstance(second, Value):
        return None
    if first.name not in known or second.name not in known:
        return None
    if node.op == "aten.add.Tensor" and not node.kwargs and len(node.args) == 2:
        return node.results[0]
    return node.results[1] if node.op == "optpipe.add_rms_norm" else None


def _live(program: Program, nodes: list[Node]) -> Program:
    """The nodes that the outputs need, and the weights that these need."""
    needed = {value.name for value in program.outputs}
    caches = {item.value.name for item in program.inputs if item.kind == "cache"}
    kept: list[Node] = []
    for node in reversed(nodes):
        names = [it.name for it in _values(node)]
        gives = [it.name for it in node.results] or [it for it in names if it in caches]
        if needed.isdisjoint(gives):
            continue
        needed.update(names)
        kept.append(node)
    kept.reverse()
    used = {arg.name for node in kept for arg in node.operands() if isinstance(arg, WeightRef)}
    weights = {name: weight for name, weight in program.weights.items() if name in used}
    return Program(program.inputs, weights, tuple(kept), program.outputs)


def _values(node: Node) -> Iterator[Value]:
    arg: Arg
    for arg in node.operands():
        if isinstance(arg, Value):
            yield arg

"""Rules for the operations of the dialect. Each names its kernel's operands in the kernel's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from optpipe.program.program import Arg, Node, WeightRef

from .aten_rules import select
from .builder import Builder, Unsupported
from .extent import Extent
from .recipe import Experts, Joined, Linear, Matrix
from .rules import argument, integer, lowers, number
from .view import View

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh")
"""Kinds by number, from 1; 0 is none. The order of optpipe/dialect/activations.py."""

NO_LIMIT = -1  # of a window or a chunk


@lowers("optpipe.quant_linear", "aten.linear")
def linear(b: Builder, node: Node) -> None:
    """One linear layer, or all that share its input: their results are windows of one buffer."""
    name = node.results[0].name
    if name in b.siblings.silent or name in b.siblings.follower:
        return
    group = b.siblings.joint.get(name, [node])
    recipe = _recipe(b, group)
    kernel, x = _input(b, node, recipe)
    out = b.buffer("f32", (x.size[0], Extent(recipe.rows)))
    _multiply(b, kernel, x, recipe, _biases(b, group, recipe), out)
    begin = 0
    for member, part in zip(group, recipe.parts, strict=True):
        b.bind(member.results[0], out.slice(1, begin, Extent(part.rows)))
        begin += part.rows


@lowers("aten.addmm")
def addmm(b: Builder, node: Node) -> None:
    """bias + x · W with W [K, N] stored inputs first, as GPT-2's Conv1D has it."""
    name, bias = _weight(node, 2), node.args[0]
    if name is None or node.kwargs or not isinstance(bias, WeightRef):
        raise Unsupported("the weight or bias of addmm is computed, or it is scaled")
    inputs, rows = _rows_of(b, name), _columns_of(b, name)
    recipe = Linear((Matrix((name,), rows, True),), inputs, _float_bits(b, name), 0)
    x = b.rows(b.view(node.args[1]), inputs)
    out = b.buffer("f32", (x.size[0], Extent(rows)))
    joined = b.weight(Joined(((bias.name, rows),)), "f32", (Extent(rows),))
    _multiply(b, "linear", x, recipe, joined, out)
    b.bind(node.results[0], out)


@lowers("optpipe.gated_act")
def gated_act(b: Builder, node: Node) -> None:
    """``linear_gated(x, w, bias?, out?, outq?)`` with its layers, else ``gated_act(gate, up, out)``."""
    group, out = b.siblings.gated.get(node.results[0].name), None
    kind = activation(argument(node, 2, "kind"))
    if group is None:
        gate, up = (_last_dense(b, b.view(arg)) for arg in node.args[:2])
        out = b.new(node.results[0].type)
        b.emit("gated_act", [gate, up], [out], (kind,))
    else:
        recipe = replace(_recipe(b, group), gated=True)
        kernel, x = _input(b, group[0], recipe)
        half = recipe.rows // 2
        out = b.buffer("f32", (x.size[0], Extent(half)))
        w = b.packed(recipe)
        ints = (half, recipe.inputs, recipe.bits, recipe.group, int(recipe.minimum), kind)
        b.emit(f"{kernel}_gated", [x, w, _biases(b, group, recipe)], [out, None], ints)
    b.bind(node.results[0], out)


def _recipe(b: Builder, group: list[Node]) -> Linear:
    """The joint weight of linear layers over one input."""
    first = group[0]
    if first.op == "aten.linear":
        names = [_weight(node, 1) for node in group]
        parts = tuple(Matrix((name,), _rows_of(b, name)) for name in names)
        return Linear(parts, _columns_of(b, names[0]), _float_bits(b, names[0]), 0)
    bits = integer(first, 5, "bits")
    grids = [tuple(_weight(node, at) for at in (1, 2, 3)) for node in group]
    parts = tuple(Matrix(names, _rows_of(b, names[0])) for names in grids)
    inputs = _columns_of(b, grids[0][0]) * 32 // bits
    return Linear(parts, inputs, bits, integer(first, 6, "group"), _wide(b, grids))


def _input(b: Builder, node: Node, recipe: Linear) -> tuple[str, View]:
    """The kernel of a linear layer and what it reads: rows, quantized for quantized weights."""
    rows = b.rows(b.view(node.args[0]), recipe.inputs)
    return ("linear", rows) if recipe.group == 0 else ("quant_linear", b.quantized(rows))


def _multiply(b: Builder, kernel: str, x: View, recipe: Linear, bias: View | None, out: View) -> None:
    """``linear(x, w, bias?, residual?, out) | N K bits group minimum``."""
    w = b.packed(recipe)
    ints = (recipe.rows, recipe.inputs, recipe.bits, recipe.group, int(recipe.minimum))
    b.emit(kernel, [x, w, bias, None], [out], ints)


def _biases(b: Builder, group: list[Node], recipe: Linear) -> View | None:
    """The biases of all, zeros where a layer has none; None when none has."""
    names = [_bias_name(node) for node in group]
    if not any(names):
        return None
    parts = tuple((name, part.rows) for name, part in zip(names, recipe.parts, strict=True))
    return b.weight(Joined(parts), "f32", (Extent(recipe.rows),))


def _bias_name(node: Node) -> str | None:
    arg = argument(node, 2 if node.op == "aten.linear" else 4, "bias")
    if arg is not None and not isinstance(arg, WeightRef):
        raise Unsupported("the bias of the linear layer is computed")
    return None if arg is None else arg.name


def _float_bits(b: Builder, name: str | None) -> int:
    assert name is not None, "a float weight has a name"
    return 16 if b.program.weights[name].stored == "bf16" else 32


@lowers("optpipe.quant_embedding")
def quant_embedding(b: Builder, node: Node) -> None:
    """Rows of a table in the linear kernels' packing, so that a tied head shares it."""
    names = tuple(_weight(node, at) for at in (1, 2, 3))
    bits, group = integer(node, 4, "bits"), integer(node, 5, "group")
    rows, inputs = _rows_of(b, names[0]), _columns_of(b, names[0]) * 32 // bits
    recipe = Linear((Matrix(names, rows),), inputs, bits, group, _wide(b, [names]))
    look_up(b, node, recipe, b.view(node.args[0]))


@lowers("aten.embedding")
def embedding(b: Builder, node: Node) -> None:
    """Rows of a float table: a tied head's packed weight, or the table as it is stored."""
    name, ids = _weight(node, 0), b.view(node.args[1])
    if name is not None and name in b.siblings.heads:
        rows, inputs = _rows_of(b, name), _columns_of(b, name)
        look_up(b, node, Linear((Matrix((name,), rows),), inputs, _float_bits(b, name), 0), ids)
        return
    select(b, node, b.stored(node.args[0]), 0, ids)


def look_up(b: Builder, node: Node, recipe: Linear, ids: View) -> None:
    """``embedding(ids, w, out) | V K bits group minimum``."""
    out = b.new(node.results[0].type)
    ints = (recipe.rows, recipe.inputs, recipe.bits, recipe.group, int(recipe.minimum))
    b.emit("embedding", [ids, b.packed(recipe)], [out], ints)
    b.bind(node.results[0], out)


@lowers("optpipe.rms_norm")
def rms_norm(b: Builder, node: Node) -> None:
    """``rms_norm(x, w?, out?, outq?) | unit_offset | eps``."""
    x = b.view(node.args[0])
    out = b.new(node.results[0].type)
    offset = bool(argument(node, 3, "unit_offset", False))
    ints, floats = (int(offset),), (number(argument(node, 2, "eps")),)
    b.emit("rms_norm", [_last_dense(b, x), _optional(b, node, 1, "weight")], [out, None], ints, floats)
    b.bind(node.results[0], out)


@lowers("optpipe.add_rms_norm")
def add_rms_norm(b: Builder, node: Node) -> None:
    """``add_rms_norm(a, b, w?, out?, sum, outq?) | unit_offset | eps``."""
    left, right = (_last_dense(b, b.view(arg)) for arg in node.args[:2])
    out, total = (b.new(value.type) for value in node.results)
    offset = bool(argument(node, 4, "unit_offset", False))
    ints, floats = (int(offset),), (number(argument(node, 3, "eps")),)
    weight = _optional(b, node, 2, "weight")
    b.emit("add_rms_norm", [left, right, weight], [out, total, None], ints, floats)
    b.bind(node.results[0], out)
    b.bind(node.results[1], total)


@lowers("optpipe.layer_norm")
def layer_norm(b: Builder, node: Node) -> None:
    """``layer_norm(x, w?, bias?, out?, outq?) | | eps``; factors of several dimensions come afterwards."""
    x, out = b.view(node.args[0]), b.new(node.results[0].type)
    weight, bias = _optional(b, node, 1, "weight"), _optional(b, node, 2, "bias")
    floats = (number(argument(node, 3, "eps")),)
    inside = [it if it is None or it.rank == 1 else None for it in (weight, bias)]
    if weight is not None and weight.rank > 1:
        inside[1] = None  # the bias is added to the product
    b.emit("layer_norm", [_last_dense(b, x), *inside], [out, None], (), floats)
    for kernel, factor, done in zip(("mul", "add"), (weight, bias), inside, strict=True):
        if factor is not None and done is None:
            spread, scaled = factor.expand(out.size), b.new(node.results[0].type)
            b.emit(kernel, [out, spread], [scaled])
            out = scaled
    b.bind(node.results[0], out)


@lowers("optpipe.rope")
def rope(b: Builder, node: Node) -> None:
    """``rope(x, cos, sin, out) | interleaved``."""
    x, cos, sin = (_last_dense(b, b.view(arg)) for arg in node.args[:3])
    out = b.new(node.results[0].type)
    b.emit("rope", [x, cos, sin], [out], (int(bool(argument(node, 3, "interleaved", False))),))
    b.bind(node.results[0], out)


@lowers("optpipe.kv_write")
def kv_write(b: Builder, node: Node) -> None:
    """``kv_write(k, v, slots, k_cache, v_cache)``."""
    k, v, k_cache, v_cache, slots = (b.view(arg) for arg in node.args)
    b.emit("kv_write", [_last_dense(b, k), _last_dense(b, v), slots], [k_cache, v_cache])


@lowers("optpipe.paged_attention")
def paged_attention(b: Builder, node: Node) -> None:
    """Operands as in the dialect, then out; ``| window chunk | scale softcap``, −1 and 0 for none."""
    q, *rest = (b.view(arg) for arg in node.args[:6])
    out = b.new(node.results[0].type)
    limits = [argument(node, at, name) for at, name in ((9, "window"), (10, "chunk"))]
    ints = [NO_LIMIT if it is None else int(number(it)) for it in limits]
    softcap = argument(node, 11, "softcap")
    floats = (number(argument(node, 8, "scale")), 0.0 if softcap is None else number(softcap))
    reads = [_last_dense(b, q), *rest, _optional(b, node, 6, "sinks"), _optional(b, node, 7, "alibi")]
    b.emit("paged_attention", reads, [out], ints, floats)
    b.bind(node.results[0], out)


@lowers("optpipe.gather_rows")
def gather_rows(b: Builder, node: Node) -> None:
    """``index_select(x, ids, out) | dim``."""
    x, ids = (b.view(arg) for arg in node.args[:2])
    out = b.new(node.results[0].type)
    b.emit("index_select", [x, ids], [out], (0,))
    b.bind(node.results[0], out)


@lowers("optpipe.moe")
def moe(b: Builder, node: Node) -> None:
    """``moe(x, experts, weights, gate_up, down, gate_up_bias?, down_bias?, out)``; see ``_routed``."""
    transposed = bool(argument(node, 10, "transposed", False))
    matrices, stored = [], []
    for at in (3, 4):
        name = _weight(node, at)
        if name is None:
            raise Unsupported("the experts' weights are computed")
        shape = cast("tuple[int, int, int]", b.program.weights[name].type.shape)
        rows, inputs = (shape[2], shape[1]) if transposed else (shape[1], shape[2])
        stored.append(b.program.weights[name].stored)
        matrices.append((Matrix((name,), rows, transposed), shape[0], inputs))
    bits = 16 if stored == ["bf16", "bf16"] else 32
    recipes = [Experts(matrix, count, inputs, bits, 0) for matrix, count, inputs in matrices]
    _routed(b, node, recipes, (5, 6), ("kind", "gated", "interleaved", "", "limit", "alpha", "up_offset"), 7)


@lowers("optpipe.quant_moe")
def quant_moe(b: Builder, node: Node) -> None:
    """As ``moe``, over packed weights."""
    bits, group = integer(node, 11, "bits"), integer(node, 12, "group")
    recipes = []
    for at in (3, 6):
        names = tuple(_weight(node, at + i) for i in range(3))
        count, rows, words = cast("tuple[int, int, int]", b.program.weights[str(names[0])].type.shape)
        recipes.append(
            Experts(Matrix(names, rows), count, words * 32 // bits, bits, group, _wide(b, [names]))
        )
    _routed(b, node, recipes, (9, 10), ("kind", "gated", "interleaved", "limit", "alpha", "up_offset"), 13)


def _routed(
    b: Builder, node: Node, recipes: list[Experts], biases: tuple[int, int], names: tuple[str, ...], at: int
) -> None:
    """``moe … | E K I N bits group minimum kind gated interleaved planes | limit alpha up_offset``.

    Args:
        names: of the keyword arguments, in the order of the schema from place ``at`` on.
    """
    first, second = recipes
    defaults: dict[str, Arg] = {"gated": True, "interleaved": False, "up_offset": 0.0}
    said = {name: argument(node, at + k, name, defaults.get(name)) for k, name in enumerate(names)}
    x, experts, weights = (b.dense(b.view(arg)) for arg in node.args[:3])
    packed = [b.packed(recipe) for recipe in recipes]
    bias = [_optional(b, node, biases[0], "gate_up_bias"), _optional(b, node, biases[1], "down_bias")]
    ints = (
        second.experts, first.inputs, second.inputs, second.matrix.rows, first.bits, first.group,
        int(first.minimum), activation(said["kind"]),
        int(bool(said["gated"])), int(bool(said["interleaved"])), b.planes,
    )  # fmt: skip
    limit = float("inf") if said["limit"] is None else number(said["limit"])
    alpha = 0.0 if said["alpha"] is None else number(said["alpha"])
    out = b.new(node.results[0].type)
    b.emit(
        "moe", [x, experts, weights, *packed, *bias], [out], ints, (limit, alpha, number(said["up_offset"]))
    )
    b.bind(node.results[0], out)


def activation(kind: Arg) -> int:
    """The kernels' number of an activation."""
    if kind not in ACTIVATIONS:
        raise Unsupported(f"the activation {kind} has no kernel")
    return 1 + ACTIVATIONS.index(str(kind))


def _weight(node: Node, index: int) -> str | None:
    arg = node.args[index] if index < len(node.args) else None
    return arg.name if isinstance(arg, WeightRef) else None


def _rows_of(b: Builder, name: str | None) -> int:
    if name is None:
        raise Unsupported("a weight is computed")
    return cast("int", b.program.weights[name].type.shape[0])


def _columns_of(b: Builder, name: str | None) -> int:
    if name is None:
        raise Unsupported("a weight is computed")
    return cast("int", b.program.weights[name].type.shape[1])


def _wide(b: Builder, grids: Sequence[tuple[str | None, ...]]) -> bool:
    """Whether a scale or a minimum is stored as more than float16."""
    names = [name for grid in grids for name in grid[1:] if name is not None]
    return any(b.program.weights[name].stored != "f16" for name in names)


def _optional(b: Builder, node: Node, index: int, name: str) -> View | None:
    arg = argument(node, index, name)
    return None if arg is None else b.dense(b.view(arg))


def _last_dense(b: Builder, view: View) -> View:
    """A view whose last dimension has stride 1, as the kernels ask."""
    return view if view.stride[-1] == Extent(1) else b.dense(view)

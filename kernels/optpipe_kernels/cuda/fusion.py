"""Program → steps, with what one kernel can do together put together. Torch-free.

linear + bias added after it          → linear with a bias
q, k, v of one x; gate and up of one  → one product with the weights one below the other, whose results
                                        are windows of one buffer
rope(q), rope(k), kv_write            → rope_kv_write
gated_act of quantized gate and up    → quant_gate_up
a norm before rows of 8 bits          → one that writes the codes
a norm or a factor of a branch, add_rms_norm → branch_add_rms_norm
one sum or two, layer_norm            → add_layer_norm
a router's softmax, top-k and division → choose_experts
experts stored across or interleaved  → in order, turned when they are loaded
factors and a soft cap behind the head → finish_logits
everything else                       → as it is; ATen operations are left to torch
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from optpipe.errors import ArtifactError
from optpipe.program.program import Arg, Node, Program, Value, WeightRef
from optpipe.program.types import TensorType
from optpipe.targets.protocol import CacheSpec

from ..cpu.lowering.siblings import find_siblings
from .joining import add_layer_norms, finish_logits, gate_up, norm_branches, turn_and_write
from .recipes import Dense, EightBits, Grid, Joined, Plain, Quantized, Rows
from .rounding import round_in_norms
from .routers import arrange_experts, choose_experts
from .steps import Lowered, Operand, Step

_SCORES = "optpipe.paged_attention"  # its weights, sinks and slopes, are added to scores: float32


def lower(program: Program) -> Lowered:
    """Lower a Program.

    Raises:
        ArtifactError: it is not paged.
    """
    spec = cache_spec(program)
    program = _with_biases(program)
    wide = _from_positions(program)
    steps = arrange_experts(choose_experts(list(_steps(program, wide))))
    output = program.outputs[0]
    steps = norm_branches(round_in_norms(gate_up(turn_and_write(steps)), output.name))
    steps = add_layer_norms(steps)
    steps = finish_logits(steps, output)
    names = [each.value.name for each in program.inputs]
    if "logit_rows" not in names:
        output, step = _rows_of(output)
        steps.append(step)
    return Lowered(
        tuple(steps),
        tuple(each.value.name for each in program.inputs if each.kind == "input"),
        tuple(each.value.name for each in program.inputs if each.kind == "cache"),
        output,
        wide,
        spec,
        int(output.type.shape[-1]),
    )


def cache_spec(program: Program) -> CacheSpec:
    """The cache that a paged Program needs.

    Raises:
        ArtifactError: it is not paged.
    """
    shapes = {each.value.name: each.value.type.shape for each in program.inputs if each.kind == "cache"}
    keys = [name for name in shapes if name.startswith("k_cache.")]
    if not keys or all(each.value.name != "block_tables" for each in program.inputs):
        raise ArtifactError(
            "The cuda target runs paged artifacts, and this one is not.",
            hint="optimize it with --passes paged",
        )
    layers = []
    for name in keys:
        values = shapes[name.replace("k_cache", "v_cache")]
        layers.append((int(shapes[name][2]), int(shapes[name][3]), int(values[3])))
    return CacheSpec(int(shapes[keys[0]][1]), tuple(layers))


def _rows_of(output: Value) -> tuple[Value, Step]:
    """The wanted rows of an output that has all of them."""
    rows = Value("logit_rows", TensorType("i64", ("R",)))
    wanted = Value("wanted_logits", TensorType(output.type.dtype, ("R", output.type.shape[-1])))
    return wanted, Step("gather_rows", (output, rows), results=(wanted,))


def _uses(program: Program) -> Counter[str]:
    uses = Counter(arg.name for node in program.nodes for arg in node.operands() if isinstance(arg, Value))
    uses.update(value.name for value in program.outputs)
    return uses


def _with_biases(program: Program) -> Program:
    """The same Program with ``linear(x, w) + bias`` as ``linear(x, w, bias)``."""
    uses, makers = _uses(program), {value.name: node for node in program.nodes for value in node.results}
    taken: dict[int, Node] = {}  # linear → with the bias, and the sum's name
    gone: set[int] = set()
    for node in program.nodes:
        if node.op != "aten.add.Tensor" or node.kwargs:
            continue
        for product, bias in (node.args, node.args[::-1]):
            if not isinstance(product, Value) or not isinstance(bias, WeightRef) or uses[product.name] != 1:
                continue
            maker = makers.get(product.name)
            if maker is None or maker.op != "aten.linear" or len(maker.args) != 2 or maker.kwargs:
                continue
            if program.weights[bias.name].type.shape == product.type.shape[-1:]:
                taken[id(maker)] = replace(maker, args=(*maker.args, bias), results=node.results)
                gone.add(id(node))
    nodes = tuple(taken.get(id(node), node) for node in program.nodes if id(node) not in gone)
    return replace(program, nodes=nodes) if taken else program


def _from_positions(program: Program) -> frozenset[str]:
    """Values that torch computes from the positions and weights alone: the tables of rope."""
    found = {"position_ids"}
    for node in program.nodes:
        reads = [arg.name for arg in node.operands() if isinstance(arg, Value)]
        if reads and node.op.startswith("aten.") and all(name in found for name in reads):
            found.update(value.name for value in node.results)
    return frozenset(found)


@dataclass(frozen=True)
class _Linear:
    """One linear layer of the Program."""

    node: Node
    x: Operand
    weight: str | Grid
    bias: str | None
    rows: int
    bits: int = 0
    group: int = 0
    kind: str = ""  # of rows of 8 bits
    transposed: bool = False


def _steps(program: Program, wide: frozenset[str]) -> Iterator[Step]:
    siblings = find_siblings(program)
    groups: dict[str, list[Node]] = {}  # the first of a group, in order of the Program → all of it
    order = {id(node): place for place, node in enumerate(program.nodes)}
    followers: set[str] = set()
    for group in (*siblings.joint.values(), *(it for it in siblings.gated.values() if len(it) > 1)):
        first, *others = sorted(group, key=lambda node: order[id(node)])
        groups[first.results[0].name] = group
        followers.update(node.results[0].name for node in others)
    for node in program.nodes:
        name = node.results[0].name if node.results else ""
        if name in followers:
            continue
        members = [_linear(program, it) for it in groups.get(name, [node])]
        if all(it is not None for it in members):
            yield _product([it for it in members if it is not None])
        else:
            assert len(members) == 1, f"{name = } has siblings that are no linear layers"
            yield _plain(node, wide)


def _linear(program: Program, node: Node) -> _Linear | None:
    """A node as a linear layer over the artifact's own weights, or None when it is not one."""
    args, rows = node.args, node.results[0].type.shape[-1] if node.results else 0
    if node.op == "aten.linear" and isinstance(args[1], WeightRef):
        bias = args[2] if len(args) > 2 else node.kwargs.get("bias")
        if bias is None or isinstance(bias, WeightRef):
            return _Linear(node, args[0], args[1].name, _name(bias), int(rows))
    if node.op == "aten.addmm" and not node.kwargs and isinstance(args[2], WeightRef):
        bias = args[0]
        if isinstance(bias, WeightRef) and len(program.weights[bias.name].type.shape) == 1:
            return _Linear(node, args[1], args[2].name, bias.name, int(rows), transposed=True)
    if node.op == "optpipe.quant_linear" and isinstance(args[1], WeightRef):
        minimum, bias = (_argument(node, at, name) for at, name in ((3, "minimum"), (4, "bias")))
        scale = args[2]
        if all(it is None or isinstance(it, WeightRef) for it in (scale, minimum, bias)):
            grid = Grid(args[1].name, _name(scale) or "", _name(minimum))
            bits, group = (_integer(_argument(node, at, name)) for at, name in ((5, "bits"), (6, "group")))
            return _Linear(node, args[0], grid, _name(bias), int(rows), bits, group)
    if node.op == "optpipe.row_wise_linear" and isinstance(args[1], WeightRef):
        bias = _argument(node, 3, "bias")
        if isinstance(args[2], WeightRef) and (bias is None or isinstance(bias, WeightRef)):
            grid, kind = Grid(args[1].name, args[2].name), program.weights[args[1].name].stored
            return _Linear(node, args[0], grid, _name(bias), int(rows), kind=kind)
    return None


def _argument(node: Node, at: int, name: str) -> Arg:
    return node.args[at] if len(node.args) > at else node.kwargs.get(name)


def _integer(arg: Arg) -> int:
    assert isinstance(arg, int), f"{arg = } of a linear layer"
    return arg


def _name(arg: Arg) -> str | None:
    return arg.name if isinstance(arg, WeightRef) else None


def _product(members: list[_Linear]) -> Step:
    """One product for linear layers over one input."""
    first = members[0]
    bias = None
    if any(it.bias is not None for it in members):
        bias = Joined(tuple((it.bias, it.rows) for it in members))
    weight: Operand
    if isinstance(first.weight, Grid):
        grids = tuple(it.weight for it in members if isinstance(it.weight, Grid))
        if first.kind:
            weight, kernel = EightBits(grids, first.kind), "row_wise_linear"
        else:
            weight, kernel = Quantized(grids, first.bits, first.group), "quant_linear"
    else:
        names = tuple(it.weight for it in members if isinstance(it.weight, str))
        weight, kernel = Dense(names, first.transposed), "linear"
    windows, begin = [], 0
    for it in members:
        windows.append((begin, begin + it.rows))
        begin += it.rows
    return Step(
        kernel,
        (first.x, weight, bias),
        results=tuple(it.node.results[0] for it in members),
        windows=tuple(windows) if len(members) > 1 else (),
        path=first.node.path,
    )


def _plain(node: Node, wide: frozenset[str]) -> Step:
    """A node as a step of its own."""
    if node.op == "aten.embedding" and isinstance(node.args[0], WeightRef):
        weight = Dense((node.args[0].name,))
        return Step("embedding", (weight, node.args[1]), results=node.results, path=node.path)
    if node.op == "optpipe.quant_embedding" and all(
        it is None or isinstance(it, WeightRef) for it in node.args[1:4]
    ):
        scale, minimum = (_name(_argument(node, at, "minimum")) for at in (2, 3))
        grid = Rows(Grid(_name(node.args[1]) or "", scale or "", minimum))
        return Step("quant_embedding", (node.args[0], grid), node.kwargs, node.results, path=node.path)
    ours = node.op.startswith("optpipe.")
    floats = node.op == _SCORES or (not ours and bool(node.results) and node.results[0].name in wide)
    args = tuple(_weights(arg, floats) for arg in node.args)
    kwargs = {name: _weights(arg, floats) for name, arg in node.kwargs.items()}
    return Step(node.op.removeprefix("optpipe."), args, kwargs, node.results, path=node.path)


def _weights(arg: Arg, wide: bool) -> Operand | tuple[Operand, ...]:
    if isinstance(arg, WeightRef):
        return Plain(arg.name, wide)
    return tuple(_weights(item, wide) for item in arg) if isinstance(arg, tuple) else arg  # type: ignore[misc]

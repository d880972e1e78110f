"""Linear layers that one kernel call can do together, found before any view is made.

q, k, v of one x         → one product with the weights one below the other; q, k, v are windows of it
act(gate·x) · (up·x)     → one product with the rows of gate and up in turn, and no buffer for either half
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from optpipe.program.program import Arg, Node, Program, Value, WeightRef

LINEAR = ("optpipe.quant_linear", "optpipe.row_wise_linear", "aten.linear")
_OWN_TYPE = ("optpipe.row_wise_linear", "aten.linear")  # whose weights are of many types
_HALVES = ("aten.chunk", "aten.split.Tensor", "aten.split_with_sizes")


@dataclass
class Siblings:
    """Which nodes are done together. Nodes are known by their first result's name.

    Attributes:
        joint: the first of a group → all of it, in order.
        follower: the others of a group.
        gated: a ``gated_act`` → its linear layers: gate and up, or one that holds both.
        silent: nodes that a ``gated_act`` does → that one.
        heads: weights of linear layers, which an embedding may share.
    """

    joint: dict[str, list[Node]] = field(default_factory=dict)
    follower: set[str] = field(default_factory=set)
    gated: dict[str, list[Node]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)

    def part(self, program: Program, node: Node) -> list[Node] | None:
        """Have a node and its siblings done one by one, because together they cannot be.

        Returns:
            The nodes that were left to it and come before it, in order; None when it is alone already.
        """
        name = node.results[0].name if node.results else ""
        if name in self.joint:
            self.follower.difference_update(it.results[0].name for it in self.joint.pop(name))
            return []
        if name not in self.gated:
            return None
        del self.gated[name]
        left = [it for it in program.nodes if it.results and self.silent.get(it.results[0].name) == name]
        for it in left:
            del self.silent[it.results[0].name]
        return left


def find_siblings(program: Program) -> Siblings:
    """Look at every linear layer once."""
    found = Siblings()
    makers = {value.name: node for node in program.nodes for value in node.results}
    uses = Counter(arg.name for node in program.nodes for arg in node.operands() if isinstance(arg, Value))
    uses.update(value.name for value in program.outputs)
    for node in program.nodes:
        if node.op == "aten.linear" and isinstance(node.args[1], WeightRef):
            found.heads.add(node.args[1].name)
        if node.op == "optpipe.gated_act":
            _find_gated(found, node, makers, uses)
    groups: dict[tuple[object, ...], list[Node]] = defaultdict(list)
    for node in program.nodes:
        if node.op in LINEAR and node.results[0].name not in found.silent and _plain(node):
            groups[_kind(program, node)].append(node)
    for group in groups.values():
        if len(group) > 1:
            found.joint[group[0].results[0].name] = group
            found.follower.update(node.results[0].name for node in group[1:])
    return found


def _find_gated(found: Siblings, node: Node, makers: dict[str, Node], uses: Counter[str]) -> None:
    gate, up = node.args[:2]
    if not isinstance(gate, Value) or not isinstance(up, Value) or uses[gate.name] != 1 or uses[up.name] != 1:
        return
    first, second = makers.get(gate.name), makers.get(up.name)
    if first is None or second is None:
        return
    name = node.results[0].name
    if first is second and first.op in _HALVES and first.results == (gate, up) and gate.type == up.type:
        whole = first.args[0]
        maker = makers.get(whole.name) if isinstance(whole, Value) else None
        last = first.args[2] if len(first.args) > 2 else first.kwargs.get("dim", 0)
        alone = (
            maker is not None and uses[maker.results[0].name] == 1 and last in (-1, len(gate.type.shape) - 1)
        )
        if maker is not None and alone and maker.op in LINEAR and _plain(maker):
            found.gated[name] = [maker]
            found.silent |= {maker.results[0].name: name, gate.name: name}
        return
    if first.op in LINEAR and first.op == second.op and first is not second and _alike(first, second):
        found.gated[name] = [first, second]
        found.silent |= {gate.name: name, up.name: name}


def _alike(first: Node, second: Node) -> bool:
    return (
        _plain(first)
        and _plain(second)
        and first.args[0] == second.args[0]
        and _grid(first) == _grid(second)
        and first.results[0].type == second.results[0].type
    )


def _kind(program: Program, node: Node) -> tuple[object, ...]:
    stored: Arg = None
    if node.op in _OWN_TYPE:
        weight = node.args[1]
        assert isinstance(weight, WeightRef), f"{weight = } of {node.op}"
        stored = program.weights[weight.name].stored
    return (node.op, node.args[0], stored, _grid(node))


def _grid(node: Node) -> tuple[object, ...]:
    """What must agree for one packing: bits, group, and whether there is a minimum."""
    if node.op in _OWN_TYPE:
        return ()
    return (*node.args[5:], *sorted(node.kwargs.items()), len(node.args) > 3 and node.args[3] is not None)


def _plain(node: Node) -> bool:
    """Whether all of its weights are the artifact's own."""
    bias_at = {"aten.linear": 2, "optpipe.row_wise_linear": 3, "optpipe.quant_linear": 4}[node.op]
    weights = node.args[1:bias_at]
    bias = node.args[bias_at] if len(node.args) > bias_at else None
    return all(it is None or isinstance(it, WeightRef) for it in (*weights, bias)) and weights[0] is not None

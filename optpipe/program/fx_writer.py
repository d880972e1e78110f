"""A Program as an FX graph, its types checked on the way by running every operation on fake tensors."""

from __future__ import annotations

import builtins
import keyword
import operator
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

import optpipe.dialect  # noqa: F401  (declares the ops that a Program may name)

from ..errors import ArtifactError
from .guards import broken_guard
from .ops import DTYPES, argument_name, dtype_name, find_op, gives_one_tensor, why_not_call
from .program import Arg, DType, Expr, Node, Program, Value, WeightRef
from .propagate import Propagator
from .symbols import SizeNodes, Sizes, dim_of
from .types import TensorType

_MEMORY_FORMATS = {
    str(item).removeprefix("torch."): item
    for item in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}


def to_fx(program: Program) -> fx.GraphModule:
    """The graph that ``program`` spells; ``from_fx`` of it is ``program`` again, less the weights not in use.

    Weights are meta tensors under their dotted names. Every node has ``meta["val"]`` (fake tensors of one
    fake mode, symbolic sizes of at least 2) and ``meta["path"]``. A placeholder's target is its name as an
    identifier, ``meta["name"]`` the name itself, ``meta["kind"]`` input or cache. ``gm.meta["symbols"]`` maps
    torch's symbols to the Program's. One output is returned as it is, several as a tuple.

    Raises:
        ArtifactError: an operation is unknown or not allowed, an operation cannot take its operands, or its
            results are not of the types that the Program says.
    """
    return _Builder(program).graph_module()


class _Builder:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.sizes = Sizes(program.symbols)
        self.torch_names = {str(own): name for own, name in self.sizes.symbols.items()}
        self.guards = 0
        self.propagator = Propagator(self.sizes.mode)
        self.graph = fx.Graph()
        self.known: dict[str, fx.Node] = {}
        self.weights: dict[str, fx.Node] = {}
        self.used = _used(program)

    def graph_module(self) -> fx.GraphModule:
        inputs = self.inputs()
        self.size_nodes = SizeNodes(self.graph, inputs, self.sizes)
        for number, node in enumerate(self.program.nodes):
            try:
                self.call(node)
            except ArtifactError as error:
                at = f" of {node.path}" if node.path else ""
                raise ArtifactError(
                    f"Operation {number} ('{node.op}'{at}) does not hold together: {error.message}",
                    hint=error.hint,
                ) from None
        outputs = tuple(self.known[value.name] for value in self.program.outputs)
        output = self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        output.meta.update(val=fx.node.map_arg(output.args[0], lambda node: node.meta["val"]), path="")
        gm = fx.GraphModule(_module_of(self.program, self.weights), self.graph)
        gm.meta["symbols"] = self.torch_names
        return gm

    def inputs(self) -> list[tuple[fx.Node, tuple[int | str, ...]]]:
        taken: set[str] = set()
        made = []
        for item in self.program.inputs:
            node = self.graph.placeholder(_identifier(item.value.name, taken))
            node.meta.update(val=self.fake(item.value.type), path="", kind=item.kind, name=item.value.name)
            self.known[item.value.name] = node
            made.append((node, item.value.type.shape))
        return made

    def fake(self, type_: TensorType) -> torch.Tensor:
        shape = [self.sizes.value(dim) for dim in type_.shape]
        with self.sizes.mode:
            return torch.empty(shape, dtype=DTYPES[type_.dtype])

    def call(self, node: Node) -> None:
        op = find_op(node.op)
        args = [self.argument(arg, argument_name(op, index)) for index, arg in enumerate(node.args)]
        kwargs = {name: self.argument(arg, name) for name, arg in node.kwargs.items()}
        made = self.graph.call_function(op, tuple(args), kwargs)
        if (reason := why_not_call(op, made.args, made.kwargs)) is not None:
            raise ArtifactError(f"The operation '{node.op}' is not allowed in a graph: it {reason}.")
        made.meta.update(val=self.run(op, made), path=node.path)
        self.define(made, node.results, one=gives_one_tensor(op))

    def run(self, op: OpOverload, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
        try:
            value = self.propagator.run(op, args, kwargs)
        except Exception as error:  # whatever torch makes of operands that it cannot take
            raise ArtifactError(f"It cannot take its operands: {_first_line(error)}") from error
        if len(self.sizes.env.guards) > self.guards:
            broken = broken_guard(self.sizes.env, self.guards, self.torch_names)
            self.guards = len(self.sizes.env.guards)
            if broken is not None:
                raise ArtifactError(f"It holds only for some sizes: {broken}.")
        return value

    def define(self, made: fx.Node, results: tuple[Value, ...], *, one: bool) -> None:
        value = made.meta["val"]
        tensors = [value] if one else list(value or ())
        got = ", ".join(str(self.type(tensor)) for tensor in tensors)
        expected = ", ".join(str(result.type) for result in results)
        if got != expected:
            raise ArtifactError(
                f"Its results are {got or 'none'}, where the program says {expected or 'none'}."
            )
        for index, result in enumerate(results):
            if one:
                self.known[result.name] = made
            elif result.name in self.used:
                item = self.graph.call_function(operator.getitem, (made, index))
                item.meta.update(val=tensors[index], path=made.meta["path"])
                self.known[result.name] = item

    def type(self, tensor: torch.Tensor) -> TensorType:
        shape = tuple(dim_of(size, self.sizes.symbols) for size in tensor.shape)
        return TensorType(dtype_name(tensor.dtype), shape)

    def argument(self, arg: Arg, name: str) -> Any:
        """An argument of a node; ``name`` is the operator's own name for it."""
        if isinstance(arg, Value):
            return self.known[arg.name]
        if isinstance(arg, WeightRef):
            return self.weight(arg.name)
        if isinstance(arg, Expr):
            return self.size_nodes.node(arg.text)
        if isinstance(arg, DType):
            return DTYPES[arg.name]
        if isinstance(arg, tuple):
            return [self.argument(item, name) for item in arg]
        if isinstance(arg, str) and name == "memory_format":
            if arg not in _MEMORY_FORMATS:
                raise ArtifactError(f"The memory format '{arg}' is unknown.")
            return _MEMORY_FORMATS[arg]
        return arg

    def weight(self, name: str) -> fx.Node:
        if name not in self.weights:
            node = self.graph.get_attr(name)
            node.meta.update(val=self.fake(self.program.weights[name].type), path="")
            self.weights[name] = node
        return self.weights[name]


def _used(program: Program) -> frozenset[str]:
    """The names of the values that something reads."""
    read = [arg.name for node in program.nodes for arg in node.operands() if isinstance(arg, Value)]
    return frozenset([*read, *(value.name for value in program.outputs)])


def _identifier(name: str, taken: set[str]) -> str:
    """``name`` as an argument name of a Python function, unlike those in ``taken``; adds it there."""
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    if found[0].isdigit() or keyword.iskeyword(found) or hasattr(builtins, found) or found == "self":
        found = f"_{found}"
    while found in taken:
        found += "_"
    taken.add(found)
    return found


def _module_of(program: Program, names: Iterable[str]) -> nn.Module:
    """A module that has every weight, as a tensor on meta, under its dotted name."""
    root = nn.Module()
    for name in names:
        *parents, leaf = name.split(".")
        home = root
        for part in parents:
            child = home._modules.get(part)
            if child is None:
                child = nn.Module()
                _check_free(home, part, name)
                home.add_module(part, child)
            home = child
        _check_free(home, leaf, name)
        type_ = program.weights[name].type
        shape = [int(dim) for dim in type_.shape]
        home.register_buffer(
            leaf, torch.empty(shape, dtype=DTYPES[type_.dtype], device="meta"), persistent=False
        )
    return root


def _check_free(home: nn.Module, part: str, name: str) -> None:
    if hasattr(home, part) or hasattr(fx.GraphModule, part):
        raise ArtifactError(f"The weight '@{name}' cannot be held: '{part}' in its name is taken.")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

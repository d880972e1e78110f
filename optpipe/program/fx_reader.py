"""An FX graph as a Program."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from ..errors import ArtifactError
from .ops import PLACES, SYMBOLIC_OPS, argument_name, dtype_name, op_name, why_not_call
from .program import Arg, DType, Expr, Input, Node, Program, Value, Weight, WeightRef
from .symbols import dim_of, name_symbols
from .types import TensorType


def from_fx(gm: fx.GraphModule, *, stored: Mapping[str, str] | None = None) -> Program:
    """The Program that ``gm`` spells.

    Intermediate values are called %0, %1, … in order; inputs keep their names (``meta["name"]``, else the
    placeholder's target). Arithmetic on sizes is folded into the arguments, ``getitem`` into several results.
    Symbols are named by ``gm.meta["symbols"]`` (``{"s27": "T"}``), else T, B, R, P, M in order of appearance.

    Args:
        gm: every node has ``meta["val"]``, and ``meta["path"]`` where its module is known; weights are
            get_attr nodes; a placeholder with ``meta["kind"] == "cache"`` is a cache.
        stored: the dtype that each weight is stored in, by name; its own where the mapping says nothing.

    Raises:
        ArtifactError: a node is of a kind, or an argument of a type, that a Program cannot hold.
    """
    return _Reader(gm, stored or {}).program()


class _Reader:
    def __init__(self, gm: fx.GraphModule, stored: Mapping[str, str]) -> None:
        self.gm = gm
        self.stored = stored
        sizes = [size for node in gm.graph.nodes if node.op == "placeholder" for size in _tensor(node).shape]
        self.symbols = name_symbols(sizes, gm.meta.get("symbols", {}))
        self.known: dict[fx.Node, Arg] = {}
        self.inputs: list[Input] = []
        self.weights: dict[str, Weight] = {}
        self.nodes: list[Node] = []
        self.outputs: tuple[Value, ...] = ()
        self.count = 0

    def program(self) -> Program:
        for node in self.gm.graph.nodes:
            try:
                self.read(node)
            except ArtifactError as error:
                where = f"at node '{node.name}'" + (
                    f" of {node.meta['path']}" if node.meta.get("path") else ""
                )
                raise ArtifactError(
                    f"The graph cannot be stored, {where}: {error.message}", hint=error.hint
                ) from None
        return Program(tuple(self.inputs), self.weights, tuple(self.nodes), self.outputs)

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            value = Value(str(node.meta.get("name", node.target)), self.type(_tensor(node)))
            self.inputs.append(Input(value, "cache" if node.meta.get("kind") == "cache" else "input"))
            self.known[node] = value
        elif node.op == "get_attr":
            self.known[node] = WeightRef(str(node.target))
        elif node.op == "output":
            self.outputs = self.returned(node.args[0])
        elif node.op != "call_function":
            raise ArtifactError(f"It is of the kind '{node.op}'; only calls of functions are allowed.")
        elif node.target is operator.getitem:
            self.known[node] = self.item(node)
        elif isinstance(node.meta.get("val"), int | torch.SymInt) and node.target in SYMBOLIC_OPS:
            self.known[node] = self.size(node.meta["val"])
        elif isinstance(node.target, OpOverload):
            self.call(node, node.target)
        else:
            raise ArtifactError(
                f"It calls {node.target!r}, which is neither an ATen nor an optpipe operation."
            )

    def call(self, node: fx.Node, op: OpOverload) -> None:
        if (reason := why_not_call(op, node.args, node.kwargs)) is not None:
            raise ArtifactError(f"The operation '{op_name(op)}' is not allowed in a graph: it {reason}.")
        args = []
        for index, arg in enumerate(node.args):
            if argument_name(op, index) in PLACES and arg is not None:
                raise ArtifactError(
                    f"'{op_name(op)}' names a place in its argument '{argument_name(op, index)}'."
                )
            args.append(self.argument(arg))
        kwargs = {k: self.argument(v) for k, v in node.kwargs.items() if not self.is_place(op, k, v)}
        value = node.meta.get("val")
        tensors = [] if value is None else list(value) if isinstance(value, tuple | list) else [value]
        results = tuple(self.result(tensor) for tensor in tensors)
        self.nodes.append(Node(op_name(op), tuple(args), kwargs, results, node.meta.get("path", "")))
        self.known[node] = results if isinstance(value, tuple | list) else results[0] if results else None

    def is_place(self, op: OpOverload, name: str, value: object) -> bool:
        """Whether a named argument says nothing about what is computed.

        Raises:
            ArtifactError: it names a device or a layout.
        """
        if name not in PLACES:
            return False
        if value is None or value is False or value is torch.strided:
            return True
        raise ArtifactError(
            f"'{op_name(op)}' names a place: {name}={value}.", hint="device literals must be removed"
        )

    def item(self, node: fx.Node) -> Arg:
        source, index = node.args
        results = self.known.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(results, tuple) or not isinstance(index, int) or not 0 <= index < len(results):
            raise ArtifactError("It takes an item of something that is no operation with that many results.")
        return results[index]

    def result(self, tensor: Any) -> Value:
        if not isinstance(tensor, torch.Tensor):
            raise ArtifactError(f"A result is of type {type(tensor).__name__}, not a tensor.")
        self.count += 1
        return Value(str(self.count - 1), self.type(tensor))

    def type(self, tensor: torch.Tensor) -> TensorType:
        shape = tuple(dim_of(size, self.symbols) for size in tensor.shape)
        return TensorType(dtype_name(tensor.dtype), shape)

    def size(self, value: int | torch.SymInt) -> Arg:
        dim = dim_of(value, self.symbols)
        return Expr(dim) if isinstance(dim, str) else dim

    def argument(self, arg: Any) -> Arg:
        """An argument of a node as a Program says it."""
        if isinstance(arg, fx.Node):
            known = self.known[arg]
            if isinstance(known, WeightRef):
                self.declare(known.name)
            return known
        if isinstance(arg, tuple | list):
            return tuple(self.argument(item) for item in arg)
        if isinstance(arg, torch.SymInt):
            return self.size(arg)
        if isinstance(arg, torch.dtype):
            return DType(dtype_name(arg))
        if isinstance(arg, torch.memory_format):
            return str(arg).removeprefix("torch.")
        for plain in (bool, int, float, str):  # a subclass (numpy's float64) becomes its plain self
            if isinstance(arg, plain):
                return plain(arg)
        if arg is not None:
            raise ArtifactError(f"An argument is of type {type(arg).__name__}, which a Program cannot hold.")
        return None

    def declare(self, name: str) -> None:
        if name in self.weights:
            return
        tensor: Any = self.gm
        for part in name.split("."):
            tensor = getattr(tensor, part, None)
        if not isinstance(tensor, torch.Tensor):
            raise ArtifactError(f"The graph has no tensor named '{name}'.")
        type_ = self.type(tensor)
        self.weights[name] = Weight(name, type_, self.stored.get(name, type_.dtype))

    def returned(self, outputs: Any) -> tuple[Value, ...]:
        found = [
            self.argument(item) for item in (outputs if isinstance(outputs, tuple | list) else (outputs,))
        ]
        values = tuple(item for item in found if isinstance(item, Value))
        if len(values) != len(found):
            raise ArtifactError("The graph returns something that is no value of an input or an operation.")
        return values


def _tensor(node: fx.Node) -> torch.Tensor:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise ArtifactError(f"The node '{node.name}' has no tensor in its meta['val'].")
    return value

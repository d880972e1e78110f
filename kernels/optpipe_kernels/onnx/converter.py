"""What a rule works with: the model under construction, and what the Program's values are called in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import RequestError
from optpipe.program.program import Arg, Node, Program, Value, WeightRef

from .model import MICROSOFT, ModelWriter, element_type
from .rotary import Tables, Turned

DTYPES: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32,
    "i16": np.int16, "i8": np.int8, "u8": np.uint8, "bool": np.bool_,
}  # fmt: skip

_HEAD_MULTIPLE = 8  # of a head's width: GroupQueryAttention takes no other


class UnmappedError(RequestError):
    """A Program has an operation, or a form of one, that has no mapping to ONNX."""


@dataclass(frozen=True)
class ExportOptions:
    """What form is written.

    Attributes:
        microsoft: use ONNX Runtime's own operators beside the standard ones.
        accuracy_level: of ``MatMulNBits``: 0 keeps float32 activations, 4 rounds them to 8 bits.
        context: positions that tables are made for.
        rows: "last" computes the logits of each row's last token, "all" of every token, "chosen" of
            those that the input ``logit_rows`` names.
        argmax: put out each row's likeliest token too.
        idle: with "chosen" rows, a slot may sit out a run; from ONNX Runtime 1.32 on.
        experts: packed experts are ``QMoE`` where it has their grid; from ONNX Runtime 1.31 on.
        half: attention and its cache are float16, as the CUDA provider takes no other; all else stays
            float32, which models that outgrow float16 need.
        norms: attention normalizes queries and keys itself; the CUDA provider's alone, from 1.32 on.
    """

    microsoft: bool = True
    accuracy_level: int = 0
    context: int = 2048
    rows: str = "last"
    argmax: bool = False
    idle: bool = True
    experts: bool = True
    half: bool = False
    norms: bool = False


@dataclass
class Converter:
    """A Program on its way to ONNX.

    Attributes:
        program: all of it.
        writer: takes nodes and tensors.
        options: the form.
        read: a weight's stored values; bfloat16 widened to float32.
        plugins: mappings that optpipe does not have itself, by operation.
        path: the module of the node that is converted.
        names: what a value of the Program is called, [T, ...].
        rows: what it is called with its tokens in rows and columns, [batch, sequence, ...in one].
        later: nodes that are written when somebody asks for what they make, by that value.
        rotary: tables of cos and sin, by the values of the Program that they stand for.
        turned: rotations that attention may do itself, by the value that they make.
        written: keys and values that ``kv_write`` gave a cache and attention will take.
        present: caches after the step, of those that attention has written.
        shared: what many nodes use, by what it is.
    """

    program: Program
    writer: ModelWriter
    options: ExportOptions
    read: Callable[[str], NDArray[Any]]
    plugins: Mapping[str, Callable[[Converter, Node], None]] = field(default_factory=dict)
    path: str = ""
    names: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    later: dict[str, Node] = field(default_factory=dict)
    rotary: dict[tuple[str, str, bool], Tables | None] = field(default_factory=dict)
    turned: dict[str, Turned] = field(default_factory=dict)
    written: dict[str, tuple[Value, Value]] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    shared: dict[str, str] = field(default_factory=dict)
    _users: dict[str, list[Node]] | None = None

    def emit(
        self, op: str, *inputs: str | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Any:
        """Add a node; the name of its output, or a list of names when it has several."""
        made = self.writer.node(op, inputs, path=self.path, outputs=outputs, domain=domain, **attributes)
        return made[0] if outputs == 1 else made

    def microsoft(self, op: str, *inputs: str | None, outputs: int = 1, **attributes: Any) -> Any:
        """``emit`` for ONNX Runtime's own operators."""
        return self.emit(op, *inputs, outputs=outputs, domain=MICROSOFT, **attributes)

    def name(self, arg: Arg) -> str:
        """What a tensor argument is called in the model: [T, ...]."""
        if isinstance(arg, Value):
            self.demand(arg)
            if arg.name not in self.names:
                sizes = [cast("int", it) for it in arg.type.shape[1:]]
                self.names[arg.name] = self.reshape(self.rows[arg.name], [-1, *sizes])
            return self.names[arg.name]
        if isinstance(arg, WeightRef):
            return self.weight(arg.name)
        raise UnmappedError(f"'{arg}' is no tensor.")

    def operand(self, arg: Arg, like: str) -> str:
        """A tensor, or a number as a constant of dtype ``like``."""
        if isinstance(arg, bool | int | float):
            return self.constant(arg, like)
        return self.name(arg)

    def weight(self, name: str) -> str:
        """An initializer with a weight's values, in the dtype that the graph computes in."""
        if not self.writer.has_tensor(name):
            declared = self.program.weights[name].type.dtype
            self.writer.tensor(name, self.read(name).astype(DTYPES[declared], copy=False))
        return name

    def halved(self, name: str | None) -> str | None:
        """A tensor as attention takes it: float16 where ``half`` says so. Once a tensor."""
        if name is None or not self.options.half:
            return name
        if (key := f"half {name}") not in self.shared:
            self.shared[key] = self.emit("Cast", name, to=element_type(np.float16))
        return self.shared[key]

    def constant(self, values: Any, dtype: str = "i64") -> str:
        """A constant of a Program's dtype."""
        return self.writer.constant(values, DTYPES[dtype])

    def row_name(self, value: Value) -> str:
        """What a value [T, ...] is called as [batch, sequence, ...in one]."""
        self.demand(value)
        if value.name not in self.rows:
            width = math.prod(cast("int", it) for it in value.type.shape[1:])
            self.rows[value.name] = self.as_rows(self.name(value), width)
        return self.rows[value.name]

    def as_rows(self, name: str, width: int) -> str:
        """[T, ...] as [batch, sequence, width]."""
        shape = f"rows of {width}"
        if shape not in self.shared:
            parts = [self.shared["batch_and_sequence"], self.constant([width])]
            self.shared[shape] = self.writer.node("Concat", parts, path="step", axis=0)[0]
        made: str = self.emit("Reshape", name, self.shared[shape])
        return made

    def demand(self, value: Value) -> None:
        """Write a node that was left for later."""
        node = self.later.pop(value.name, None)
        if node is not None:
            from .rules import RULES

            path, self.path = self.path, node.path
            RULES[node.op](self, node)
            self.path = path

    def bind(self, value: Value, name: str) -> None:
        """Say what a value of the Program is called."""
        self.names[value.name] = name

    def bind_rows(self, value: Value, name: str) -> None:
        """Say what it is called with its tokens in rows and columns."""
        self.rows[value.name] = name

    def users(self, value: Value) -> list[Node]:
        """The nodes that take a value."""
        if self._users is None:
            self._users = {}
            for node in self.program.nodes:
                for arg in node.operands():
                    if isinstance(arg, Value):
                        self._users.setdefault(arg.name, []).append(node)
        return self._users.get(value.name, [])

    def shape_of(self, value: Value) -> str:
        """The name of a constant that reshapes to a value's type: at most one size may be symbolic."""
        return self.constant(_sizes(value))

    def sizes(self, shape: Sequence[int | str]) -> str:
        """The name of a shape, [rank] int64; the number of tokens may be among its sizes.

        Raises:
            UnmappedError: a size is another one that is not fixed.
        """
        if all(isinstance(it, int) for it in shape):
            return self.constant(list(shape))
        if any(isinstance(it, str) and it != "T" for it in shape):
            raise UnmappedError(f"A tensor of shape {list(shape)} has no mapping.")
        tokens = self.emit("Shape", self.names.get("input_ids") or self.names["position_ids"])
        made: str = self.emit(
            "Concat", *(tokens if it == "T" else self.constant([it]) for it in shape), axis=0
        )
        return made

    def reshape(self, name: str, sizes: Sequence[int]) -> str:
        """A reshape; one size may be −1."""
        made: str = self.emit("Reshape", name, self.constant(list(sizes)))
        return made


def _sizes(value: Value) -> list[int]:
    sizes = [-1 if isinstance(it, str) else it for it in value.type.shape]
    if sizes.count(-1) > 1:
        raise UnmappedError(f"A reshape to {value.type} has several sizes that are not fixed.")
    return sizes


def argument(node: Node, index: int, name: str, default: Arg = None) -> Arg:
    """An argument by place or by name."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def integer(node: Node, index: int, name: str, default: int | None = None) -> int:
    """An argument that must be a plain integer.

    Raises:
        UnmappedError: it is none, or depends on the number of tokens.
    """
    value = argument(node, index, name, default)
    if not isinstance(value, int):
        raise UnmappedError(f"'{name}' of {node.op} is {value}, which has no mapping.")
    return value


def tensor_type(arg: Arg, program: Program) -> Any:
    """The type of a tensor argument."""
    if isinstance(arg, Value):
        return arg.type
    assert isinstance(arg, WeightRef), f"{arg} is a tensor"
    return program.weights[arg.name].type


def head_width(program: Program, cache: Value) -> int:
    """How wide the heads of a layer's keys and values are in the model's cache: both alike."""
    layer = cache.name.rpartition(".")[2]
    widths = [
        cast("int", it.value.type.shape[3])
        for it in program.inputs
        if it.value.name in (f"k_cache.{layer}", f"v_cache.{layer}")
    ]
    return -(-max(widths) // _HEAD_MULTIPLE) * _HEAD_MULTIPLE

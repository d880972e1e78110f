"""The Program: what an artifact stores and what targets lower. No torch, no code, no tensor data.

A Program is a straight list of operations on named values. Symbolic sizes stand inline in types and
arguments (``T``, ``2*T``); an operation with several results has several names. ``%name`` is a value,
``@name`` a weight, which is a tensor of that name in the artifact's safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

from ..errors import ArtifactError, nearest
from .dims import INT_LIMIT, canonical, symbols_of
from .types import DTYPE_BYTES, TensorType, check_dtype, check_symbols

VALUE_NAME = r"[A-Za-z0-9_.]+"
WEIGHT_NAME = r"[A-Za-z0-9_.\-]+"
OP_NAME = r"[A-Za-z]\w*\.\w+(?:\.\w+)?"
PATH = r"[!-\"$-~]*"  # printable ASCII without the comment sign

MAX_NESTING = 8  # lists within lists; the deepest operator has two

_VALUE_NAME = re.compile(VALUE_NAME, re.ASCII)
_WEIGHT_NAME = re.compile(WEIGHT_NAME, re.ASCII)
_OP_NAME = re.compile(OP_NAME, re.ASCII)
_PATH = re.compile(PATH)
_KEYWORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that an input or a node defines, once. Printed ``%name``."""

    name: str
    type: TensorType

    def __post_init__(self) -> None:
        if not _VALUE_NAME.fullmatch(self.name):
            raise ArtifactError(f"A value cannot be called {self.name!r}: letters, digits, '_' and '.' only.")

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class WeightRef:
    """The weight of that name as an argument. Printed ``@name``."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, slots=True)
class Expr:
    """An integer argument that depends on a symbolic size, in canonical text. Printed bare: ``2*T``."""

    text: str

    def __post_init__(self) -> None:
        dim = canonical(self.text)
        if isinstance(dim, int):
            raise ArtifactError(f"The expression '{self.text}' holds no symbol: it is the integer {dim}.")
        check_symbols(symbols_of(dim))
        object.__setattr__(self, "text", dim)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype as an argument. Printed bare: ``f32``."""

    name: str

    def __post_init__(self) -> None:
        check_dtype(self.name)

    def __str__(self) -> str:
        return self.name


Arg = Value | WeightRef | Expr | DType | int | float | bool | str | None | tuple["Arg", ...]
"""What an operation can be given. A list of the operator's schema is a tuple here."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A named tensor of the artifact.

    Args:
        name: its dotted name, in the graph and in the safetensors.
        type: how the graph computes with it (value dtype and shape).
        stored: the dtype it is stored in; a reader converts on use.
    """

    name: str
    type: TensorType
    stored: str

    def __post_init__(self) -> None:
        check_dtype(self.stored)
        if not _WEIGHT_NAME.fullmatch(self.name) or "" in self.name.split("."):
            raise ArtifactError(
                f"A weight cannot be called {self.name!r}: it must be a dotted parameter name."
            )
        if any(isinstance(dim, str) for dim in self.type.shape):
            raise ArtifactError(
                f"The weight '@{self.name}' has the symbolic shape {self.type}; it must be fixed."
            )

    @property
    def bytes(self) -> int:
        """Bytes of its stored form."""
        total = DTYPE_BYTES[self.stored]
        for dim in self.type.shape:
            total *= int(dim)
        return total


@dataclass(frozen=True, slots=True)
class Input:
    """What a caller passes in: plain data of the step, or a cache that operations write to."""

    value: Value
    kind: Literal["input", "cache"] = "input"

    def __post_init__(self) -> None:
        if self.kind not in ("input", "cache"):
            raise ArtifactError(
                f"The input '{self.value}' is of kind {self.kind!r}; expected 'input' or 'cache'."
            )


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Args:
        op: ``aten.add.Tensor``, ``aten.view`` (the overload ``default`` is left out), ``optpipe.rope``.
        results: what it defines; empty for an operation that only writes to a cache.
        path: the module it came from, ``model.layers.0.self_attn``; may be empty.

    Raises:
        ArtifactError: a name is malformed or an argument is nothing the text can say.
    """

    op: str
    args: tuple[Arg, ...] = ()
    kwargs: dict[str, Arg] = field(default_factory=dict)
    results: tuple[Value, ...] = ()
    path: str = ""

    def __post_init__(self) -> None:
        if not _OP_NAME.fullmatch(self.op) or self.op.endswith(".default"):
            raise ArtifactError(
                f"'{self.op}' is no operation name.", hint="write namespace.name or namespace.name.overload"
            )
        if not _PATH.fullmatch(self.path):
            raise ArtifactError(
                f"The module path {self.path!r} of '{self.op}' must be printable, without spaces or '#'."
            )
        for name in self.kwargs:
            if not _KEYWORD.fullmatch(name):
                raise ArtifactError(f"'{self.op}' has the argument name {name!r}, which is no identifier.")
        for arg in (*self.args, *self.kwargs.values()):
            _check_arg(self.op, arg, 0)

    def operands(self) -> Iterator[Arg]:
        """Every argument that is not a list, in order; lists are looked into."""
        for arg in (*self.args, *self.kwargs.values()):
            yield from _leaves(arg)


_ARG_TYPES = frozenset(
    {Value, WeightRef, Expr, DType, int, float, bool, str, type(None)}
)  # exactly: no subclass


def _check_arg(op: str, arg: Arg, depth: int) -> None:
    kind = type(arg)
    if kind is tuple:
        if depth >= MAX_NESTING:
            raise ArtifactError(f"'{op}' has lists nested deeper than {MAX_NESTING} levels.")
        for item in cast("tuple[Arg, ...]", arg):
            _check_arg(op, item, depth + 1)
    elif kind not in _ARG_TYPES:
        raise ArtifactError(f"'{op}' has an argument of type {kind.__name__}, which a Program cannot hold.")
    elif kind is int and not -INT_LIMIT <= cast("int", arg) < INT_LIMIT:
        raise ArtifactError(f"'{op}' has an integer argument that does not fit in 64 bits.")


def _leaves(arg: Arg) -> Iterator[Arg]:
    if isinstance(arg, tuple):
        for item in arg:
            yield from _leaves(item)
    else:
        yield arg


class Scope:
    """What is defined so far, walking a Program from top to bottom."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.weights: dict[str, Weight] = {}

    def define(self, value: Value) -> None:
        """Add a value.

        Raises:
            ArtifactError: the name is taken.
        """
        if value.name in self.values:
            raise ArtifactError(f"The value '{value}' is defined twice.")
        self.values[value.name] = value

    def declare(self, weight: Weight) -> None:
        """Add a weight.

        Raises:
            ArtifactError: the name is taken.
        """
        if weight.name in self.weights:
            raise ArtifactError(f"The weight '@{weight.name}' is declared twice.")
        self.weights[weight.name] = weight

    def value(self, name: str) -> Value:
        """The value of that name.

        Raises:
            ArtifactError: nothing above defines it.
        """
        if name not in self.values:
            raise ArtifactError(
                f"The value '%{name}' is used before it is defined.", hint=nearest(name, self.values)
            )
        return self.values[name]

    def weight(self, name: str) -> Weight:
        """The weight of that name.

        Raises:
            ArtifactError: it is not declared.
        """
        if name not in self.weights:
            raise ArtifactError(f"The weight '@{name}' is not declared.", hint=nearest(name, self.weights))
        return self.weights[name]

    def check_use(self, arg: Arg) -> None:
        """Raise unless ``arg`` refers to what is defined, as it is defined.

        Raises:
            ArtifactError: it is undefined, or is said to have another type.
        """
        if isinstance(arg, Value):
            if (found := self.value(arg.name)) is not arg and found.type != arg.type:
                raise ArtifactError(
                    f"The value '{arg}' is used as {arg.type} but was defined as {found.type}."
                )
        elif isinstance(arg, WeightRef):
            self.weight(arg.name)


@dataclass(frozen=True)
class Program:
    """A whole graph.

    Args:
        inputs: in the order a caller passes them.
        weights: by name; a weight that no node uses is allowed.
        nodes: in the order they run; each uses only what stands above it.
        outputs: the values that come back.

    Raises:
        ArtifactError: something is used before it is defined, defined twice or not declared.
    """

    inputs: tuple[Input, ...]
    weights: dict[str, Weight]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def __post_init__(self) -> None:
        scope = Scope()
        for item in self.inputs:
            scope.define(item.value)
        for name, weight in self.weights.items():
            if name != weight.name:
                raise ArtifactError(f"The weight '@{weight.name}' is filed under the name '{name}'.")
            scope.declare(weight)
        for node in self.nodes:
            for arg in node.operands():
                scope.check_use(arg)
            for value in node.results:
                scope.define(value)
        for value in self.outputs:
            scope.check_use(value)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbolic size, in order of first use."""
        return tuple(dict.fromkeys(self._symbols()))

    def _symbols(self) -> Iterator[str]:
        for item in self.inputs:
            yield from _symbols_of_type(item.value.type)
        for node in self.nodes:
            for arg in node.operands():
                if isinstance(arg, Expr):
                    yield from symbols_of(arg.text)
            for value in node.results:
                yield from _symbols_of_type(value.type)


def _symbols_of_type(type_: TensorType) -> Iterable[str]:
    for dim in type_.shape:
        if isinstance(dim, str):
            yield from symbols_of(dim)

"""ATen operations that work element by element, and reductions."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Arg, Node

from ..converter import DTYPES, Converter, UnmappedError, argument, integer, tensor_type
from ..model import element_type
from .table import Rule, maps

_BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    "logical_and": "And", "bitwise_and": "And", "logical_or": "Or", "bitwise_or": "Or",
}  # fmt: skip
_UNARY = {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "floor": "Floor", "reciprocal": "Reciprocal",
    "erf": "Erf", "logical_not": "Not", "bitwise_not": "Not", "softplus": "Softplus", "clone": "Identity",
    "contiguous": "Identity", "alias": "Identity", "detach": "Identity", "dropout": "Identity",
    "lift_fresh_copy": "Identity",
}  # fmt: skip


def _binary(op: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        left, right = node.args[0], node.args[1]
        alpha = node.kwargs.get("alpha", 1)
        if alpha != 1 or node.kwargs.get("rounding_mode") is not None:
            raise UnmappedError(f"{node.op} with {node.kwargs} has no mapping.")
        compares = op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or")
        like = _common(c, (left, right)) if compares else node.results[0].type.dtype
        c.bind(node.results[0], c.emit(op, _as(c, left, like), _as(c, right, like)))

    return rule


def _unary(op: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        c.bind(node.results[0], c.emit(op, _as(c, node.args[0], node.results[0].type.dtype)))

    return rule


def _common(c: Converter, args: tuple[Arg, ...]) -> str:
    """The widest dtype of some operands."""
    order = ["bool", "u8", "i8", "i16", "i32", "i64", "f16", "f32", "f64"]
    kinds = [tensor_type(it, c.program).dtype for it in args if not isinstance(it, bool | int | float)]
    return str(max(kinds, key=order.index))


def _as(c: Converter, arg: Arg, dtype: str) -> str:
    """An operand in a dtype: ONNX mixes none."""
    name = c.operand(arg, dtype)
    if isinstance(arg, bool | int | float) or tensor_type(arg, c.program).dtype == dtype:
        return name
    cast_: str = c.emit("Cast", name, to=element_type(DTYPES[dtype]))
    return cast_


for _name, _op in _BINARY.items():
    maps(*(f"aten.{_name}{it}" for it in ("", ".Tensor", ".Scalar", ".Tensor_Scalar", ".Tensor_Tensor")))(
        _binary(_op)
    )
for _name, _op in _UNARY.items():
    maps(f"aten.{_name}")(_unary(_op))


@maps("aten.to.dtype", "aten._to_copy", "aten.to.dtype_layout")
def to_dtype(c: Converter, node: Node) -> None:
    """A cast, or nothing."""
    c.bind(node.results[0], _as(c, node.args[0], node.results[0].type.dtype))


@maps("aten.rsqrt")
def rsqrt(c: Converter, node: Node) -> None:
    """1 / √x."""
    c.bind(node.results[0], c.emit("Reciprocal", c.emit("Sqrt", c.name(node.args[0]))))


@maps("aten.silu")
def silu(c: Converter, node: Node) -> None:
    """x · σ(x)."""
    c.bind(node.results[0], activation(c, "silu", c.name(node.args[0])))


@maps("aten.gelu")
def gelu(c: Converter, node: Node) -> None:
    """Exact, or with tanh."""
    tanh = argument(node, 1, "approximate", "none") == "tanh"
    c.bind(node.results[0], activation(c, "gelu_tanh" if tanh else "gelu", c.name(node.args[0])))


def activation(c: Converter, kind: str, x: str) -> str:
    """One of the dialect's activations.

    Raises:
        UnmappedError: it is none of them.
    """
    made: str
    if kind == "silu" and c.options.microsoft:
        made = c.microsoft("QuickGelu", x, alpha=1.0)
    elif kind == "silu":
        made = c.emit("Mul", x, c.emit("Sigmoid", x))
    elif kind in ("gelu", "gelu_tanh"):
        made = c.emit("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
    elif kind == "relu2":
        rectified = c.emit("Relu", x)
        made = c.emit("Mul", rectified, rectified)
    elif kind in ("relu", "sigmoid", "tanh"):
        made = c.emit(kind.capitalize(), x)
    else:
        raise UnmappedError(f"The activation '{kind}' has no mapping.")
    return made


@maps("aten.clamp", "aten.clamp_min", "aten.clamp_max")
def clamp(c: Converter, node: Node) -> None:
    """Between two numbers, either of which may be missing."""
    like = node.results[0].type.dtype
    low = None if node.op == "aten.clamp_max" else argument(node, 1, "min")
    high = argument(node, 1, "max") if node.op == "aten.clamp_max" else argument(node, 2, "max")
    bounds = [None if it is None else c.operand(it, like) for it in (low, high)]
    c.bind(node.results[0], c.emit("Clip", c.name(node.args[0]), *bounds))


@maps("aten.where.self")
def where(c: Converter, node: Node) -> None:
    """One or the other."""
    like = node.results[0].type.dtype
    chosen = [_as(c, it, like) for it in node.args[1:3]]
    c.bind(node.results[0], c.emit("Where", c.name(node.args[0]), *chosen))


@maps("aten.masked_fill.Scalar")
def masked_fill(c: Converter, node: Node) -> None:
    """A number where the mask is set."""
    value = c.operand(node.args[2], node.results[0].type.dtype)
    c.bind(node.results[0], c.emit("Where", c.name(node.args[1]), value, c.name(node.args[0])))


@maps("aten.softmax.int", "aten._softmax")
def softmax(c: Converter, node: Node) -> None:
    """Over one dimension."""
    like = node.results[0].type.dtype
    c.bind(node.results[0], c.emit("Softmax", _as(c, node.args[0], like), axis=integer(node, 1, "dim")))


def _reduction(op: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        dims = argument(node, 1, "dim")
        given = cast("tuple[int, ...]", dims if isinstance(dims, tuple) else (dims,))
        x = _as(c, node.args[0], node.results[0].type.dtype)
        axes = None if dims is None else c.constant(list(given))
        keep = int(bool(argument(node, 2, "keepdim", False)))
        c.bind(node.results[0], c.emit(op, x, axes, keepdims=keep))

    return rule


maps("aten.sum.dim_IntList", "aten.sum")(_reduction("ReduceSum"))
maps("aten.mean.dim", "aten.mean")(_reduction("ReduceMean"))
maps("aten.amax")(_reduction("ReduceMax"))
maps("aten.amin")(_reduction("ReduceMin"))


@maps("aten.linear")
def linear(c: Converter, node: Node) -> None:
    """x · Wᵀ + b, with the weight as it is stored."""
    bias = argument(node, 2, "bias")
    x, weight = c.name(node.args[0]), c.name(node.args[1])
    added = None if bias is None else c.name(bias)
    if len(node.results[0].type.shape) == 2:
        c.bind(node.results[0], c.emit("Gemm", x, weight, added, transB=1))
        return
    made = c.emit("MatMul", x, c.emit("Transpose", weight, perm=[1, 0]))
    c.bind(node.results[0], made if added is None else c.emit("Add", made, added))


@maps("aten.addmm")
def addmm(c: Converter, node: Node) -> None:
    """b + x · W."""
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise UnmappedError("aten.addmm with factors has no mapping.")
    bias, x, weight = (c.name(it) for it in node.args)
    c.bind(node.results[0], c.emit("Gemm", x, weight, bias))


@maps("aten.matmul", "aten.mm", "aten.bmm")
def matmul(c: Converter, node: Node) -> None:
    """A product of two matrices, or of stacks of them."""
    c.bind(node.results[0], c.emit("MatMul", c.name(node.args[0]), c.name(node.args[1])))

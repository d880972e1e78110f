"""ATen operations that work element by element, and matrix products."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Arg, Node, Value

from ..converter import DTYPES, Converter, UnmappedError, argument, integer, tensor_type
from ..model import element_type
from .table import Rule, maps
from .tokens import by_token, flat_weights, on_rows

_BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "multiply": "Mul",
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
        rows = flat_weights(c, (left, right)) and on_rows(c, node)
        made = c.emit(op, _as(c, left, like, rows), _as(c, right, like, rows))
        (c.bind_rows if rows else c.bind)(node.results[0], made)

    return rule


def _unary(op: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        rows = on_rows(c, node)
        made = c.emit(op, _as(c, node.args[0], node.results[0].type.dtype, rows))
        (c.bind_rows if rows else c.bind)(node.results[0], made)

    return rule


def _common(c: Converter, args: tuple[Arg, ...]) -> str:
    """The widest dtype of some operands."""
    order = ["bool", "u8", "i8", "i16", "i32", "i64", "f16", "f32", "f64"]
    kinds = [tensor_type(it, c.program).dtype for it in args if not isinstance(it, bool | int | float)]
    return str(max(kinds, key=order.index))


def _as(c: Converter, arg: Arg, dtype: str, rows: bool = False) -> str:
    """An operand in a dtype: ONNX mixes none."""
    name = c.row_name(arg) if rows and isinstance(arg, Value) else c.operand(arg, dtype)
    if isinstance(arg, bool | int | float) or tensor_type(arg, c.program).dtype == dtype:
        return name
    cast_: str = c.emit("Cast", name, to=element_type(DTYPES[dtype]))
    return cast_


for _name, _op in _BINARY.items():
    maps(*(f"aten.{_name}{it}" for it in ("", ".Tensor", ".Scalar", ".Tensor_Scalar", ".Tensor_Tensor")))(
        _binary(_op)
    )
maps("aten.min.other")(_binary("Min"))
maps("aten.max.other")(_binary("Max"))
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


@maps("aten.square")
def square(c: Converter, node: Node) -> None:
    """x²."""
    x = c.name(node.args[0])
    c.bind(node.results[0], c.emit("Mul", x, x))


@maps("aten.log1p")
def log1p(c: Converter, node: Node) -> None:
    """log(1 + x)."""
    like = node.results[0].type.dtype
    c.bind(node.results[0], c.emit("Log", c.emit("Add", c.name(node.args[0]), c.constant(1, like))))


@maps("aten.expm1")
def expm1(c: Converter, node: Node) -> None:
    """eˣ − 1 = 2 · eˣᐟ² · sinh(x / 2), which loses no digits near 0."""
    half = c.emit("Div", c.name(node.args[0]), c.constant(2, node.results[0].type.dtype))
    twice = c.emit("Mul", c.constant(2, node.results[0].type.dtype), c.emit("Sinh", half))
    c.bind(node.results[0], c.emit("Mul", c.emit("Exp", half), twice))


@maps("aten.silu")
def silu(c: Converter, node: Node) -> None:
    """x · σ(x)."""
    (x,), bind = by_token(c, node, node.args[0])
    bind(node.results[0], activation(c, "silu", x))


@maps("aten.gelu")
def gelu(c: Converter, node: Node) -> None:
    """Exact, or with tanh."""
    tanh = argument(node, 1, "approximate", "none") == "tanh"
    (x,), bind = by_token(c, node, node.args[0])
    bind(node.results[0], activation(c, "gelu_tanh" if tanh else "gelu", x))


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


@maps("aten.clamp.Tensor")
def clamp_tensor(c: Converter, node: Node) -> None:
    """Between two tensors, either of which may be missing."""
    made = c.name(node.args[0])
    for place, name, op in ((1, "min", "Max"), (2, "max", "Min")):
        bound = argument(node, place, name)
        if bound is not None:
            made = c.emit(op, made, _as(c, bound, node.results[0].type.dtype))
    c.bind(node.results[0], made)


@maps("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
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


@maps("aten.linear")
def linear(c: Converter, node: Node) -> None:
    """x · Wᵀ + b, with the weight as it is stored."""
    bias = argument(node, 2, "bias")
    if not isinstance(node.args[1], Value) and not isinstance(bias, Value) and on_rows(c, node):
        x, weight = c.row_name(cast("Value", node.args[0])), c.name(node.args[1])
        made = c.microsoft("FusedMatMul", x, weight, transB=1)
        c.bind_rows(node.results[0], made if bias is None else c.emit("Add", made, c.name(bias)))
        return
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

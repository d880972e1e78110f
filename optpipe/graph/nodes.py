"""Small questions about FX nodes that every pass and the tracer ask."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

Dim = int | torch.SymInt


def value(node: Any) -> Any:
    """The node's fake value: a fake tensor, a symbolic size, a tuple of them, or None."""
    return node.meta.get("val")


def is_tensor(arg: object) -> bool:
    """Whether an argument is a node that yields one tensor."""
    return isinstance(arg, fx.Node) and isinstance(value(arg), torch.Tensor)


def shape(node: Any) -> tuple[Dim, ...]:
    """The node's shape, symbolic sizes included."""
    return tuple(value(node).shape)


def rank(node: Any) -> int:
    """How many dimensions the node's tensor has."""
    return len(value(node).shape)


def same_size(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal for every value of the symbols, without adding a guard."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(a == b))


def same_shape(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    """Whether two shapes are equal for every value of the symbols."""
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))


def same_type(a: Any, b: Any) -> bool:
    """Whether two nodes yield tensors of equal dtype and shape."""
    return bool(value(a).dtype == value(b).dtype) and same_shape(shape(a), shape(b))


def is_call(node: object, *targets: object) -> bool:
    """Whether ``node`` calls one of ``targets``; an overload packet stands for all its overloads."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return any(node.target is target or (packet is not None and packet is target) for target in targets)


def args_of(node: Any) -> tuple[Any, ...]:
    """A node's arguments, untyped: FX says of each that it may be sixteen things."""
    found: tuple[Any, ...] = node.args
    return found


def argument(node: Any, index: int, name: str, default: Any = None) -> Any:
    """A node's argument by position or keyword."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def constant_size(arg: object) -> int | torch.SymInt | None:
    """An integer argument as a size: a literal, or the symbolic value of a node."""
    if isinstance(arg, int | torch.SymInt):
        return arg
    if isinstance(arg, fx.Node) and isinstance(value(arg), int | torch.SymInt):
        size: int | torch.SymInt = value(arg)
        return size
    return None


def positive(dim: int, of_rank: int) -> int:
    """A dimension counted from the front."""
    return dim % of_rank if of_rank else 0


def path(node: fx.Node) -> str:
    """The module path the node came from, ``model.layers.0.self_attn``; empty when unknown."""
    found = node.meta.get("path", "")
    return found if isinstance(found, str) else ""


def input_name(node: fx.Node) -> str:
    """What an input is called in a Program and by whoever feeds the graph."""
    return str(node.meta.get("name", node.target))


def set_constant(gm: fx.GraphModule, name: str, tensor: torch.Tensor) -> None:
    """Make ``name`` resolvable as a get_attr target that carries dtype and shape and no data."""
    *parents, leaf = name.split(".")
    home: torch.nn.Module = gm
    for part in parents:
        child = getattr(home, part, None)
        if not isinstance(child, torch.nn.Module):
            child = torch.nn.Module()
            home.add_module(part, child)
        home = child
    meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if leaf in home._buffers:
        home._buffers[leaf] = meta
    else:
        home.register_buffer(leaf, meta, persistent=False)


def get_constant(gm: fx.GraphModule, name: str) -> torch.Tensor:
    """The meta tensor behind a get_attr target."""
    found: Any = gm
    for part in name.split("."):
        found = getattr(found, part)
    assert isinstance(found, torch.Tensor), f"{name = } must be a tensor, not {type(found)}"
    return found

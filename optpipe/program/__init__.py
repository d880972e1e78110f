"""The Program and its text, without torch; ``from_fx`` and ``to_fx`` import torch when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .dims import Dim, canonical, evaluate, symbols_of
from .program import Arg, DType, Expr, Input, Node, Program, Value, Weight, WeightRef
from .text import FORMAT, parse_program, print_node, print_program
from .types import DTYPE_BYTES, TensorType

if TYPE_CHECKING:
    from .fx import from_fx, to_fx

__all__ = [
    "DTYPE_BYTES",
    "FORMAT",
    "Arg",
    "DType",
    "Dim",
    "Expr",
    "Input",
    "Node",
    "Program",
    "TensorType",
    "Value",
    "Weight",
    "WeightRef",
    "canonical",
    "evaluate",
    "from_fx",
    "parse_program",
    "print_node",
    "print_program",
    "symbols_of",
    "to_fx",
]


def __getattr__(name: str) -> Any:
    if name in ("from_fx", "to_fx"):
        from . import fx

        return getattr(fx, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Between torch's symbolic sizes (sympy under a ShapeEnv) and the expressions of a Program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from ..errors import ArtifactError
from .dims import (
    Atom,
    Dim,
    Quotient,
    Sum,
    add,
    floor_divide,
    integer,
    multiply,
    parse_dim,
    simplify,
    subtract,
    symbol,
)

NAMES = ("T", "B", "R", "P", "M")  # tokens, sequences, logit rows, blocks, blocks a sequence

# Sizes to reason with: primes, no size or divisor of a size that a model has, all different.
_HINTS = (131, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223)


def name_symbols(
    sizes: Iterable[int | torch.SymInt], preferred: Mapping[str, str]
) -> dict[sympy.Symbol, str]:
    """A name for every symbol, in order of first appearance in the sizes of a graph's inputs.

    Args:
        preferred: names by the text of torch's symbol, ``{"s27": "T"}``; the others get ``NAMES`` in order.
    """
    order: dict[sympy.Symbol, None] = {}
    for size in sizes:
        if isinstance(size, torch.SymInt):
            order.update(dict.fromkeys(sorted(size.node.expr.free_symbols, key=str)))
    names = {found: preferred[str(found)] for found in order if str(found) in preferred}
    if len(set(names.values())) != len(names):
        raise ArtifactError(f"Two symbolic sizes of the graph have one name: {', '.join(names.values())}.")
    free = (name for name in (*NAMES, *(f"S{i}" for i in range(len(order)))) if name not in names.values())
    return {found: names[found] if found in names else next(free) for found in order}


def dim_of(size: int | torch.SymInt, names: Mapping[sympy.Symbol, str]) -> Dim:
    """A size of a tensor as a dim of a Program.

    Raises:
        ArtifactError: the size depends on data, or on an operation that has no spelling.
    """
    return int(size) if isinstance(size, int) else simplify(_sum_of(size.node.expr, names))


def _sum_of(expr: Any, names: Mapping[sympy.Symbol, str]) -> Sum:
    if isinstance(expr, sympy.Symbol):
        if expr not in names:
            raise ArtifactError(f"The size '{expr}' is no size of an input: it depends on the data.")
        return symbol(names[expr])
    if isinstance(expr, sympy.Integer):
        return integer(int(expr))
    parts = [_sum_of(part, names) for part in expr.args]
    if isinstance(expr, sympy.Add | sympy.Mul):
        result = parts[0]
        for part in parts[1:]:
            result = add(result, part) if isinstance(expr, sympy.Add) else multiply(result, part)
        return result
    if isinstance(expr, sympy.Pow) and 0 < (parts[1].constant or 0) <= 8:
        result = parts[0]
        for _ in range((parts[1].constant or 1) - 1):
            result = multiply(result, parts[0])
        return result
    if isinstance(expr, FloorDiv):
        return floor_divide(*parts)
    if isinstance(expr, Mod | PythonMod):
        return subtract(parts[0], multiply(parts[1], floor_divide(*parts)))
    raise ArtifactError(f"The size '{expr}' cannot be spelled: it needs more than + - * and //.")


class Sizes:
    """Fresh symbolic sizes for a graph that is made from a Program.

    Args:
        symbols: their names in the Program.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        # Imported here: it costs a second, and only this needs it.
        from torch._dynamo.source import ConstantSource

        self.env = ShapeEnv(duck_shape=False)
        self.mode = FakeTensorMode(shape_env=self.env)
        self.values: dict[str, torch.SymInt] = {}
        self.symbols: dict[sympy.Symbol, str] = {}
        for index, name in enumerate(symbols):
            hint = _HINTS[index] if index < len(_HINTS) else 1009 + 2 * index
            source = ConstantSource(f"__optpipe_{name}")
            own = self.env.create_symbol(hint, source, DimDynamic.DYNAMIC, constraint_dim=None)
            value = self.env.create_symintnode(own, hint=hint, source=source)
            assert isinstance(value, torch.SymInt), f"{name = } must be symbolic, not {value}"
            self.values[name] = value
            self.symbols[own] = name

    def value(self, dim: Dim) -> int | torch.SymInt:
        """The size that a dim of the Program stands for."""
        if isinstance(dim, int):
            return dim
        result: int | torch.SymInt = spell(parse_dim(dim), self.values.__getitem__, lambda op, a, b: op(a, b))
        return result


Combine = Callable[[Callable[[Any, Any], Any], Any, Any], Any]


def spell(value: Sum, leaf: Callable[[str], Any], combine: Combine) -> Any:
    """Build ``value`` from symbols up: ``leaf`` gives a symbol, ``combine`` applies an operator."""
    total: Any = None
    for product, coefficient in value.terms:
        term = _spell_term(product, abs(coefficient), leaf, combine)
        if total is None:
            total = term if coefficient > 0 else combine(operator.mul, -1, term)
        else:
            total = combine(operator.add if coefficient > 0 else operator.sub, total, term)
    return 0 if total is None else total


def _spell_term(
    product: tuple[Atom, ...], coefficient: int, leaf: Callable[[str], Any], combine: Combine
) -> Any:
    term: Any = None
    for atom in product:
        if isinstance(atom, Quotient):
            above, below = (spell(part, leaf, combine) for part in (atom.numerator, atom.denominator))
            factor = combine(operator.floordiv, above, below)
        else:
            factor = leaf(atom)
        term = factor if term is None else combine(operator.mul, term, factor)
    if term is None:
        return coefficient
    return term if coefficient == 1 else combine(operator.mul, coefficient, term)


class SizeNodes:
    """The nodes of a graph that compute symbolic arguments, each written once, where it is first needed.

    Args:
        graph: the graph that is being built.
        inputs: its placeholders, with ``meta["val"]``.
        sizes: the symbols.
    """

    def __init__(
        self, graph: fx.Graph, inputs: Iterable[tuple[fx.Node, tuple[Dim, ...]]], sizes: Sizes
    ) -> None:
        self.graph = graph
        self.sizes = sizes
        self.made: dict[tuple[Any, ...], fx.Node] = {}
        self.homes: dict[str, tuple[fx.Node, int]] = {}
        for node, shape in inputs:
            for axis, dim in enumerate(shape):
                if isinstance(dim, str) and dim in sizes.values:
                    self.homes.setdefault(dim, (node, axis))

    def node(self, dim: str) -> fx.Node:
        """A node whose value is ``dim``.

        Raises:
            ArtifactError: a symbol is not the size of any input, so that nothing can give it.
        """
        result = spell(parse_dim(dim), self._symbol, self._combine)
        assert isinstance(result, fx.Node), f"{dim = } must hold a symbol"
        return result

    def _symbol(self, name: str) -> fx.Node:
        if name not in self.homes:
            raise ArtifactError(f"The symbolic size '{name}' is used, but no input has it as a size.")
        node, axis = self.homes[name]
        return self._call(torch.ops.aten.sym_size.int, node, axis)

    def _combine(self, op: Callable[[Any, Any], Any], left: Any, right: Any) -> fx.Node:
        return self._call(op, left, right)

    def _call(self, op: Callable[..., Any], left: Any, right: Any) -> fx.Node:
        key = (op, left, right)
        if key not in self.made:
            node = self.graph.call_function(op, (left, right))
            value = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in (left, right)]
            node.meta.update(val=op(*value), path="")
            self.made[key] = node
        return self.made[key]

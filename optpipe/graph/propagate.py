"""Fake values: new inputs with symbols of their own, and working shapes out again after a rewrite."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from .nodes import value

EXAMPLE_SIZES = (13, 17, 19, 23, 29, 31)  # hints of new symbols: primes, unlike each other and the tracer's


def fake_mode(gm: fx.GraphModule) -> Any:
    """The fake tensor mode that a graph's values belong to."""
    for node in gm.graph.nodes:
        if isinstance(value(node), torch._subclasses.FakeTensor):
            return value(node).fake_mode
    raise AssertionError("a graph has at least one tensor")


def new_symbol_tensor(
    gm: fx.GraphModule, symbol: str, dtype: torch.dtype, *rest: int | torch.SymInt
) -> torch.Tensor:
    """A fake tensor [symbol, *rest] whose first size is a new symbol, named ``symbol`` in the text."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    mode = fake_mode(gm)
    names: dict[str, str] = gm.meta.setdefault("symbols", {})
    example = torch.empty(EXAMPLE_SIZES[len(names)], dtype=dtype)
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    line = mode.from_tensor(example, source=ConstantSource(f"size_{symbol}"), symbolic_context=context)
    names[str(line.shape[0].node.expr)] = symbol
    with mode:
        return line if not rest else torch.empty((line.shape[0], *rest), dtype=dtype)


def propagate(gm: fx.GraphModule) -> None:
    """Work every node's fake value out again from the inputs'."""
    with fake_mode(gm), enable_python_dispatcher():  # see optpipe.program.propagate
        for node in gm.graph.nodes:
            if node.op != "call_function":
                continue
            args = fx.node.map_arg(node.args, value)
            kwargs = fx.node.map_arg(node.kwargs, value)
            node.meta["val"] = node.target(*args, **kwargs)

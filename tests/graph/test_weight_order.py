"""The interpreter reads a weight when it is needed, wherever the graph names it."""

from __future__ import annotations

import textwrap

import torch

from optpipe.graph.interpreter import Interpreter
from optpipe.program import parse_program, to_fx
from optpipe.weights.store import BaseWeight, TensorWeight, Weights

TEXT = """
    optpipe.program 1
    input %x: f32[T, 4]
    weight @a: f32[4, 4] stored f32
    weight @b: f32[4, 4] stored f32
    %0: f32[T, 4] = aten.linear(%x, @a)
    %1: f32[T, 4] = aten.tanh(%0)
    %2: f32[T, 4] = aten.linear(%1, @b)
    return %2
"""


def test_one_layers_weights_are_in_memory_at_a_time() -> None:
    gm = to_fx(parse_program(textwrap.dedent(TEXT).lstrip()))
    first = next(node for node in gm.graph.nodes if node.op == "call_function")
    for node in [node for node in gm.graph.nodes if node.op == "get_attr"]:
        first.prepend(node)  # where tracing puts them
    values = {name: torch.randn(4, 4) for name in ("a", "b")}
    read: list[str] = []

    class Noted(BaseWeight):
        def __init__(self, name: str) -> None:
            super().__init__((4, 4), torch.float32, 64)
            self._name = name

        def load(self) -> torch.Tensor:
            read.append(self._name)
            return values[self._name]

    noted = Interpreter(gm, Weights({name: Noted(name) for name in values}))
    plain = Interpreter(gm, Weights({name: TensorWeight(tensor) for name, tensor in values.items()}))
    assert [str(node.target) for node in noted._order[:-1] if node.op == "get_attr"] == ["a", "b"]
    assert noted._order[2].target is torch.ops.aten.tanh.default
    x = torch.randn(3, 4)
    assert torch.equal(noted.run({"x": x}), plain.run({"x": x}))
    assert read == ["a", "b"]

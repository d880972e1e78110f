"""A pass over a few lines of text: what it said, what it made, and whether the numbers stayed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import fx

from optpipe.graph.canonical import canonicalize
from optpipe.graph.interpreter import Interpreter
from optpipe.pipeline import Pass
from optpipe.pipeline.context import PassContext, Remark
from optpipe.pipeline.manager import fork
from optpipe.program import from_fx, parse_program, print_program, to_fx
from optpipe.program.ops import DTYPES
from optpipe.testing import check_text, tolerance
from optpipe.testing.ir import random_weights
from optpipe.verifier import verify
from optpipe.weights.store import Weights

SIZES = {"R": 3, "B": 1, "M": 2, "P": 4}


@dataclass
class Rewritten:
    """A graph before and after a pass, tidied and verified as the manager does it."""

    p: Pass
    before: fx.GraphModule
    after: fx.GraphModule
    given: Weights
    weights: Weights
    remarks: list[Remark]
    constants: set[str]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text afterwards."""
        return print_program(from_fx(self.after))

    @property
    def rewrites(self) -> int:
        return sum(remark.kind == "applied" for remark in self.remarks)

    @property
    def missed(self) -> list[str]:
        """The reasons."""
        return [remark.text for remark in self.remarks if remark.kind == "missed"]

    def check(self, checks: str) -> Rewritten:
        """filecheck directives hold afterwards."""
        check_text(self.after, checks)
        return self

    def agrees(self, *lengths: int, within: str = "float32") -> Rewritten:
        """The graph gives the same numbers as before, for every number of tokens."""
        for tokens in lengths or (2, 9):
            inputs = operands(self.before, tokens) | {"logit_rows": torch.arange(tokens)}
            old = Interpreter(self.before, self.given).run(inputs)
            new = Interpreter(self.after, self.weights).run(fitted(self.after, inputs))
            for one, other in zip(as_tuple(old), as_tuple(new), strict=True):
                torch.testing.assert_close(other, one.reshape(other.shape), **tolerance(within))
        return self

    def again(self) -> int:
        """How many rewrites a second run makes."""
        text = self.text
        once_more = run(self.p, self.after, self.weights, self.constants, self.config)
        assert once_more.rewrites or once_more.text == text, (
            f"{self.p.name} changed a graph and did not say so"
        )
        return once_more.rewrites


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def fitted(gm: fx.GraphModule, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs without the batch dimension where the graph takes none."""
    ranks = {node.name: node.meta["val"].dim() for node in gm.graph.nodes if node.op == "placeholder"}
    return {name: x[0] if ranks.get(name, x.dim()) < x.dim() else x for name, x in inputs.items()}


def operands(gm: fx.GraphModule, tokens: int) -> dict[str, torch.Tensor]:
    """Random inputs: small ids, positions that count, normal numbers."""
    generator = torch.Generator().manual_seed(tokens)
    made = {}
    for given in from_fx(gm).inputs:
        shape = [eval(str(size), {}, {"T": tokens, **SIZES}) for size in given.value.type.shape]
        dtype = DTYPES[given.value.type.dtype]
        if given.value.name == "position_ids":
            made[given.value.name] = torch.arange(tokens).expand(shape)
        elif dtype.is_floating_point:
            made[given.value.name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            made[given.value.name] = torch.randint(0, min(5, tokens), shape, generator=generator).to(dtype)
    return made


def run(
    p: Pass, before: fx.GraphModule, given: Weights, constants: set[str], config: dict[str, Any]
) -> Rewritten:
    after, weights = fork(before), given.overlay()
    cx = PassContext(after, weights, config, whole=p.whole, constants=set(constants))
    p.apply(after.graph, cx)
    canonicalize(after)
    after.recompile()
    verify(after, stage=p.stage)
    return Rewritten(p, before, after, given, weights, cx.remarks, cx.constants, config)


Rewrite = Callable[..., Rewritten]


@pytest.fixture
def rewrite() -> Rewrite:
    """(pass, text) → the graph before and after; ``constants`` names weights that no checkpoint has."""

    def make(
        p: Pass,
        text: str,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        constants: tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
        tidy: bool = True,
    ) -> Rewritten:
        program = parse_program("optpipe.program 1\n" + textwrap.dedent(text).strip() + "\n")
        gm = to_fx(program)
        if tidy:
            canonicalize(gm)
            gm.recompile()
        stored = {weight.name: weight.stored for weight in program.weights.values()}
        given = random_weights(gm, weights or {}, stored)
        return run(p, gm, given, set(constants), config or {})

    return make

"""Checks of a graph's text with filecheck, before or after a pass.

A program in a test is a few lines; its weights are random and in memory, of the dtype it says they are
stored in, so that a pass that looks at values finds some.
"""

from __future__ import annotations

import io
import re
import textwrap
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

    from ..pipeline import Pass
    from ..program import Program
    from ..weights.store import Weights

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def check_text(graph: str | Program | fx.GraphModule, checks: str) -> None:
    """Check a graph's text against filecheck directives (``CHECK``, ``CHECK-NEXT``, ``CHECK-NOT``, …).

        check_text(gm, '''
            CHECK: [[H:%.*]]: f32[T, 64] = optpipe.rms_norm
            CHECK-NEXT: aten.linear([[H]], @lm_head.weight)
        ''')

    Args:
        graph: a graph module, a Program, or its text.
        checks: one directive a line; indentation does not matter, and a line without one is a comment.

    Raises:
        AssertionError: a directive does not hold; says which, where, and shows the text.

    Source: https://llvm.org/docs/CommandGuide/FileCheck.html, as the ``filecheck`` package implements it.
    """
    from filecheck.finput import FInput
    from filecheck.matcher import Matcher
    from filecheck.options import Options
    from filecheck.parser import Parser, pattern_for_opts

    text = _text(graph)
    options = Options(match_filename="checks")
    parser = Parser(options, io.StringIO(textwrap.dedent(checks)), *pattern_for_opts(options))
    matcher = Matcher(options, FInput("graph", text), parser)
    matcher.stderr = report = io.StringIO()
    if matcher.run() != 0:
        raise AssertionError(f"{_COLOUR.sub('', report.getvalue())}\nThe graph is:\n{text}")


def check_ir(
    p: Pass,
    before: str | Program | fx.GraphModule,
    checks: str,
    *,
    runs: int = 1,
    weights: Mapping[str, torch.Tensor] | None = None,
    config: dict[str, Any] | None = None,
) -> fx.GraphModule:
    """Run a pass over a graph and check the text of what it made.

        check_ir(FoldScale(), '''
            optpipe.program 1
            input %x: f32[T, 4]
            %1: f32[T, 4] = aten.mul.Tensor(%x, 1.0)
            return %1
        ''', "CHECK-NOT: aten.mul")

    The graph is tidied and verified as the pass manager does it after every pass.

    Args:
        p: the pass.
        before: the graph it is given: text, a Program, or a graph module, which is left as it is.
        checks: directives for the text afterwards (see :func:`check_text`).
        runs: how many times the pass runs; 2 shows that it is idempotent.
        weights: values by name; the others are random.
        config: the model's config that the pass may look at.

    Returns:
        The graph the pass made.

    Raises:
        AssertionError: a directive does not hold.
        PassError: the pass left a graph that does not hold together.
        ArtifactError: the text is no program.
    """
    from torch import fx

    from ..graph.canonical import canonicalize
    from ..pipeline.context import PassContext
    from ..pipeline.manager import fork
    from ..program import to_fx
    from ..verifier import verify

    if isinstance(before, fx.GraphModule):
        gm, stored = fork(before), {}
    else:
        program = _program(before)
        gm, stored = to_fx(program), {weight.name: weight.stored for weight in program.weights.values()}
    values = random_weights(gm, weights or {}, stored)
    for _ in range(runs):
        p.apply(gm.graph, PassContext(gm, values, config or {}, whole=p.whole))
        canonicalize(gm)
        gm.recompile()
        verify(gm, stage=p.stage)
    check_text(gm, checks)
    return gm


def random_weights(
    gm: fx.GraphModule, given: Mapping[str, torch.Tensor], stored: Mapping[str, str]
) -> Weights:
    """A store with a tensor for every weight of a graph: the given ones, else random ones by name.

    Floating weights are normal with a deviation of one; integers are small and not negative.

    Args:
        stored: names of the dtypes that weights are stored in; the graph's where it says nothing.
    """
    import torch

    from ..graph.nodes import value
    from ..program.ops import DTYPES
    from ..weights.store import TensorWeight, Weights

    store = Weights()
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        name, like = str(node.target), value(node)
        if name in given:
            store[name] = TensorWeight(given[name])
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if like.dtype.is_floating_point:
            kept = DTYPES[stored[name]] if name in stored else like.dtype
            tensor = torch.randn(like.shape, generator=generator).to(kept)
        else:
            tensor = torch.randint(0, 8, like.shape, generator=generator).to(like.dtype)
        store[name] = TensorWeight(tensor)
    return store


def _program(graph: str | Program) -> Program:
    from ..program import parse_program

    return parse_program(textwrap.dedent(graph).strip() + "\n") if isinstance(graph, str) else graph


def _text(graph: str | Program | fx.GraphModule) -> str:
    from torch import fx

    from ..program import from_fx, print_program

    if isinstance(graph, str):
        return textwrap.dedent(graph)
    return print_program(from_fx(graph) if isinstance(graph, fx.GraphModule) else graph)

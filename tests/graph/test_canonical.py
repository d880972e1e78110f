"""One spelling for each thing: the numbers stay, a second run finds nothing, what moves data is kept."""

from __future__ import annotations

import textwrap

import pytest
import torch

from optpipe.graph.canonical import canonicalize
from optpipe.graph.interpreter import Interpreter
from optpipe.pipeline.manager import fork
from optpipe.program import from_fx, parse_program, to_fx
from optpipe.testing import check_text
from optpipe.verifier import verify
from optpipe.weights.store import Weights


def graph(lines, last="%9"):
    text = f"optpipe.program 1\ninput %x: f32[T, 3, 4]\n{textwrap.dedent(lines).strip()}\nreturn {last}\n"
    return to_fx(parse_program(text))


CASES = {
    "two transposes of ones are a reshape": (
        "%1: f32[T, 1, 3, 4] = aten.unsqueeze(%x, 1)\n%9: f32[1, T, 3, 4] = aten.transpose.int(%1, 0, 1)",
        "CHECK: %0: f32[1, T, 3, 4] = aten.reshape(%x, [1, T, 3, 4])\nCHECK-NEXT: return %0",
    ),
    "a transpose behind an added one is a transpose": (
        "%1: f32[1, T, 3, 4] = aten.unsqueeze(%x, 0)\n%9: f32[1, 3, T, 4] = aten.transpose.int(%1, 1, 2)",
        "CHECK: aten.permute(%x, [1, 0, 2])\nCHECK-NEXT: aten.reshape(%0, [1, 3, T, 4])",
    ),
    "a select of the only row is a reshape": (
        "%1: f32[T, 1, 3, 4] = aten.unsqueeze(%x, 1)\n%9: f32[T, 3, 4] = aten.select.int(%1, 1, 0)",
        "CHECK: return %x",
    ),
    "a select of one row of several stays": (
        "%9: f32[T, 4] = aten.select.int(%x, 1, 2)",
        "CHECK: aten.select.int(%x, 1, 2)",
    ),
    "an expand that only adds ones is a reshape": (
        "%9: f32[1, T, 3, 4] = aten.expand(%x, [1, T, 3, 4])",
        "CHECK: aten.reshape(%x, [1, T, 3, 4])",
    ),
    "an expand that copies stays": (
        "%9: f32[2, T, 3, 4] = aten.expand(%x, [2, T, 3, 4])",
        "CHECK: aten.expand(%x, [2, T, 3, 4])",
    ),
    "a reshape that mixes dimensions stays behind a transpose": (
        "%1: f32[T, 4, 3] = aten.transpose.int(%x, 1, 2)\n%9: f32[T, 12] = aten.reshape(%1, [T, 12])",
        "CHECK: aten.permute(%x, [0, 2, 1])\nCHECK-NEXT: aten.reshape(%0, [T, 12])",
    ),
    "movedim is a permute": (
        "%9: f32[3, 4, T] = aten.movedim.int(%x, 0, 2)",
        "CHECK: aten.permute(%x, [1, 2, 0])",
    ),
    "a slice of a part stays": (
        "%9: f32[T, 3, 2] = aten.slice.Tensor(%x, 2, 1, 3)",
        "CHECK: aten.slice.Tensor(%x, 2, 1, 3)",
    ),
    "adding nothing is nothing": ("%9: f32[T, 3, 4] = aten.sub.Tensor(%x, 0)", "CHECK: return %x"),
    "dividing by one is nothing": ("%9: f32[T, 3, 4] = aten.div.Tensor(%x, 1)", "CHECK: return %x"),
    "one over x stays": (
        "%9: f32[T, 3, 4] = aten.div.Tensor(%x, 2)",
        "CHECK: aten.div.Tensor(%x, 2)",
    ),
    "a division that rounds stays": (
        '%9: f32[T, 3, 4] = aten.div.Tensor_mode(%x, 1, rounding_mode="floor")',
        "CHECK: aten.div.Tensor_mode",
    ),
}


@pytest.mark.parametrize(("lines", "checks"), CASES.values(), ids=CASES)
def test_is_spelt_one_way(lines, checks):
    gm = graph(lines)
    before = fork(gm)
    canonicalize(gm)
    gm.recompile()
    verify(gm)
    check_text(gm, checks)
    assert canonicalize(gm) == 0
    for tokens in (1, 5):
        x = torch.randn(tokens, 3, 4)
        assert Interpreter(gm, Weights()).run({"x": x}).equal(Interpreter(before, Weights()).run({"x": x}))


def test_dead_calls_go_and_writes_stay():
    text = """
        optpipe.program 1
        input %k: f32[T, 2, 3]
        input %slots: i64[T]
        cache %k_cache.0: f32[P, 4, 2, 3]
        cache %v_cache.0: f32[P, 4, 2, 3]
        %1: f32[T, 2, 3] = aten.tanh(%k)
        optpipe.kv_write(%k, %k, %k_cache.0, %v_cache.0, %slots)
        return %k
    """
    gm = to_fx(parse_program(textwrap.dedent(text).strip() + "\n"))
    assert canonicalize(gm) >= 1
    assert [node.op for node in from_fx(gm).nodes] == ["optpipe.kv_write"]


def test_new_nodes_keep_the_module_path():
    gm = graph("%9: f32[T, 12] = aten.view(%x, [T, 12])  # model.layers.0")
    canonicalize(gm)
    check_text(gm, "CHECK: aten.reshape(%x, [T, 12])  # model.layers.0")

"""Sizes as nodes: near the inputs, one for each, whatever asks for them and from where."""

from __future__ import annotations

import textwrap

import pytest
import torch

from optpipe.graph.canonical import canonicalize
from optpipe.graph.nodes import aten, same_size, shape
from optpipe.graph.propagate import new_symbol_tensor, propagate
from optpipe.graph.sizes import as_arguments, size_node
from optpipe.program import from_fx, parse_program, print_program, to_fx
from optpipe.verifier import verify


def graph(text):
    return to_fx(parse_program("optpipe.program 1\n" + textwrap.dedent(text).strip() + "\n"))


CHAIN = """
    input %x: f32[T, 8]
    %1: f32[T, 1, 8] = aten.unsqueeze(%x, 1)
    %2: f32[T, 3, 8] = aten.expand(%1, [T, 3, 8])
    return %2
"""


def test_a_size_that_is_read_late_is_moved_before_its_first_use():
    gm = graph(CHAIN)
    canonicalize(gm)
    verify(gm)
    sizes = [node for node in gm.graph.nodes if node.target is aten.sym_size.int]
    assert len(sizes) == 1
    assert next(node for node in gm.graph.nodes if node.op == "call_function") is sizes[0]


@pytest.mark.parametrize("size", ["T + 1", "2 * T", "2 * T + 3", "T + S", "3 * T * S"])
def test_arithmetic_of_sizes_becomes_nodes(size):
    gm = graph(
        f"input %x: f32[T]\ninput %y: f32[S]\n%1: i64[{size}] = aten.arange({size})\nreturn %1, %x, %y"
    )
    arange = next(node for node in gm.graph.nodes if node.target is aten.arange.default)
    with gm.graph.inserting_before(next(node for node in gm.graph.nodes if node.op == "call_function")):
        (again,) = as_arguments(gm.graph, [shape(arange)[0]])
    assert same_size(again.meta["val"], shape(arange)[0])
    arange.args = (again,)
    gm.graph.eliminate_dead_code()
    verify(gm)
    canonicalize(gm)
    verify(gm)
    assert f"aten.arange({from_fx(gm).nodes[-1].results[0].type.shape[0]})" in print_program(from_fx(gm))


def test_one_size_is_one_node():
    gm = graph(CHAIN)
    x = next(iter(gm.graph.nodes))
    assert size_node(gm.graph, shape(x)[0]) is size_node(gm.graph, shape(x)[0])
    assert as_arguments(gm.graph, [3, shape(x)[1]]) == [3, 8]


def test_new_symbols_are_unlike_each_other_and_named():
    gm = graph(CHAIN)
    rows = new_symbol_tensor(gm, "R", torch.int64)
    blocks = new_symbol_tensor(gm, "P", torch.float32, 4, 2)
    assert blocks.shape[1:] == (4, 2)
    assert not same_size(rows.shape[0], blocks.shape[0])
    assert not same_size(rows.shape[0], shape(next(iter(gm.graph.nodes)))[0])
    assert sorted(gm.meta["symbols"].values()) == ["P", "R", "T"]


def test_propagation_follows_an_input_that_changed():
    gm = graph("input %x: f32[T, 8]\n%1: f32[T, 8] = aten.tanh(%x)\nreturn %1")
    x, tanh, _ = gm.graph.nodes
    x.meta["val"] = x.meta["val"][:, :3]
    propagate(gm)
    assert shape(tanh)[1] == 3

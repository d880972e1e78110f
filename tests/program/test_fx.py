"""FX graphs to Programs and back: conventions, refusals, and the same bits on real models."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from optpipe.errors import ArtifactError
from optpipe.program import from_fx, parse_program, print_program, to_fx
from optpipe.program.symbols import Sizes
from optpipe.testing.tiny import tiny_model
from optpipe.tracing.trace import trace
from optpipe.weights.store import TensorWeight, Weights

aten = torch.ops.aten

SAMPLE = """optpipe.program 1
input %ids: i64[T]
input %starts: i32[B + 1]
input %lengths: i32[B]
weight @embed.weight: f32[10, 8] stored f16
weight @proj.0.bias: f32[8] stored f32
%0: f32[T, 8] = aten.embedding(@embed.weight, %ids)  # embed
%1: f32[2*T, 4] = aten.view(%0, [2*T, 4])  # proj.0
%2: f32[2*T, 2], %3: f32[2*T, 2] = aten.split.Tensor(%1, 2, 1)  # proj.0
%4: f32[2*T, 4] = aten.cat([%3, %3], 1)
%5: f32[T, 8] = aten.reshape(%4, [T, -1])
%6: f32[T, 8] = aten.add.Tensor(%5, @proj.0.bias, alpha=2)
%7: f64[T, 8] = aten._to_copy(%6, dtype=f64)
%8: f64[T, 8] = aten.clone(%7, memory_format="contiguous_format")
%9: i64[B + T] = aten.arange(B + T)
%10: f32[B*T] = aten.full([B*T], -inf)
%11: i64[T//2] = aten.slice.Tensor(%9, 0, 0, T//2)
return %8, %9, %10
"""


class Runner(fx.Interpreter):
    """Runs a graph whose weights are given by name."""

    def __init__(self, gm: fx.GraphModule, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__(gm)
        self.weights = weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.weights[target]


@pytest.fixture
def sample() -> fx.GraphModule:
    return to_fx(parse_program(SAMPLE))


def nodes_named(gm: fx.GraphModule, target: object) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.target is target]


def test_a_program_comes_back_from_its_graph(sample):
    stored = {"embed.weight": "f16"}
    assert print_program(from_fx(sample, stored=stored)) == SAMPLE


def test_the_graph_keeps_the_conventions(sample):
    ids, starts, _ = (node for node in sample.graph.nodes if node.op == "placeholder")
    assert (ids.target, ids.meta["kind"]) == ("ids", "input")
    assert isinstance(ids.meta["val"].shape[0], torch.SymInt)
    assert starts.meta["val"].shape[0].node.expr.args[0] == 1
    (embedding,) = nodes_named(sample, aten.embedding.default)
    assert embedding.meta["path"] == "embed"
    weight = embedding.args[0]
    assert (weight.op, weight.target) == ("get_attr", "embed.weight")
    assert sample.embed.weight.is_meta
    assert sample.embed.weight.dtype == torch.float32
    assert sorted(sample.meta["symbols"].values()) == ["B", "T"]
    assert (
        len({id(n.meta["val"].fake_mode) for n in sample.graph.nodes if hasattr(n.meta["val"], "fake_mode")})
        == 1
    )


def test_sizes_are_computed_once_and_only_used_results_are_taken(sample):
    assert len(nodes_named(sample, aten.sym_size.int)) == 2
    assert len(nodes_named(sample, operator.mul)) == 2  # 2*T and T*B
    (item,) = nodes_named(sample, operator.getitem)
    assert item.args[1] == 1


def test_the_graph_runs_at_any_size(sample):
    weights = {"embed.weight": torch.randn(10, 8), "proj.0.bias": torch.randn(8)}
    for tokens, sequences in ((2, 2), (5, 3)):
        ids = torch.arange(tokens)
        starts, lengths = torch.zeros(sequences + 1).int(), torch.ones(sequences).int()
        out, count, filled = Runner(sample, weights).run(ids, starts, lengths)
        right = weights["embed.weight"][ids].view(2 * tokens, 4)[:, 2:]
        expected = torch.cat([right, right], 1).reshape(tokens, 8) + 2 * weights["proj.0.bias"]
        assert torch.equal(out, expected.double())
        assert (len(count), len(filled)) == (tokens + sequences, tokens * sequences)


def test_caches_keep_their_kind_and_their_dotted_names():
    text = """optpipe.program 1
input %k: f32[T, 2, 4]
input %slots: i64[T]
cache %k_cache.0: f32[P, 16, 2, 4]
cache %v_cache.0: f32[P, 16, 2, 4]
cache %class: f32[P, 16, 2, 4]
optpipe.kv_write(%k, %k, %k_cache.0, %v_cache.0, %slots)  # layers.0
%0: f32[T, 2, 4] = aten.neg(%k)
return %0
"""
    gm = to_fx(parse_program(text))
    caches = [node for node in gm.graph.nodes if node.meta.get("kind") == "cache"]
    assert [node.target for node in caches] == ["k_cache_0", "v_cache_0", "_class"]
    assert print_program(from_fx(gm)) == text
    key, cache = torch.randn(3, 2, 4), torch.zeros(2, 16, 2, 4)
    out = gm(key, torch.tensor([1, -1, 17]), cache, torch.zeros_like(cache), cache)
    assert torch.equal(out, -key)
    assert torch.equal(cache[0, 1], key[0])
    assert torch.equal(cache[1, 1], key[2])


def test_hostile_names_and_texts_are_only_texts():
    text = """optpipe.program 1
input %x: f32[T]
input %self: f32[T]
weight @a.b-c: f32[1] stored f32
%0: f32[T] = aten.gelu(%x, approximate="tanh")
%1: f32[T] = aten.mul.Tensor(%0, @a.b-c)
return %1
"""
    gm = to_fx(parse_program(text))
    gm.recompile()
    assert print_program(from_fx(gm)) == text
    with pytest.raises(ArtifactError, match="cannot take its operands"):
        to_fx(parse_program(text.replace('"tanh"', '"\\"); __import__(\\"os\\").abort() #"')))


# What a text says wrongly, by the line that replaces the last operation of a small program.
HEAD = "optpipe.program 1\ninput %x: f32[T, 4]\nweight @w: f32[4, 4] stored f32\n"
WRONG = {
    "unknown operation": ("aten.sofmax.int(%x, 1)", "'aten.sofmax.int' is unknown", "aten.softmax.int"),
    "unknown overload": ("aten.add.tensor(%x, %x)", "is unknown", "aten.add.Tensor"),
    "another namespace": ("prims.neg(%x)", "is unknown", None),
    "an attribute of torch": ("aten.__class__(%x)", "is unknown", None),
    "a file": ('aten.from_file("/etc/passwd")', "takes no tensor", None),
    "in place": ("aten.add_.Tensor(%x, %x)", "writes to its operands", None),
    "out variant": ("aten.add.out(%x, %x, out=%x)", "writes to its operands", None),
    "random": ("aten.randn_like(%x)", "random numbers", None),
    "training dropout": ("aten.dropout(%x, 0.5, true)", "random numbers", None),
    "attention that drops out": (
        "aten.scaled_dot_product_attention(%x, %x, %x, None, 0.1)",
        "random numbers",
        None,
    ),
    "foreign memory": ("aten.as_strided(%x, [T, 4], [4, 1])", "outside its operands", None),
    "uninitialized memory": ("aten.empty.memory_format([T, 4])", "uninitialized", None),
    "private": ("aten._cast_Float(%x)", "private", None),
    "no tensor comes back": ("aten.item(%x)", "other than tensors", None),
    "operands": ("aten.mm(%x, %x)", "cannot take its operands", None),
    "too many operands": ("aten.neg(%x, %x)", "cannot take its operands", None),
    "no such keyword": ("aten.neg(%x, key=1)", "cannot take its operands", None),
    "type": ("aten.t(%x)", r"f32\[4, T\], where the program says f32\[T, 4\]", None),
    "one length only": (
        "aten.view(%x, [131, 4])",
        "only for some sizes: Eq.4.T, 524., which T = 2 breaks",
        None,
    ),
    "unknown size": ("aten.view(%x, [B, 4])", "no input has it", None),
    "memory format": ('aten.clone(%x, memory_format="big")', "'big' is unknown", None),
    "fewer results": ("aten.split.Tensor(%x, 2, 1)", "Its results are", None),
}


@pytest.mark.parametrize(("call", "problem", "near"), WRONG.values(), ids=WRONG)
def test_a_program_that_does_not_hold_together_is_refused(call, problem, near):
    program = parse_program(
        f"{HEAD}%0: f32[T, 4] = aten.neg(%x)\n%1: f32[T, 4] = {call}  # here\nreturn %1\n"
    )
    with pytest.raises(ArtifactError, match=problem) as caught:
        to_fx(program)
    assert caught.value.message.startswith(
        f"Operation 1 ('{call.split('(')[0]}' of here) does not hold together"
    )
    assert near is None or near in str(caught.value.hint)


def test_a_weight_may_not_replace_a_part_of_the_module():
    for name in ("graph.weight", "forward", "training", "a.register_buffer.weight"):
        text = f"{HEAD.replace('@w', f'@{name}')}%0: f32[T, 4] = aten.mm(%x, @{name})\nreturn %0\n"
        with pytest.raises(ArtifactError, match="in its name is taken"):
            to_fx(parse_program(text))


# --- what from_fx refuses -----------------------------------------------------------------------------------


def small_graph(target: Any, *args: Any, **kwargs: Any) -> fx.GraphModule:
    """``target(x, *args)`` over x: f32[T, 4], with metas."""
    sizes = Sizes(("T",))
    graph = fx.Graph()
    x = graph.placeholder("x")
    with sizes.mode:
        x.meta["val"] = torch.empty(sizes.value("T"), 4)
    node = graph.call_function(target, (x, *args), kwargs)
    node.meta.update(val=x.meta["val"], path="here")
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    ("gm", "problem"),
    [
        (lambda: small_graph(torch.neg), "neither an ATen nor an optpipe"),
        (lambda: small_graph(operator.add, 1), "neither an ATen nor an optpipe"),
        (lambda: small_graph(aten.neg_.default), "writes to its operands"),
        (lambda: small_graph(aten.to.device, torch.device("cpu"), torch.float32), "names a place"),
        (
            lambda: small_graph(aten.zeros_like.default, device=torch.device("cpu")),
            "names a place: device=cpu",
        ),
        (lambda: small_graph(aten.zeros_like.default, layout=torch.sparse_coo), "names a place"),
        (lambda: small_graph(aten.mul.Scalar, 1j), "type complex"),
        (lambda: small_graph(aten.to.dtype, torch.complex64), "no dtype for torch.complex64"),
        (lambda: small_graph(operator.getitem, 0), "takes an item"),
    ],
)
def test_a_graph_that_no_program_can_hold_is_refused(gm, problem):
    with pytest.raises(ArtifactError, match=problem) as caught:
        from_fx(gm())
    assert "of here" in caught.value.message


def test_places_that_say_nothing_are_left_out():
    gm = small_graph(aten.zeros_like.default, device=None, layout=torch.strided, pin_memory=False)
    assert "aten.zeros_like(%x)" in print_program(from_fx(gm))


def test_symbols_are_named_as_told_else_in_order():
    sizes = Sizes(("a", "b", "c"))
    graph = fx.Graph()
    for name, shape in (("x", ("b", "a")), ("y", ("c",))):
        with sizes.mode:
            graph.placeholder(name).meta["val"] = torch.empty([sizes.value(dim) for dim in shape])
    graph.output(())
    gm = fx.GraphModule(nn.Module(), graph)
    assert [str(item.value.type) for item in from_fx(gm).inputs] == ["f32[T, B]", "f32[R]"]
    own = {name: str(found) for found, name in sizes.symbols.items()}
    gm.meta["symbols"] = {own["c"]: "T", own["a"]: "M"}
    assert [str(item.value.type) for item in from_fx(gm).inputs] == ["f32[B, M]", "f32[T]"]
    gm.meta["symbols"] = {own["c"]: "T", own["a"]: "T"}
    with pytest.raises(ArtifactError, match="one name"):
        from_fx(gm)


# --- the same bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "qwen2-moe", "phi3", "gpt2"])
def test_a_traced_model_gives_the_same_bits_after_the_round_trip(name):
    model = tiny_model(name)
    traced = trace(model, Weights({key: TensorWeight(value) for key, value in model.state_dict().items()}))
    program = from_fx(traced.gm, stored={})
    text = print_program(program)
    again = to_fx(parse_program(text))
    assert print_program(from_fx(again)) == text
    assert program.symbols == ("T",)
    weights = {key: traced.weights[key].load() for key in program.weights}
    inputs = torch.arange(13)[None] * 7 % 200, torch.arange(13)[None]
    assert torch.equal(Runner(traced.gm, weights).run(*inputs), Runner(again, weights).run(*inputs))


STEPS = ("neg", "scale", "add", "linear", "fold", "split", "turn", "softmax", "positions", "cast")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.integers(0, 5)), max_size=8))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_a_random_graph_gives_the_same_bits_after_the_round_trip(steps):
    gm, weights = random_graph(steps)
    program = from_fx(gm)
    again = to_fx(parse_program(print_program(program)))
    assert print_program(from_fx(again)) == print_program(program)
    for tokens in (2, 5):
        x = torch.linspace(-2, 2, tokens * 8).reshape(tokens, 8)
        assert torch.equal(Runner(gm, weights).run(x), Runner(again, weights).run(x))


def random_graph(steps: list[tuple[str, int, int]]) -> tuple[fx.GraphModule, dict[str, torch.Tensor]]:
    """A graph over x: f32[T, 8]; each step makes another f32[T, 8] from two earlier ones."""
    sizes = Sizes(("T",))
    graph = fx.Graph()
    weights = {"a.0.weight": torch.linspace(-1, 1, 64).reshape(8, 8), "a.bias": torch.ones(8)}

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        given_args, given_kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with sizes.mode:
            node.meta.update(val=target(*given_args, **given_kwargs), path="a.b")
        return node

    def weight(name: str) -> fx.Node:
        node = graph.get_attr(name)
        with sizes.mode:
            node.meta["val"] = torch.empty(weights[name].shape)
        return node

    x = graph.placeholder("x")
    with sizes.mode:
        x.meta["val"] = torch.empty(sizes.value("T"), 8)
    made = [x]
    for kind, first, second in steps:
        a, b = made[first % len(made)], made[second % len(made)]
        made.append(_step(kind, a, b, call, weight))
    graph.output(made[-1])
    root = nn.Module()
    root.add_module("a", nn.Module())
    root.a.add_module("0", nn.Module())
    root.a.register_buffer("bias", torch.empty(8, device="meta"))
    root.a.get_submodule("0").register_buffer("weight", torch.empty(8, 8, device="meta"))
    return fx.GraphModule(root, graph), weights


def _step(kind: str, a: fx.Node, b: fx.Node, call: Any, weight: Any) -> fx.Node:
    tokens = call(aten.sym_size.int, a, 0)
    if kind == "neg":
        return call(aten.neg.default, a)
    if kind == "scale":
        return call(aten.mul.Tensor, a, 0.1)
    if kind == "add":
        return call(aten.add.Tensor, a, b, alpha=2)
    if kind == "linear":
        return call(aten.linear.default, a, weight("a.0.weight"), weight("a.bias"))
    if kind == "fold":
        folded = call(aten.reshape.default, a, [call(operator.mul, tokens, 2), 4])
        return call(aten.reshape.default, call(aten.softmax.int, folded, -1), [tokens, -1])
    if kind == "split":
        parts = call(aten.split.Tensor, a, 4, 1)
        return call(aten.cat.default, [call(operator.getitem, parts, 1), call(operator.getitem, parts, 0)], 1)
    if kind == "turn":
        return call(aten.contiguous.default, call(aten.t.default, call(aten.t.default, b)))
    if kind == "softmax":
        return call(
            aten.matmul.default,
            call(aten.softmax.int, call(aten.mm.default, a, call(aten.t.default, b)), 1),
            b,
        )
    if kind == "positions":
        last = call(operator.sub, call(operator.add, tokens, tokens), 1)
        half = call(operator.floordiv, last, 2)
        index = call(aten.arange.start, call(operator.sub, half, half), tokens, dtype=torch.float32)
        return call(aten.add.Tensor, a, call(aten.unsqueeze.default, index, 1))
    wide = call(aten._to_copy.default, a, dtype=torch.float64)
    return call(aten.to.dtype, wide, torch.float32)

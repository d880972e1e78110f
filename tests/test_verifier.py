"""The verifier: good graphs pass at their stage, and each way to be wrong is named with its node and path."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from optpipe.errors import PassError
from optpipe.pipeline.stage import Stage
from optpipe.program import parse_program, to_fx
from optpipe.program.symbols import Sizes
from optpipe.verifier import STAGES, verify

aten = torch.ops.aten
dialect = torch.ops.optpipe

PAGED = """optpipe.program 1
input %input_ids: i64[T]
input %slot_mapping: i64[T]
input %query_start: i32[B + 1]
input %context_lens: i32[B]
input %block_tables: i32[B, M]
cache %k_cache.0: f32[P, 16, 2, 4]
cache %v_cache.0: f32[P, 16, 2, 4]
weight @embed.weight: f32[10, 8] stored f16
weight @norm.weight: f32[8] stored f32
%0: f32[T, 8] = aten.embedding(@embed.weight, %input_ids)  # embed
%1: f32[T, 2, 4] = aten.view(%0, [T, 2, 4])  # layers.0.attn
optpipe.kv_write(%1, %1, %k_cache.0, %v_cache.0, %slot_mapping)  # layers.0.attn
%2: f32[T, 2, 4] = optpipe.paged_attention(%1, %k_cache.0, %v_cache.0, %query_start, %context_lens, %block_tables, scale=0.5)  # layers.0.attn
%3: f32[T, 8] = aten.view(%2, [T, 8])  # layers.0.attn
%4: f32[T, 8], %5: f32[T, 8] = optpipe.add_rms_norm(%3, %0, @norm.weight, eps=1e-05)  # norm
%6: f32[T, 8] = aten.add.Tensor(%4, %5)  # norm
return %6
"""  # noqa: E501


@pytest.fixture
def gm() -> fx.GraphModule:
    return to_fx(parse_program(PAGED))


def find(gm: fx.GraphModule, target: object) -> fx.Node:
    return next(
        node for node in gm.graph.nodes if target in (node.target, getattr(node.target, "_overloadpacket", 0))
    )


def test_a_good_graph_passes(gm):
    verify(gm)
    verify(gm, stage=Stage.LOWER)
    verify(gm, stage=Stage.LOWER)  # and changes nothing


def test_it_leaves_no_guards(gm):
    env = next(iter(gm.graph.nodes)).meta["val"].fake_mode.shape_env
    verify(gm)
    assert not env.guards


# --- each way to break it -----------------------------------------------------------------------------------


def wrong_shape(gm: fx.GraphModule) -> None:
    node = find(gm, aten.add.Tensor)
    node.meta["val"] = find(gm, aten.view.default).meta["val"]


def wrong_dtype(gm: fx.GraphModule) -> None:
    node = find(gm, aten.add.Tensor)
    with node.meta["val"].fake_mode:
        node.meta["val"] = node.meta["val"].double()


def wrong_size(gm: fx.GraphModule) -> None:
    node = find(gm, aten.add.Tensor)
    mode = node.meta["val"].fake_mode
    with mode:
        node.meta["val"] = torch.empty(node.meta["val"].shape[0] + 1, 8)


def wrong_size_node(gm: fx.GraphModule) -> None:
    node = find(gm, aten.sym_size.int)
    node.meta["val"] = node.meta["val"] + 1


def wrong_result_of_many(gm: fx.GraphModule) -> None:
    node = find(gm, dialect.add_rms_norm.default)
    node.meta["val"] = (node.meta["val"][0],)
    for user in list(node.users):
        user.args = (node, 0)


def no_meta(gm: fx.GraphModule) -> None:
    del find(gm, aten.add.Tensor).meta["val"]


def no_meta_on_an_input(gm: fx.GraphModule) -> None:
    del find(gm, "input_ids").meta["val"]


def real_tensor(gm: fx.GraphModule) -> None:
    find(gm, aten.add.Tensor).meta["val"] = torch.zeros(3, 8)


def another_fake_mode(gm: fx.GraphModule) -> None:
    sizes = Sizes(("T",))
    with sizes.mode:
        find(gm, aten.add.Tensor).meta["val"] = torch.empty(sizes.value("T"), 8)


def operands_that_do_not_fit(gm: fx.GraphModule) -> None:
    find(gm, aten.add.Tensor).args = (find(gm, aten.view.default), find(gm, dialect.kv_write.default).args[4])


def weight_of_another_shape(gm: fx.GraphModule) -> None:
    gm.norm.weight = torch.empty(9, device="meta")


def weight_that_is_not_there(gm: fx.GraphModule) -> None:
    find(gm, "norm.weight").target = "norm.bias"


def python_function(gm: fx.GraphModule) -> None:
    find(gm, aten.add.Tensor).target = torch.add


def operator_on_tensors(gm: fx.GraphModule) -> None:
    find(gm, aten.add.Tensor).target = operator.add


def random_operation(gm: fx.GraphModule) -> None:
    node = find(gm, aten.add.Tensor)
    node.target, node.args = aten.rand_like.default, node.args[:1]


def in_place(gm: fx.GraphModule) -> None:
    find(gm, aten.add.Tensor).target = aten.add_.Tensor


def device(gm: fx.GraphModule) -> None:
    node = find(gm, aten.add.Tensor)
    node.target, node.args, node.kwargs = (
        aten.zeros_like.default,
        node.args[:1],
        {"device": torch.device("cpu")},
    )


def bad_item(gm: fx.GraphModule) -> None:
    find(gm, operator.getitem).args = (find(gm, aten.view.default), 0)


def module_call(gm: fx.GraphModule) -> None:
    gm.add_module("act", nn.ReLU())
    node = find(gm, aten.add.Tensor)
    with gm.graph.inserting_before(node):
        gm.graph.call_module("act", (node.args[0],))


def read_before_write(gm: fx.GraphModule) -> None:
    write, read = find(gm, dialect.kv_write.default), find(gm, dialect.paged_attention.default)
    read.append(write)


def read_without_write(gm: fx.GraphModule) -> None:
    gm.graph.erase_node(find(gm, dialect.kv_write.default))


def write_of_another_cache(gm: fx.GraphModule) -> None:
    write = find(gm, dialect.kv_write.default)
    write.args = (*write.args[:3], write.args[2], write.args[4])


def write_to_no_cache(gm: fx.GraphModule) -> None:
    find(gm, "k_cache_0").meta["kind"] = "input"


def a_length_only(gm: fx.GraphModule) -> None:
    node = find(gm, aten.add.Tensor)
    mode = node.meta["val"].fake_mode
    with gm.graph.inserting_before(node):
        wide = gm.graph.call_function(
            aten.reshape.default, (node.args[0], [131, 8])
        )  # the size T has as an example
    with mode:
        wide.meta["val"] = torch.empty(131, 8)


def returned_size(gm: fx.GraphModule) -> None:
    output = next(node for node in gm.graph.nodes if node.op == "output")
    output.args = (find(gm, aten.sym_size.int),)


def use_before_definition(gm: fx.GraphModule) -> None:
    find(gm, "input_ids").prepend(find(gm, aten.add.Tensor))


WRONG: list[tuple[Callable[[fx.GraphModule], None], str]] = [
    (
        wrong_shape,
        r"'add_tensor' of norm \(calling aten.add.Tensor\).*, got float32\[s\d+, 2, 4\]",
    ),
    (wrong_dtype, r"'add_tensor' of norm.*expected float32\[s\d+, 8\], got float64\[s\d+, 8\]"),
    (wrong_size, r"'add_tensor' of norm.*expected float32\[s\d+, 8\], got float32\[s\d+ \+ 1, 8\]"),
    (wrong_size_node, r"calling aten.sym_size.int.*expected s\d+, got s\d+ \+ 1"),
    (
        wrong_result_of_many,
        r"of norm \(calling optpipe.add_rms_norm\).*expected \(float32.*, float32.*\), got \(float32",
    ),
    (no_meta, r"'add_tensor' of norm.*expected a fake tensor in meta\['val'\], got nothing"),
    (no_meta_on_an_input, r"'input_ids'.*expected a fake tensor, got nothing"),
    (real_tensor, r"'add_tensor' of norm.*real tensor.*got float32\[3, 8\]"),
    (another_fake_mode, r"'add_tensor' of norm.*another fake mode"),
    (operands_that_do_not_fit, r"'add_tensor' of norm.*cannot take its operands float32\[.*\], int64\["),
    (weight_of_another_shape, r"another type than its weight.*expected float32\[9\], got float32\[8\]"),
    (weight_that_is_not_there, r"lint"),
    (python_function, r"'add_tensor' of norm.*expected an ATen or optpipe operation"),
    (operator_on_tensors, r"'add_tensor' of norm.*computes a size.*got FakeTensor"),
    (random_operation, r"calling aten.rand_like.*draws random numbers"),
    (in_place, r"calling aten.add_.Tensor.*writes to its operands"),
    (device, r"names a place.*expected no device, got cpu"),
    (bad_item, r"takes an item"),
    (module_call, r"kind that no graph may hold.*got call_module"),
    (
        read_before_write,
        r"of layers.0.attn \(calling optpipe.paged_attention\) reads the cache 'k_cache_0'.*got none",
    ),
    (read_without_write, r"reads the cache 'k_cache_0'"),
    (write_of_another_cache, r"reads the cache 'v_cache_0'"),
    (write_to_no_cache, r"calling optpipe.kv_write\) writes to 'k_cache_0': expected a cache"),
    (
        a_length_only,
        r"calling aten.reshape\) holds only for some sizes.*Eq\(8\*T, 1048\), which T = 2 breaks",
    ),
    (returned_size, r"returns something: expected tensors"),
    (use_before_definition, r"lint"),
]


@pytest.mark.parametrize(("damage", "message"), WRONG, ids=[damage.__name__ for damage, _ in WRONG])
def test_a_broken_graph_is_refused(gm, damage, message):
    damage(gm)
    with pytest.raises(PassError, match=message):
        verify(gm)


def test_a_fixed_number_of_tokens_is_refused():
    gm = to_fx(parse_program(PAGED))
    fixed = to_fx(parse_program(PAGED.split("%1:")[0].replace("[T", "[7") + "return %0\n"))
    verify(gm)
    with pytest.raises(
        PassError, match=r"'input_ids'.*fixed number of tokens: expected a symbolic T, got \[7\]"
    ):
        verify(fixed)


@pytest.mark.parametrize(("name", "dim"), [("context_lens", 0), ("block_tables", 1), ("k_cache_0", 0)])
def test_a_size_that_a_pass_made_a_number_is_refused(gm, name, dim):
    int(find(gm, name).meta["val"].shape[dim])  # torch takes the example for the value from here on
    with pytest.raises(PassError, match="is symbolic no more"):
        verify(gm)


# --- stages -------------------------------------------------------------------------------------------------

ATTENTION = """optpipe.program 1
input %input_ids: i64[T]
input %q: f32[1, 2, T, 4]
%0: f32[1, 2, T, 4] = aten.scaled_dot_product_attention(%q, %q, %q, is_causal=true)  # attn
return %0
"""
MASK = """optpipe.program 1
input %input_ids: i64[1, T]
%0: bool[1, 1, T, T] = optpipe.mask(%input_ids, kind="causal")  # model
return %0
"""
WRITE = """optpipe.program 1
input %input_ids: i64[T]
input %k: f32[T, 2, 4]
cache %k_cache.0: f32[P, 16, 2, 4]
cache %v_cache.0: f32[P, 16, 2, 4]
optpipe.kv_write(%k, %k, %k_cache.0, %v_cache.0, %input_ids)  # attn
return %k
"""


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("aten.scaled_dot_product_attention", ATTENTION),
        ("optpipe.mask", MASK),
        ("optpipe.kv_write", WRITE),
        ("optpipe.paged_attention", PAGED),
    ],
)
def test_an_operation_stands_at_its_stages_only(op, text):
    gm = to_fx(parse_program(text))
    first, last = STAGES[op]
    for stage in Stage:
        if first <= stage <= last:
            verify(gm, stage=stage)
        else:
            with pytest.raises(PassError, match=rf"may stand from \w+ to \w+ only: .*got {stage.name}"):
                verify(gm, stage=stage)

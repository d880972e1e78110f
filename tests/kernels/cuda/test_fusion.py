"""Program → steps: what is put together, and what must not be."""

from __future__ import annotations

import pytest

from optpipe.errors import ArtifactError
from optpipe.program.parser import parse_program
from optpipe_kernels.cuda.fusion import lower
from optpipe_kernels.cuda.recipes import Dense, Grid, Joined, Plain, Quantized

HEAD = """optpipe.program 1
input %input_ids: i64[T]
input %position_ids: i64[T]
input %logit_rows: i64[R]
input %slot_mapping: i64[T]
cache %k_cache.0: f32[P, 16, 1, 8]
cache %v_cache.0: f32[P, 16, 1, 8]
input %query_start: i32[B + 1]
input %context_lens: i32[B]
input %block_tables: i32[B, M]
weight @embed: f32[10, 8] stored f32
weight @freq: f32[4] stored f32
weight @q: f32[16, 8] stored bf16
weight @k: f32[8, 8] stored bf16
weight @v: f32[8, 8] stored bf16
weight @conv: f32[8, 12] stored bf16
weight @bias: f32[8] stored bf16
weight @wide_bias: f32[12] stored bf16
weight @qq: i32[16, 1] stored i32
weight @qs: f32[16, 1] stored f16
weight @kq: i32[8, 1] stored i32
weight @ks: f32[8, 1] stored f16
"""


def steps_of(body):
    return lower(parse_program(HEAD + body))


def kernels(body):
    return [step.kernel for step in steps_of(body).steps]


QKV = """%0: f32[T, 8] = aten.embedding(@embed, %input_ids)
%1: f32[T, 16] = aten.linear(%0, @q)
%2: f32[T, 8] = aten.linear(%0, @k, @bias)
%3: f32[T, 8] = aten.linear(%0, @v)
"""
TABLES = """%4: f32[T] = aten.to.dtype(%position_ids, f32)
%5: f32[T, 1] = aten.reshape(%4, [T, 1])
%6: f32[T, 4] = aten.mul.Tensor(%5, @freq)
%7: f32[T, 8] = aten.cat([%6, %6], 1)
"""
HEADS = """%8: f32[T, 2, 8] = aten.reshape(%1, [T, 2, 8])
%9: f32[T, 1, 8] = aten.reshape(%2, [T, 1, 8])
%10: f32[T, 1, 8] = aten.reshape(%3, [T, 1, 8])
"""
ATTENTION = (
    "%13: f32[T, 2, 8] = optpipe.paged_attention({q}, %k_cache.0, %v_cache.0, %query_start, %context_lens,"
    " %block_tables, scale=0.5)\n"
)
END = """%20: f32[T, 16] = aten.reshape(%13, [T, 16])
%21: f32[R, 16] = optpipe.gather_rows(%20, %logit_rows)
return %21
"""
TURNED = """%11: f32[T, 2, 8] = optpipe.rope(%8, %7, %7, interleaved=false)
%12: f32[T, 1, 8] = optpipe.rope(%9, %7, %7, interleaved=false)
optpipe.kv_write(%12, %10, %k_cache.0, %v_cache.0, %slot_mapping)
"""


def test_joins_the_layers_of_one_input_with_zeros_where_a_bias_lacks():
    lowered = steps_of(QKV + TABLES + HEADS + TURNED + ATTENTION.format(q="%11") + END)
    product = next(step for step in lowered.steps if step.kernel == "linear")
    assert product.args[1] == Dense(("q", "k", "v"))
    assert product.args[2] == Joined(((None, 16), ("bias", 8), (None, 8)))
    assert product.windows == ((0, 16), (16, 24), (24, 32))
    assert [value.name for value in product.results] == ["1", "2", "3"]


def test_turns_queries_and_keys_where_they_are_written():
    names = kernels(QKV + TABLES + HEADS + TURNED + ATTENTION.format(q="%11") + END)
    assert names.count("rope_kv_write") == 1
    assert "rope" not in names
    assert "kv_write" not in names


def test_leaves_the_rope_of_a_query_that_somebody_reads_before_the_write():
    early = TURNED.replace("optpipe.kv_write", "%14: f32[T, 2, 8] = aten.neg(%11)\noptpipe.kv_write")
    body = QKV + TABLES + HEADS + early + ATTENTION.format(q="%11")
    names = kernels(body + "%15: f32[T, 2, 8] = aten.add.Tensor(%13, %14)\n" + END.replace("%13", "%15"))
    assert names.count("rope") == 1
    assert names.count("rope_kv_write") == 1


def test_leaves_the_rope_of_a_key_that_somebody_else_reads():
    body = QKV + TABLES + HEADS + TURNED + ATTENTION.format(q="%11")
    more = "%14: f32[T, 2, 8] = aten.add.Tensor(%13, %12)\n"
    names = kernels(body + more + END.replace("%13", "%14"))
    assert "rope_kv_write" not in names
    assert names.count("rope") == 2


def test_leaves_a_query_of_another_rope():
    other = TURNED.replace("%8, %7, %7, interleaved=false", "%8, %7, %7, interleaved=true")
    steps = steps_of(QKV + TABLES + HEADS + other + ATTENTION.format(q="%11") + END).steps
    write = next(step for step in steps if step.kernel == "rope_kv_write")
    assert write.args[0] is None
    assert not write.results
    assert sum(step.kernel == "rope" for step in steps) == 1


def test_tables_of_rope_are_wide_and_other_leftovers_are_not():
    lowered = steps_of(QKV + TABLES + HEADS + TURNED + ATTENTION.format(q="%11") + END)
    assert {"4", "5", "6", "7"} <= lowered.wide
    assert not {"0", "8", "20"} & lowered.wide
    table = next(step for step in lowered.steps if step.kernel == "aten.mul.Tensor")
    assert table.args[1] == Plain("freq", wide=True)


PLAIN_ATTENTION = "optpipe.kv_write(%9, %10, %k_cache.0, %v_cache.0, %slot_mapping)\n" + ATTENTION.format(
    q="%8"
)


def test_a_bias_added_afterwards_is_the_layers_own():
    body = QKV.replace(
        "aten.linear(%0, @v)", "aten.linear(%0, @v)\n%30: f32[T, 8] = aten.add.Tensor(%3, @bias)"
    )
    lowered = steps_of(body + HEADS.replace("%3,", "%30,") + PLAIN_ATTENTION + END)
    assert "aten.add.Tensor" not in [step.kernel for step in lowered.steps]
    product = next(step for step in lowered.steps if step.kernel == "linear")
    assert product.args[2] == Joined(((None, 16), ("bias", 8), ("bias", 8)))
    assert [value.name for value in product.results] == ["1", "2", "30"]


def test_a_bias_is_left_alone_when_the_product_is_read_without_it():
    body = QKV.replace(
        "aten.linear(%0, @v)", "aten.linear(%0, @v)\n%30: f32[T, 8] = aten.add.Tensor(%3, @bias)"
    )
    names = kernels(
        body
        + HEADS.replace("%9: f32[T, 1, 8] = aten.reshape(%2", "%9: f32[T, 1, 8] = aten.reshape(%30")
        + PLAIN_ATTENTION
        + END
    )
    assert "aten.add.Tensor" in names


def test_addmm_is_a_layer_whose_weight_is_stored_the_other_way():
    body = QKV + "%30: f32[T, 12] = aten.addmm(@wide_bias, %0, @conv)\n"
    steps = steps_of(body + HEADS + PLAIN_ATTENTION + END).steps
    layer = [step for step in steps if step.kernel == "linear"][-1]
    assert layer.args[1] == Dense(("conv",), transposed=True)
    assert layer.args[2] == Joined((("wide_bias", 12),))


def test_quantized_layers_of_one_grid_are_one_and_others_are_not():
    grids = """%0: f32[T, 8] = aten.embedding(@embed, %input_ids)
%1: f32[T, 16] = optpipe.quant_linear(%0, @qq, @qs, None, None, bits=4, group=8)
%2: f32[T, 8] = optpipe.quant_linear(%0, @kq, @ks, None, None, bits=4, group=GROUP)
%3: f32[T, 8] = aten.linear(%0, @v)
"""
    same = steps_of(grids.replace("GROUP", "8") + HEADS + PLAIN_ATTENTION + END).steps
    layer = next(step for step in same if step.kernel == "quant_linear")
    assert layer.args[1] == Quantized((Grid("qq", "qs"), Grid("kq", "ks")), 4, 8)
    assert layer.windows == ((0, 16), (16, 24))
    apart = [
        step.kernel for step in steps_of(grids.replace("GROUP", "-1") + HEADS + PLAIN_ATTENTION + END).steps
    ]
    assert apart.count("quant_linear") == 2


def test_rows_are_gathered_where_the_graph_gives_all():
    whole = QKV + HEADS + PLAIN_ATTENTION + "%20: f32[T, 16] = aten.reshape(%13, [T, 16])\nreturn %20\n"
    program = parse_program(HEAD.replace("input %logit_rows: i64[R]\n", "") + whole)
    lowered = lower(program)
    assert lowered.steps[-1].kernel == "gather_rows"
    assert lowered.output.type.shape == ("R", 16)


def test_refuses_what_is_not_paged():
    with pytest.raises(ArtifactError, match="paged"):
        lower(parse_program("optpipe.program 1\ninput %input_ids: i64[T]\nreturn %input_ids\n"))


HEADED = """%20: f32[T, 16] = aten.reshape(%13, [T, 16])
%21: f32[R, 16] = optpipe.gather_rows(%20, %logit_rows)
%22: f32[R, 16] = aten.linear(%21, @q)
{tail}return %{last}
""".replace("@q", "@square")


def tail_of(*operations):
    """What is done to the logits, each operation to the result of the one before."""
    lines = [f"%{23 + n}: f32[R, 16] = aten.{it.format(x=f'%{22 + n}')}\n" for n, it in enumerate(operations)]
    end = HEADED.format(tail="".join(lines), last=22 + len(operations))
    head = HEAD + "weight @square: f32[16, 16] stored bf16\n"
    return lower(parse_program(head + QKV + HEADS + PLAIN_ATTENTION + end)).steps


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        (["div.Tensor({x}, 8.0)"], {"factor": 0.125, "cap": None}),
        (["mul.Tensor({x}, 0.25)"], {"factor": 0.25, "cap": None}),
        (
            ["div.Tensor({x}, 32.0)", "tanh({x})", "mul.Tensor({x}, 32.0)"],
            {"factor": 1.0, "cap": 32.0},
        ),
        (
            ["mul.Tensor({x}, 2.0)", "div.Tensor({x}, 16.0)", "tanh({x})", "mul.Tensor({x}, 16.0)"],
            {"factor": 2.0, "cap": 16.0},
        ),
    ],
    ids=str,
)
def test_what_follows_the_head_is_one_step(operations, expected):
    *_, head, last = tail_of(*operations)
    assert (head.kernel, last.kernel) == ("linear", "finish_logits")
    assert last.args == head.results
    assert dict(last.kwargs) == expected


@pytest.mark.parametrize(
    "operations",
    [
        ["tanh({x})", "tanh({x})"],
        ["div.Tensor({x}, 8.0)", "add.Tensor({x}, 1.0)"],
        ["mul.Tensor({x}, 0.0)"],
        ["mul.Tensor({x}, %21)"],
    ],
    ids=str,
)
def test_anything_else_behind_the_head_is_left_as_it_is(operations):
    assert "finish_logits" not in [step.kernel for step in tail_of(*operations)]


def test_factors_behind_something_else_than_a_head_are_left_as_they_are():
    end = END.replace("return %21", "%22: f32[R, 16] = aten.mul.Tensor(%21, 0.5)\nreturn %22")
    assert kernels(QKV + HEADS + PLAIN_ATTENTION + end)[-1] == "aten.mul.Tensor"


ROUTED = """%20: f32[T, 16] = aten.reshape(%13, [T, 16])
%21: f32[T, 8] = aten.linear(%20, @experts)
{router}%41: f32[T, 2] = aten.mul.Tensor({weights}, {ids})
%42: f32[R, 2] = optpipe.gather_rows(%41, %logit_rows)
return %42
"""
ROUTERS = {
    "softmax, top-k": """%22: f32[T, 8] = aten.softmax.int(%21, -1, f32)
%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%22, 2)
""",
    "softmax, top-k, division": """%22: f32[T, 8] = aten.softmax.int(%21, 1)
%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%22, 2)
%25: f32[T, 1] = aten.sum.dim_IntList(%23, [-1], true)
%26: f32[T, 2] = aten.div.Tensor(%23, %25)
""",
    "weights that others read": """%22: f32[T, 8] = aten.softmax.int(%21, -1)
%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%22, 2)
%25: f32[T, 1] = aten.sum.dim_IntList(%23, [-1], true)
%26: f32[T, 2] = aten.div.Tensor(%23, %25)
%28: f32[T, 2] = aten.neg(%23)
""",
    "top-k, softmax": """%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%21, 2)
%26: f32[T, 2] = aten.softmax.int(%23, -1, f32)
""",
    "top-k": """%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%21, 2)
""",
    "scores that others read": """%22: f32[T, 8] = aten.softmax.int(%21, -1)
%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%22, 2)
%27: f32[T, 8] = aten.neg(%22)
""",
    "the sum of all": """%22: f32[T, 8] = aten.softmax.int(%21, -1)
%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%22, 2)
%25: f32[T, 1] = aten.sum.dim_IntList(%22, [-1], true)
%26: f32[T, 2] = aten.div.Tensor(%23, %25)
""",
    "of another dimension": """%22: f32[T, 8] = aten.softmax.int(%21, 0)
%23: f32[T, 2], %24: i64[T, 2] = aten.topk(%22, 2)
""",
}


def routed(name):
    """The steps of a router, of its logits on."""
    weights = "%26" if "%26" in ROUTERS[name] else "%23"
    end = ROUTED.format(router=ROUTERS[name], weights=weights, ids="%24")
    head = HEAD + "weight @experts: f32[8, 16] stored bf16\n"
    steps = lower(parse_program(head + QKV + HEADS + PLAIN_ATTENTION + end)).steps
    kernels_ = [step.kernel for step in steps]
    begin = kernels_.index("linear", kernels_.index("paged_attention"))
    return steps[begin + 1 : kernels_.index("aten.mul.Tensor")]


@pytest.mark.parametrize(
    ("name", "weights", "over_chosen"),
    [
        ("softmax, top-k", "23", False),
        ("softmax, top-k, division", "26", True),
        ("top-k, softmax", "26", True),
    ],
)
def test_a_routers_choice_is_one_step(name, weights, over_chosen):
    choice, *others = routed(name)
    assert (choice.kernel, choice.args[0].name) == ("choose_experts", "21")
    assert dict(choice.kwargs) == {"slots": 2, "over_chosen": over_chosen}
    assert [value.name for value in choice.results] == ["24", weights]
    assert not others


def test_weights_that_are_not_only_divided_are_those_over_all_experts():
    choice, *others = routed("weights that others read")
    assert not choice.kwargs["over_chosen"]
    assert [step.kernel for step in others] == ["aten.sum.dim_IntList", "aten.div.Tensor", "aten.neg"]


@pytest.mark.parametrize("name", ["top-k", "scores that others read", "of another dimension"])
def test_another_choice_of_experts_is_left_as_it_is(name):
    assert "choose_experts" not in [step.kernel for step in routed(name)]


def test_a_sum_over_all_scores_is_read_from_them():
    assert [step.kernel for step in routed("the sum of all")][:2] == ["aten.softmax.int", "aten.topk"]


NORMED = """%20: f32[T, 16] = aten.reshape(%13, [T, 16])
{branch}%31: f32[T, 16], %32: f32[T, 16] = optpipe.add_rms_norm(%30, %20, @second{how})
{more}%33: f32[T, 16] = aten.add.Tensor(%31, %32)
%34: f32[R, 16] = optpipe.gather_rows(%33, %logit_rows)
return %34
"""
BRANCH = "%30: f32[T, 16] = optpipe.rms_norm(%20, @first, eps={eps}, unit_offset=true)\n"


def normed(branch, more=""):
    """The steps of a branch and of the norm of its sum."""
    head = HEAD + "weight @first: f32[16] stored bf16\nweight @second: f32[16] stored bf16\n"
    end = NORMED.format(branch=branch, more=more, how=", eps=1e-06, unit_offset=true")
    steps = lower(parse_program(head + QKV + HEADS + PLAIN_ATTENTION + end)).steps
    begin = [step.kernel for step in steps].index("paged_attention")
    return steps[begin + 2 : -2]


def test_the_norm_of_a_branch_goes_into_that_of_the_sum():
    (step,) = normed(BRANCH.format(eps="1e-06"))
    assert step.kernel == "branch_add_rms_norm"
    assert [getattr(it, "name", it) for it in step.args] == ["20", "20", "second", "first"]
    assert dict(step.kwargs) == {"eps": 1e-06, "unit_offset": True, "factor": 1.0}
    assert [value.name for value in step.results] == ["31", "32"]


def test_the_factor_of_a_branch_goes_into_the_norm_of_the_sum():
    (step,) = normed("%30: f32[T, 16] = aten.mul.Tensor(%20, 0.22)\n")
    assert step.kernel == "branch_add_rms_norm"
    assert (step.args[-1], step.kwargs["factor"]) == (None, 0.22)


@pytest.mark.parametrize(
    ("branch", "more"),
    [
        (BRANCH.format(eps="1e-05"), ""),  # of another kind
        (BRANCH.format(eps="1e-06"), "%35: f32[T, 16] = aten.neg(%30)\n"),
        ("%30: f32[T, 16] = aten.mul.Tensor(%20, %20)\n", ""),
        ("%30: f32[T, 16] = aten.neg(%20)\n", ""),
    ],
    ids=["another eps", "read twice", "a product", "something else"],
)
def test_another_branch_is_left_as_it_is(branch, more):
    assert [step.kernel for step in normed(branch, more)][1] == "add_rms_norm"


SUMMED = """%20: f32[T, 16] = aten.reshape(%13, [T, 16])
{sums}%33: f32[T, 16] = optpipe.layer_norm(%32, @first, eps=1e-05)
%34: f32[T, 16] = aten.mul.Tensor(%33, %32)
{more}%35: f32[R, 16] = optpipe.gather_rows(%34, %logit_rows)
return %35
"""
ONE = "%32: f32[T, 16] = aten.add.Tensor(%1, %20)\n"
TWO = "%31: f32[T, 16] = aten.add.Tensor(%1, %20)\n%32: f32[T, 16] = aten.add.Tensor(%31, %20)\n"


def summed(sums, more=""):
    """The steps of sums and of the norm of what they come to."""
    head = HEAD + "weight @first: f32[16] stored bf16\n"
    end = SUMMED.format(sums=sums, more=more)
    steps = lower(parse_program(head + QKV + HEADS + PLAIN_ATTENTION + end)).steps
    begin = [step.kernel for step in steps].index("paged_attention")
    return steps[begin + 2 :]


@pytest.mark.parametrize(("sums", "second"), [(ONE, None), (TWO, "20")], ids=["one", "two"])
def test_sums_before_a_layer_norm_are_done_in_it(sums, second):
    step, product, _ = summed(sums)
    assert (step.kernel, product.kernel) == ("add_layer_norm", "aten.mul.Tensor")
    assert [getattr(it, "name", it) for it in step.args] == ["1", "20", second, "first", None]
    assert dict(step.kwargs) == {"eps": 1e-05}
    assert [value.name for value in step.results] == ["33", "32"]


def test_a_first_sum_that_others_read_stays():
    first, step, *_ = summed(TWO, "%36: f32[T, 16] = aten.neg(%31)\n")
    assert (first.kernel, step.kernel) == ("aten.add.Tensor", "add_layer_norm")
    assert [getattr(it, "name", it) for it in step.args[:3]] == ["31", "20", None]


def test_a_sum_serves_one_norm():
    more = "%36: f32[T, 16] = optpipe.layer_norm(%32, @first, eps=1e-05)\n"
    assert [it.kernel for it in summed(ONE, more)] == [
        "add_layer_norm",
        "aten.mul.Tensor",
        "layer_norm",
        "gather_rows",
    ]


@pytest.mark.parametrize(
    "sums",
    ["%32: f32[T, 16] = aten.mul.Tensor(%1, %20)\n", "%32: f32[T, 16] = aten.add.Tensor(%1, 1.0)\n"],
    ids=["a product", "a number"],
)
def test_a_norm_of_something_else_is_left_as_it_is(sums):
    assert [step.kernel for step in summed(sums)][1] == "layer_norm"

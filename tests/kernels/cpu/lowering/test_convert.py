"""Rules: what each node becomes, and what is left to torch, with the reason."""

import pytest

from optpipe_kernels.cpu.lowering.extent import Extent, Unit
from optpipe_kernels.cpu.lowering.recipe import Joined, Linear

HEAD = "input %ids: i64[T]\ninput %x: f32[T, 64]\n"
VIEWS = [
    "aten.reshape(%x, [T, 4, 16])", "aten.permute(%x, [1, 0])", "aten.transpose.int(%x, 0, 1)",
    "aten.slice.Tensor(%x, 1, 16, 48)", "aten.slice.Tensor(%x, -1, -16, 9223372036854775807)",
    "aten.select.int(%x, 1, -1)", "aten.unsqueeze(%x, 1)", "aten.clone(%x)", "aten.expand(%x, [T, 64])",
]  # fmt: skip
VIEW_TYPES = [
    "f32[T, 4, 16]", "f32[64, T]", "f32[64, T]", "f32[T, 32]", "f32[T, 16]", "f32[T]", "f32[T, 1, 64]",
    "f32[T, 64]", "f32[T, 64]",
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind"), list(zip(VIEWS, VIEW_TYPES, strict=True)), ids=VIEWS)
def test_views_cost_nothing(converted, call, kind):
    lowered = converted(f"{HEAD}%0: {kind} = {call}\nreturn %0\n")
    assert lowered.steps == []
    assert str(lowered.output.place.name) == "x"


def test_a_reshape_that_no_strides_can_say_is_one_copy(converted, names):
    text = "%0: f32[64, T] = aten.permute(%x, [1, 0])\n%1: f32[64*T] = aten.reshape(%0, [64*T])\nreturn %1\n"
    assert names(converted(HEAD + text)) == ["copy"]


def test_an_alias_of_the_same_dtype_and_a_conversion(converted, names):
    text = "%0: f32[T, 64] = aten.to.dtype(%x, f32)\n%1: f32[T] = aten.to.dtype(%ids, f32)\nreturn %1\n"
    assert names(converted(HEAD + text)) == ["copy"]


@pytest.mark.parametrize(
    ("call", "kind", "reason"),
    [
        ("aten.cumsum(%x, 1)", "f32[T, 64]", "aten.cumsum has no kernel"),
        ("aten.slice.Tensor(%x, 1, 0, 64, 2)", "f32[T, 32]", "a slice with a step has no kernel"),
        ("aten.add.Tensor(%x, %x, alpha=2)", "f32[T, 64]", "with alpha"),
        ("aten.repeat_interleave.self_int(%x, 2)", "f32[128*T]", "without a dimension"),
    ],
)
def test_what_no_kernel_does_is_a_segment_that_says_why(converted, call, kind, reason):
    (segment,) = converted(f"{HEAD}%0: {kind} = {call}\nreturn %0\n").segments
    assert reason in segment.reason
    assert segment.writes[0].size[0].unit is Unit.T


def test_layers_over_one_input_are_one_product_and_windows_of_it(converted, names):
    weights = "".join(f"weight @w{k}: f32[{n}, 64] stored f32\n" for k, n in enumerate((64, 32, 32)))
    calls = "".join(f"%{k}: f32[T, {n}] = aten.linear(%x, @w{k})\n" for k, n in enumerate((64, 32, 32)))
    lowered = converted(f"{HEAD}{weights}{calls}return %2\n")
    assert names(lowered) == ["linear"]
    assert lowered.output.start == Extent(96)
    assert lowered.output.stride == (Extent(128), Extent(1))
    (recipe,) = lowered.weights.values()
    assert isinstance(recipe, Linear)
    assert [part.rows for part in recipe.parts] == [64, 32, 32]


def test_layers_of_other_storage_stay_apart(converted, names):
    text = (
        "weight @a: f32[64, 64] stored f32\nweight @b: f32[64, 64] stored bf16\n"
        "%0: f32[T, 64] = aten.linear(%x, @a)\n%1: f32[T, 64] = aten.linear(%x, @b)\n"
        "%2: f32[T, 64] = aten.add.Tensor(%0, %1)\nreturn %2\n"
    )
    lowered = converted(HEAD + text)
    assert names(lowered) == ["linear", "linear", "add"]
    assert sorted(recipe.bits for recipe in lowered.weights.values()) == [16, 32]


def test_a_layer_without_a_bias_beside_one_with_gets_zeros(converted):
    text = (
        "weight @a: f32[64, 64] stored f32\nweight @b: f32[32, 64] stored f32\n"
        "weight @c: f32[32] stored f32\n"
        "%0: f32[T, 64] = aten.linear(%x, @a)\n%1: f32[T, 32] = aten.linear(%x, @b, @c)\nreturn %1\n"
    )
    joined = [it for it in converted(HEAD + text).weights.values() if isinstance(it, Joined)]
    assert [it.parts for it in joined] == [((None, 64), ("c", 32))]


GATED = (
    "weight @g: f32[96, 64] stored f32\nweight @u: f32[96, 64] stored f32\n"
    "%0: f32[T, 96] = aten.linear(%x, @g)\n%1: f32[T, 96] = aten.linear(%x, @u)\n"
    '%2: f32[T, 96] = optpipe.gated_act(%0, %1, kind="silu")\n'
)


def test_gate_and_up_are_one_gated_product(converted, names):
    assert names(converted(f"{HEAD}{GATED}return %2\n")) == ["linear_gated"]


def test_a_gate_that_something_else_reads_is_a_product_of_its_own(converted, names):
    text = f"{HEAD}{GATED}%3: f32[T, 96] = aten.add.Tensor(%0, %2)\nreturn %3\n"
    assert names(converted(text)) == ["linear", "gated_act", "add"]


def test_a_table_that_is_also_a_head_is_packed_once(converted, names):
    text = (
        "weight @e: f32[100, 64] stored f32\n%0: f32[T, 64] = aten.embedding(@e, %ids)\n"
        "%1: f32[T, 100] = aten.linear(%0, @e)\nreturn %1\n"
    )
    lowered = converted(HEAD + text)
    assert names(lowered) == ["embedding", "linear"]
    assert len(lowered.weights) == 1


def test_a_table_of_its_own_is_read_as_it_is_stored(converted, names):
    text = "weight @e: f32[100, 64] stored bf16\n%0: f32[T, 64] = aten.embedding(@e, %ids)\nreturn %0\n"
    lowered = converted(HEAD + text)
    assert names(lowered) == ["index_select"]
    assert lowered.steps[0].reads[0].dtype == "bf16"


def test_siblings_that_no_kernel_takes_are_left_to_torch_one_by_one(converted):
    weights = "".join(
        f"weight @{name}: i32[96, 8] stored i32\nweight @{name}s: f16[96, 4] stored f16\n" for name in "abgu"
    )
    calls = "".join(
        f"%{k}: f32[T, 96] = optpipe.quant_linear(%x, @{name}, @{name}s, bits=4, group=16)\n"
        for k, name in enumerate("abgu")
    )
    act = '%4: f32[T, 96] = optpipe.gated_act(%2, %3, kind="silu")\n'
    lowered = converted(f"{HEAD}{weights}{calls}{act}%5: f32[T, 96] = aten.add.Tensor(%0, %1)\nreturn %5\n")
    ops = [step.node.op if step in lowered.segments else step.kernel for step in lowered.steps]
    assert ops == ["optpipe.quant_linear"] * 4 + ["gated_act", "add"]

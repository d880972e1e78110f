"""``quant``: what is rewritten and what is not, which grids are kept, and that the numbers are the grid's."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from optpipe.dialect.row_wise_linear import rounded_rows
from optpipe.errors import PassError, PipelineError
from optpipe.graph.canonical import canonicalize
from optpipe.graph.interpreter import Interpreter
from optpipe.pipeline import Lossy, Stage
from optpipe.pipeline.context import PassContext
from optpipe.pipeline.text import parse_pipeline, print_pipeline
from optpipe.program import parse_program, to_fx
from optpipe.quantize.rtn import round_to_nearest
from optpipe.testing import check_ir, check_text, tolerance
from optpipe.testing.ir import random_weights
from optpipe.verifier import verify
from optpipe.weights.grid import GridInfo, QuantizedTensor
from optpipe.weights.store import GridWeight, LazyWeight, TensorWeight, Weights
from optpipe_passes.layer_inputs import LayerInputs
from optpipe_passes.quant import Quant
from optpipe_passes.quant_row_wise import SCHEMES

LINEAR = """
    optpipe.program 1
    input %x: f32[T, 64]
    weight @q.weight: f32[48, 64] stored bf16
    weight @q.bias: f32[48] stored f32
    weight @o.weight: f32[64, 48] stored bf16
    weight @head.weight: f32[96, 64] stored f32
    %0: f32[T, 48] = aten.linear(%x, @q.weight, @q.bias)  # model.q
    %1: f32[T, 64] = aten.linear(%0, @o.weight)  # model.o
    %2: f32[T, 96] = aten.linear(%1, @head.weight)  # head
    return %2
"""

TIED = """
    optpipe.program 1
    input %input_ids: i64[T]
    weight @embed.weight: f32[96, 64] stored f32
    weight @q.weight: f32[64, 64] stored f32
    %0: f32[T, 64] = aten.embedding(@embed.weight, %input_ids)  # embed
    %1: f32[T, 64] = aten.linear(%0, @q.weight)  # model.q
    %2: f32[T, 96] = aten.linear(%1, @embed.weight)  # lm_head
    return %2
"""

SHARED = """
    optpipe.program 1
    input %x: f32[T, 64]
    weight @a.weight: f32[64, 64] stored f32
    %0: f32[T, 64] = aten.linear(%x, @a.weight)  # model.a
    %1: f32[T, 64] = aten.linear(%0, @a.weight)  # model.b
    %2: f32[T, 64] = aten.tanh(%1)
    return %2
"""

EXPERTS = """
    optpipe.program 1
    input %x: f32[T, 64]
    weight @gate.weight: f32[4, 64] stored f32
    weight @experts.gate_up_proj: f32[4, 64, 64] stored f32
    weight @experts.down_proj: f32[4, 64, 32] stored f32
    %0: f32[T, 4] = aten.linear(%x, @gate.weight)  # gate
    %1: f32[T, 4] = aten.softmax.int(%0, -1)
    %2: f32[T, 2], %3: i64[T, 2] = aten.topk(%1, 2)
    %4: f32[T, 64] = optpipe.moe(%x, %3, %2, @experts.gate_up_proj, @experts.down_proj, kind="silu")  # moe
    return %4
"""


class Given:
    """Calibration windows for a test."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def windows(self, count: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return [torch.randint(self.vocabulary, (64,), generator=generator) for _ in range(count)]


class Rewritten:
    """A program before and after ``quant``."""

    def __init__(
        self, text: str, quant: Quant, weights: Mapping[str, LazyWeight] | None = None, **context: Any
    ) -> None:
        program = parse_program(textwrap.dedent(text).strip() + "\n")
        stored = {weight.name: weight.stored for weight in program.weights.values()}
        self.before, self.gm = to_fx(program), to_fx(program)
        self.source = random_weights(self.before, {}, stored)
        self.source.update(weights or {})
        self.weights = self.source.overlay()
        self.cx = PassContext(self.gm, self.weights, {}, **context)
        quant.apply(self.gm.graph, self.cx)
        canonicalize(self.gm)
        verify(self.gm, stage=Stage.QUANT)

    def missed(self) -> dict[str, str]:
        return {remark.where: remark.text for remark in self.cx.remarks if remark.kind == "missed"}

    def run(self, **inputs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = Interpreter(self.gm, self.weights).run(inputs)
        return made

    def run_before(self, weights: Weights | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = Interpreter(self.before, weights or self.source).run(inputs)
        return made


def on_grid(shape: tuple[int, ...], grid: GridInfo, seed: int = 3) -> GridWeight:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return GridWeight(round_to_nearest(values, grid))


def x(tokens: int = 5, columns: int = 64) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(7))


def test_linear_layers_are_rewritten_with_their_biases() -> None:
    check_ir(
        Quant(),
        LINEAR.replace("48", "32"),
        """
        CHECK:      quant_linear(%x, @q.weight_packed, @q.weight_scale, @q.weight_minimum, @q.bias, bits=4,
        CHECK-SAME: group=32)
        CHECK-NEXT: quant_linear({{%.*}}, @o.weight_packed, @o.weight_scale, @o.weight_minimum, None, bits=4
        CHECK-NEXT: quant_linear({{%.*}}, @head.weight_packed, @head.weight_scale, None, None, bits=8, group
        CHECK-NOT:  aten.linear
        """,
    )


def test_symmetric_grids_have_no_minimum() -> None:
    check_ir(
        Quant(bits=8),
        LINEAR,
        "CHECK: optpipe.quant_linear(%x, @q.weight_packed, @q.weight_scale, None, @q.bias, bits=8, group=-1)",
    )


def test_running_twice_changes_nothing_more() -> None:
    once = check_ir(Quant(), LINEAR, "CHECK: quant_linear")
    twice = check_ir(Quant(), LINEAR, "CHECK: quant_linear", runs=2)
    from optpipe.program import from_fx, print_program

    assert print_program(from_fx(once)) == print_program(from_fx(twice))


def test_conv1d_weights_are_turned_outputs_first() -> None:
    text = """
        optpipe.program 1
        input %x: f32[T, 64]
        weight @c.weight: f32[64, 24] stored f32
        weight @c.bias: f32[24] stored f32
        %0: f32[T, 24] = aten.addmm(@c.bias, %x, @c.weight)  # c
        %1: f32[T, 24] = aten.tanh(%0)
        return %1
    """
    made = Rewritten(text, Quant())
    check_text(
        made.gm,
        "CHECK: quant_linear(%x, @c.weight_packed, @c.weight_scale, @c.weight_minimum, @c.bias, bits=4",
    )
    values = made.source["c.weight"].load()
    rounded = round_to_nearest(values.T, GridInfo(4, 32, True)).dequantize()
    wanted = torch.tanh(x() @ rounded.T + made.source["c.bias"].load())
    torch.testing.assert_close(made.run(x=x()), wanted, **tolerance("float32"))


@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize(
    "quant", [Quant(), Quant(zero="none"), Quant(bits=8), Quant(bits=8, group=32)], ids=str
)
def test_the_graph_computes_with_the_rounded_weights(quant: Quant, tokens: int) -> None:
    made = Rewritten(LINEAR.replace("48", "32"), quant)
    rounded = made.source.overlay()
    for name in ("q.weight", "o.weight"):
        rounded.set(name, round_to_nearest(made.source[name].load(), quant.grid).dequantize())
    head = quant.grid if quant.bits == 8 else GridInfo(8, -1, False)
    rounded.set("head.weight", round_to_nearest(made.source["head.weight"].load(), head).dequantize())
    values = x(tokens)
    torch.testing.assert_close(
        made.run(x=values), made.run_before(rounded, x=values), **tolerance("float32 sum")
    )


def test_inputs_that_do_not_fill_groups_are_left_alone() -> None:
    made = Rewritten(LINEAR, Quant())
    assert "not divisible into groups of 32" in made.missed()["model.o"]
    check_text(made.gm, "CHECK: aten.linear({{%.*}}, @o.weight)")


def test_smaller_groups_are_taken_where_the_inputs_fill_those() -> None:
    made = Rewritten(LINEAR.replace("48", "96"), Quant(group=128))
    groups = [
        node.kwargs["group"]
        for node in made.gm.graph.find_nodes(
            op="call_function", target=torch.ops.optpipe.quant_linear.default
        )
    ]
    assert groups == [64, 32, -1]
    assert [remark.what for remark in made.cx.remarks] == [
        "aten.linear in groups of 64",
        "aten.linear in groups of 32",
        "aten.linear in 8 bits and a scale a row",
    ]


def test_computed_weights_are_left_alone() -> None:
    text = """
        optpipe.program 1
        input %x: f32[T, 64]
        weight @a: f32[32, 64] stored f32
        %0: f32[32, 64] = aten.mul.Tensor(@a, 2.0)
        %1: f32[T, 32] = aten.linear(%x, %0)  # odd
        %2: f32[T, 32] = aten.matmul(%1, %1)  # scores
        return %1
    """
    made = Rewritten(text.replace("    %2: f32[T, 32] = aten.matmul(%1, %1)  # scores\n", ""), Quant())
    assert made.missed() == {"odd": "its weight is computed"}
    assert made.cx.rewrites == 0


@pytest.mark.parametrize(
    ("pattern", "where"), [("*.q", "model.q"), ("head", "head"), ("model.[op]", "model.o")]
)
def test_skipped_modules_are_left_alone(pattern: str, where: str) -> None:
    made = Rewritten(LINEAR.replace("48", "32"), Quant(skip=(pattern,)))
    assert made.missed() == {where: f"skip={pattern} leaves it alone"}
    assert made.cx.rewrites == 2


def test_the_head_can_be_left_alone_or_share_the_bits() -> None:
    assert "head=none" in Rewritten(LINEAR, Quant(head=None)).missed()["head"]
    made = Rewritten(LINEAR, Quant(head=4))
    check_text(
        made.gm,
        "CHECK: @head.weight_packed, @head.weight_scale, @head.weight_minimum, None, bits=4, group=32",
    )
    made = Rewritten(LINEAR, Quant(bits=8, head=4))
    check_text(made.gm, "CHECK: @head.weight_packed, @head.weight_scale, None, None, bits=4, group=32")


def test_a_tied_embedding_shares_the_heads_table() -> None:
    made = Rewritten(TIED, Quant())
    check_text(
        made.gm,
        """
        CHECK: quant_embedding(%input_ids, @embed.weight_packed, @embed.weight_scale, None, bits=8, group=-1)
        CHECK: quant_linear({{%.*}}, @embed.weight_packed, @embed.weight_scale, None, None, bits=8, group=-1)
        """,
    )
    ids = torch.tensor([3, 95, 3])
    assert made.run(input_ids=ids).shape == (3, 96)


def test_for_other_loaders_the_embedding_stays_plain_and_the_head_is_untied() -> None:
    shared = TensorWeight(torch.randn(96, 64, generator=torch.Generator().manual_seed(1)))
    made = Rewritten(TIED, Quant(zero="none"), {"embed.weight": shared, "lm_head.weight": shared})
    check_text(
        made.gm,
        """
        CHECK: aten.embedding(@embed.weight, %input_ids)
        CHECK: @lm_head.weight_packed, @lm_head.weight_scale, None
        """,
    )
    assert "zero=float packs them" in made.missed()["embed"]
    assert made.weights["embed.weight"] is shared


def test_an_embedding_stays_plain_when_the_head_does() -> None:
    made = Rewritten(TIED, Quant(head=None))
    assert "unpacked" in made.missed()["embed"]


@pytest.mark.parametrize(
    ("arriving", "quant", "stays"),
    [
        (GridInfo(4, 32, True), Quant(), True),
        (GridInfo(4, 64, False), Quant(), True),  # symmetric is a case of float, any group will do
        (GridInfo(4, 32, False), Quant(zero="none"), True),
        (GridInfo(4, 32, True), Quant(zero="none"), False),
        (GridInfo(4, 32, True), Quant(group=64), False),
        (GridInfo(4, 64, True), Quant(group=64), True),
        (GridInfo(8, 32, False), Quant(), False),
        (GridInfo(8, 32, False), Quant(bits=8), True),
        (GridInfo(4, 32, True), Quant(bits=8), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_grids_that_arrive(arriving: GridInfo, quant: Quant, stays: bool, algorithm: str) -> None:
    quant = Quant(quant.bits, quant.group, quant.zero, algorithm, quant.head, quant.skip)  # type: ignore[arg-type]
    weight = on_grid((64, 64), arriving)
    made = Rewritten(TIED, quant, {"q.weight": weight}, calibration=Given(96))
    linears = made.gm.graph.find_nodes(op="call_function", target=torch.ops.optpipe.quant_linear.default)
    node = next(node for node in linears if node.meta["path"] == "model.q")
    grid = arriving if stays else quant.grid
    assert (node.kwargs["bits"], node.kwargs["group"]) == (grid.bits, grid.group)
    if stays:
        assert torch.equal(dequantized(made, "q.weight", grid), weight.load())


def dequantized(made: Rewritten, name: str, grid: GridInfo) -> torch.Tensor:
    from optpipe.quantize.pack import unpack

    minimum = made.weights[f"{name}_minimum"].load() if grid.has_minimum else None
    codes = unpack(made.weights[f"{name}_packed"].load(), grid.bits, 64)
    return QuantizedTensor(
        codes, made.weights[f"{name}_scale"].load(), minimum, grid.bits, grid.group
    ).dequantize()


@pytest.mark.parametrize("quant", [Quant(), Quant(zero="none"), Quant(bits=8)], ids=str)
def test_a_table_of_eight_bits_keeps_its_grid_as_the_head(quant: Quant) -> None:
    grid = GridInfo(8, 32, False)
    weight = on_grid((96, 64), grid)
    made = Rewritten(TIED, quant, {"embed.weight": weight, "lm_head.weight": weight})
    name = "embed.weight" if quant.has_minimum else "lm_head.weight"
    assert torch.equal(dequantized(made, name, grid), weight.load())


def test_an_untied_embedding_is_packed_where_that_is_exact() -> None:
    untied = TIED.replace("%1, @embed.weight)", "%1, @head.weight)").replace(
        "    weight @q", "    weight @head.weight: f32[96, 64] stored f32\n    weight @q"
    )
    weight = on_grid((96, 64), GridInfo(8, 32, False))
    made = Rewritten(untied, Quant(), {"embed.weight": weight})
    check_text(
        made.gm, "CHECK: optpipe.quant_embedding(%input_ids, @embed.weight_packed, @embed.weight_scale, None"
    )
    assert "arrives unquantized" in Rewritten(untied, Quant()).missed()["embed"]


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_are_packed_and_their_router_is_not(transposed: bool) -> None:
    text = EXPERTS
    if transposed:
        text = text.replace('kind="silu"', 'kind="silu", transposed=true').replace(
            "[4, 64, 32]", "[4, 32, 64]"
        )
    made = Rewritten(text, Quant())
    assert made.missed() == {"gate": "it chooses experts"}
    check_text(
        made.gm,
        """
        CHECK: aten.linear(%x, @gate.weight)
        CHECK: optpipe.quant_moe(%x, {{%.*}}, {{%.*}}, @experts.gate_up_proj_packed,
        CHECK-SAME: @experts.gate_up_proj_scale, @experts.gate_up_proj_minimum, @experts.down_proj_packed,
        CHECK-SAME: bits=4, group=32
        CHECK-NOT: transposed
        """,
    )
    rounded = made.source.overlay()
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        values = made.source[name].load()
        turned = values.transpose(1, 2) if transposed else values
        back = round_to_nearest(turned, GridInfo(4, 32, True)).dequantize()
        rounded.set(name, back.transpose(1, 2) if transposed else back)
    torch.testing.assert_close(made.run(x=x()), made.run_before(rounded, x=x()), **tolerance("float32 sum"))


def test_experts_on_no_common_grid_are_left_alone() -> None:
    text = EXPERTS.replace("[4, 64, 32]", "[4, 64, 20]").replace("[4, 64, 64]", "[4, 40, 64]")
    assert "20 inputs" in Rewritten(text, Quant()).missed()["moe"]


def test_large_weights_are_rounded_by_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Rewritten(LINEAR, Quant())
    monkeypatch.setattr("optpipe_passes.quant.SLAB_BYTES", 1000)
    slabs = Rewritten(LINEAR, Quant())
    for part in ("packed", "scale", "minimum"):
        assert torch.equal(whole.weights[f"q.weight_{part}"].load(), slabs.weights[f"q.weight_{part}"].load())


def test_compensation_lowers_the_error_of_the_layers_outputs() -> None:
    ids = Given(96).windows(9)[-1]
    errors = []
    for algorithm in ("rtn", "gptq"):
        made = Rewritten(TIED, Quant(zero="none", algorithm=algorithm, head=None), calibration=Given(96))  # type: ignore[arg-type]
        errors.append(float((made.run(input_ids=ids) - made.run_before(input_ids=ids)).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_compensation_without_text_is_an_error_when_it_was_asked_for() -> None:
    with pytest.raises(PassError, match="needs calibration text"):
        Rewritten(TIED, Quant(algorithm="gptq"))
    assert Rewritten(TIED, Quant()).cx.rewrites == 3


def test_four_bits_are_compensated_unless_told_otherwise() -> None:
    def words(quant: Quant) -> torch.Tensor:
        return Rewritten(TIED, quant, calibration=Given(96)).weights["q.weight_packed"].load()

    assert torch.equal(words(Quant()), words(Quant(algorithm="gptq")))
    assert not torch.equal(words(Quant()), words(Quant(algorithm="rtn")))
    assert torch.equal(words(Quant(bits=8)), words(Quant(bits=8, algorithm="rtn")))


def test_layer_inputs_are_those_of_a_plain_run() -> None:
    program = parse_program(textwrap.dedent(TIED).strip() + "\n")
    gm = to_fx(program)
    weights = random_weights(gm, {}, {})
    layers = [node for node in gm.graph.nodes if node.target is torch.ops.aten.linear.default]
    windows = Given(96).windows(3)
    streamed = dict(LayerInputs(gm, weights).stream(windows, {node: node.args[0] for node in layers}))  # type: ignore[misc]
    shown = to_fx(program)
    output = next(node for node in shown.graph.nodes if node.op == "output")
    output.args = (
        [node.args[0] for node in shown.graph.nodes if node.target is torch.ops.aten.linear.default],
    )
    seen = Interpreter(shown, weights).run_many([{"input_ids": window} for window in windows])
    assert list(streamed) == layers
    for layer, inputs in enumerate(streamed.values()):
        assert all(torch.equal(mine, lane[layer]) for mine, lane in zip(inputs, seen, strict=True))


def test_left_out_rewrites_leave_their_weights_alone() -> None:
    from optpipe.pipeline.context import Numbering

    made = Rewritten(LINEAR, Quant(), numbering=Numbering((range(1, 2),)))
    check_text(made.gm, "CHECK: quant_linear(%x, @q.weight_packed\nCHECK: aten.linear({{%.*}}, @head.weight)")
    assert "head.weight_packed" not in made.weights


@pytest.mark.parametrize(
    "text",
    [
        "quant",
        "quant{bits=8}",
        "quant{zero=none}",
        "quant{group=-1 zero=float algorithm=gptq head=4}",
        "quant{head=none}",
        "quant{skip=*.k_proj|lm_head}",
    ],
)
def test_options_print_and_parse_back(text: str) -> None:
    (quant,) = parse_pipeline(text, {"quant": Quant})
    assert print_pipeline([quant]) == text


def test_defaults_follow_the_bits() -> None:
    assert Quant().grid == GridInfo(4, 32, True)
    assert Quant(bits=8).grid == GridInfo(8, -1, False)
    assert Quant(zero="none", group=128).grid == GridInfo(4, 128, False)


def promised(**options: Any) -> float:
    contract = Quant(**options).contract()
    assert isinstance(contract, Lossy)
    return contract.max_kld


def test_coarser_grids_promise_less() -> None:
    assert promised(bits=8) < promised() <= promised(zero="none") <= promised(zero="none", group=128)
    assert promised(bits=8) == promised(bits=8, algorithm="gptq")


def test_rounding_promises_less_than_compensation() -> None:
    assert promised() < promised(algorithm="rtn")
    assert promised(zero="none") < promised(zero="none", algorithm="rtn")


@pytest.mark.parametrize(("scheme", "kind"), [("w8a8", "i8"), ("fp8", "f8")])
def test_schemes_round_activations_and_leave_the_head_theirs(scheme: Any, kind: str) -> None:
    check_ir(
        Quant(scheme=scheme),
        LINEAR,
        f"""
        CHECK:      weight @q.weight: {kind}[48, 64] stored {kind}
        CHECK:      weight @q.weight_scale: f32[48, 1] stored f32
        CHECK:      optpipe.row_wise_linear(%x, @q.weight, @q.weight_scale, @q.bias)
        CHECK-NEXT: optpipe.row_wise_linear({{{{%.*}}}}, @o.weight, @o.weight_scale, None)
        CHECK-NEXT: quant_linear({{{{%.*}}}}, @head.weight_packed, @head.weight_scale, None, None, bits=8
        """,
    )


@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
def test_a_scheme_computes_with_rounded_rows(scheme: Any) -> None:
    made = Rewritten(LINEAR, Quant(scheme=scheme, head=None))
    rounded = made.source.overlay()
    for name in ("q.weight", "o.weight"):
        codes, scale = rounded_rows(made.source[name].load().float(), SCHEMES[scheme])
        rounded.set(name, codes * scale)
    values = x() / 8  # results are sums of some hundreds
    smooth = Interpreter(made.gm, made.weights, rounds=False).run({"x": values})
    torch.testing.assert_close(smooth, made.run_before(rounded, x=values), **tolerance("float32 sum"))
    assert (made.run(x=values) - smooth).abs().max() > 1e-4


def test_a_scheme_leaves_layers_alone_that_it_cannot_have() -> None:
    made = Rewritten(LINEAR.replace("48", "40"), Quant(scheme="w8a8"))
    assert made.missed()["model.o"] == "its 40 inputs are not a multiple of 16"
    assert Rewritten(LINEAR, Quant(scheme="fp8", skip=("*.q",))).missed()["model.q"].startswith("skip=*.q")
    made = Rewritten(SHARED, Quant(scheme="w8a8"))
    assert made.missed()["model.a"] == "another operation reads its weight"


def test_a_scheme_on_rows_of_int8_keeps_them() -> None:
    arriving = on_grid((48, 64), GridInfo(8, -1, False))
    made = Rewritten(LINEAR, Quant(scheme="w8a8"), {"q.weight": arriving})
    values = made.weights["q.weight"].load().float() * made.weights["q.weight_scale"].load()
    assert torch.equal(values, arriving.load())


def test_conv1d_weights_become_rows_outputs_first() -> None:
    text = """
        optpipe.program 1
        input %x: f32[T, 64]
        weight @c.weight: f32[64, 32] stored f32
        weight @c.bias: f32[32] stored f32
        %0: f32[T, 32] = aten.addmm(@c.bias, %x, @c.weight)  # c
        %1: f32[T, 32] = aten.tanh(%0)
        return %1
    """
    made = Rewritten(text, Quant(scheme="w8a8"))
    check_text(made.gm, "CHECK: row_wise_linear(%x, @c.weight, @c.weight_scale, @c.bias)")
    assert made.weights["c.weight"].shape == (32, 64)


def test_experts_of_a_scheme_have_weights_of_8_bits() -> None:
    made = Rewritten(EXPERTS, Quant(scheme="fp8"))
    check_text(made.gm, "CHECK: optpipe.quant_moe({{.*}}bits=8, group=-1")


@pytest.mark.parametrize("options", [{"bits": 4}, {"group": 32}, {"zero": "float"}, {"algorithm": "gptq"}])
def test_schemes_have_one_grid(options: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=r"scheme=fp8} has .* and no other"):
        Quant(scheme="fp8", **options)
    assert Quant(scheme="fp8", bits=8, group=-1, zero="none", algorithm="rtn").grid == GridInfo(8, -1, False)

"""``balance-channels``: what it finds, one test for each guard, the scales, and the numbers."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from optpipe.program import parse_program, to_fx
from optpipe.quantize.rtn import round_to_nearest
from optpipe.testing import assert_contract, save_tiny
from optpipe.weights.grid import GridInfo
from optpipe_balance_channels.balance_channels import exact, find_channels
from optpipe_balance_channels.scales import best_scale, output_error, power_of_two

GRID = GridInfo(4, 32, has_minimum=False)
NORM = """optpipe.program 1
input %h: f32[T, 32]
weight @norm: f32[32] stored f32
weight @q: f32[8, 32] stored f32
weight @k: f32[4, 32] stored f32
%x: f32[T, 32] = optpipe.rms_norm(%h, @norm, eps=1e-06, unit_offset=false)
%1: f32[T, 8] = aten.linear(%x, @q)
%2: f32[T, 4] = aten.linear(%x, @k)
return %1, %2
"""
MLP = """optpipe.program 1
input %h: f32[T, 8]
input %gate: f32[T, 32]
weight @up: f32[32, 8] stored f32
weight @down: f32[8, 32] stored f32
%1: f32[T, 32] = aten.linear(%h, @up)
%2: f32[T, 32] = optpipe.gated_act(%gate, %1, kind="silu")
%3: f32[T, 8] = aten.linear(%2, @down)
return %3
"""


def found(text):
    """For each place: its source, and the weights that read it."""
    graph = to_fx(parse_program(text)).graph
    return [(str(it.source.target), [str(node.target) for node in it.weights]) for it in find_channels(graph)]


def test_finds_what_lies_between_a_norm_and_its_linears():
    assert found(NORM) == [("norm", ["q", "k"])]


def test_finds_what_lies_between_the_halves_of_an_mlp():
    assert found(MLP) == [("up", ["down"])]


@pytest.mark.parametrize(
    "text",
    [
        NORM.replace("unit_offset=false", "unit_offset=true"),
        NORM.replace("return %1", "return %x, %1"),
        MLP.replace("return %3", "return %1, %3"),
        MLP.replace('"silu")\n', '"silu")\n%4: f32[T, 32] = aten.neg(%2)\n').replace(
            "return %3", "return %4, %3"
        ),
    ],
    ids=["one plus weight", "normed value used", "up used", "activation used"],
)
def test_leaves_alone_what_something_else_reads(text):
    assert found(text) == []


def test_scales_are_powers_of_two_and_exact():
    scale = power_of_two(torch.tensor([1e-5, 0.3, 1.0, 70.0]))
    assert torch.equal(scale, torch.exp2(scale.log2().round()))
    assert exact(torch.randn(3, 4).bfloat16(), scale)
    assert not exact(torch.tensor([6e-8], dtype=torch.float16), torch.tensor([0.5]))


def test_channels_with_much_flow_are_spared():
    torch.manual_seed(0)
    inputs, weights = torch.randn(64, 32), torch.randn(16, 32)
    inputs[:, 3] *= 50
    scale = best_scale(inputs, weights, GRID)
    assert scale[3] == scale.max() > scale.median()
    importance = inputs.square().mean(0)
    assert output_error(weights, scale, importance, GRID) < output_error(
        weights, torch.ones(32), importance, GRID
    )


def test_the_error_is_that_of_the_grid():
    torch.manual_seed(0)
    weights, ones = torch.randn(4, 32), torch.ones(32)
    rounded = round_to_nearest(weights, GRID).dequantize()
    expected = float((rounded - weights).square().sum())
    assert output_error(weights, ones, ones, GRID) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def uneven(tmp_path):
    """A tiny Llama through a few channels of which much more flows than through the others."""
    folder = save_tiny("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("layernorm.weight"):
            weight[3:6] *= 64
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_keeps_its_contract_and_scales_where_flow_is_uneven(uneven):
    """Three places a layer: behind each norm and in the MLP. The logits stay as they are, to the bit."""
    result = assert_contract(uneven, "balance-channels")
    assert result.rewrites + result.missed == 6
    scaled = {it.where for it in result.remarks if it.kind == "applied"}
    assert {"model.layers.0.input_layernorm", "model.layers.0", "model.layers.1"} <= scaled
    assert {it.value for it in result.findings if "float64" not in it.check} == {0.0}
    assert all(it.value < 1e-12 for it in result.findings)


def test_leaves_alone_norms_that_add_one_to_their_weight():
    assert all("rms_norm" not in it.what for it in assert_contract("gemma3", "balance-channels").remarks)

"""``row_wise_linear`` against codes and scales made one by one."""

import pytest
import torch

from optpipe.dialect.row_wise_linear import LARGEST, rounded_rows, row_wise_linear, smooth
from optpipe.errors import ArtifactError
from optpipe.graph.interpreter import Interpreter
from optpipe.program import parse_program, to_fx
from optpipe.testing import tolerance
from optpipe.weights.store import Weights

KINDS = [torch.int8, torch.float8_e4m3fn]
TEXT = """optpipe.program 1
input %x: f32[T, 48]
weight @q.weight: {kind}[7, 48] stored {kind}
weight @q.weight_scale: f32[7, 1] stored f32
%0: f32[T, 7] = optpipe.row_wise_linear(%x, @q.weight, @q.weight_scale, None)  # q
return %0
"""


def layer(randn, kind):
    codes, scale = rounded_rows(randn(7, 48), kind)
    return codes.to(kind), scale


def expected(x, weight, scale):
    """In float64, one row after the other."""
    rows = []
    for row in x.double():
        step = row.abs().max() / LARGEST[weight.dtype] if row.any() else torch.tensor(1.0)
        codes = row / step
        codes = codes.round() if weight.dtype == torch.int8 else codes.float().to(weight.dtype).double()
        rows.append((weight.double() @ codes) * step * scale[:, 0].double())
    return torch.stack(rows).float()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_activations_are_rounded_token_by_token(randn, kind):
    weight, scale = layer(randn, kind)
    x = randn(5, 48) * torch.tensor([[1e-3], [1.0], [40.0], [0.0], [3.0]])
    found = row_wise_linear(x, weight, scale)
    torch.testing.assert_close(found, expected(x, weight, scale), **tolerance("float32 sum"))
    assert not found[3].any()
    assert not torch.allclose(found, smooth(x, weight, scale), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_biases_are_added_after_the_scales(randn, kind):
    weight, scale = layer(randn, kind)
    x, bias = randn(2, 3, 48), randn(7)
    torch.testing.assert_close(
        row_wise_linear(x, weight, scale, bias) - bias, row_wise_linear(x, weight, scale),
        **tolerance("float32 sum"),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_codes_are_their_own_codes(randn, kind):
    codes, _ = rounded_rows(randn(4, 32), kind)
    again, one = rounded_rows(codes, kind)
    assert torch.equal(again, codes)
    assert torch.equal(one, torch.ones(4, 1))
    assert float(codes.abs().max()) == LARGEST[kind]


@pytest.mark.parametrize(("kind", "name"), [(torch.int8, "i8"), (torch.float8_e4m3fn, "f8")])
def test_an_interpreter_may_leave_the_rounding_out(randn, kind, name):
    weight, scale = layer(randn, kind)
    x, weights = randn(3, 48), Weights()
    weights.set("q.weight", weight)
    weights.set("q.weight_scale", scale)
    gm = to_fx(parse_program(TEXT.format(kind=name)))
    rounded, plain = (Interpreter(gm, weights, rounds=rounds).run({"x": x}) for rounds in (True, False))
    assert torch.equal(rounded, row_wise_linear(x, weight, scale))
    torch.testing.assert_close(plain, x @ (weight.float() * scale).T, **tolerance("float32 sum"))


def test_other_weights_are_refused():
    with pytest.raises(
        ArtifactError, match=r"rows of int8 or float8 e4m3 with a scale each, got .* of torch.int16"
    ):
        to_fx(parse_program(TEXT.format(kind="i16")))

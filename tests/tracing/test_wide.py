"""The model in float64: what its code calls float32, and differences that float32's rounding would hide."""

import json

import pytest
import torch

from optpipe.errors import TraceError
from optpipe.optimizer import optimize
from optpipe.pipeline.checks import NOISE_FACTOR
from optpipe.sources.source import ModelSource
from optpipe.testing import tiny_model, weights_of
from optpipe.tracing import attention_hook
from optpipe.tracing.check import check_trace, probes_for
from optpipe.tracing.eager import EagerModel
from optpipe.tracing.trace import trace
from optpipe.tracing.wide import Float32MeansFloat64


def source_of(model):
    config = json.loads(model.config.to_json_string(use_diff=False))
    weights = weights_of(model)
    return ModelSource(
        config, weights, {}, "a tiny model", {}, sum(w.nbytes for w in weights.values()), "f32"
    )


CASTS = {
    "float()": lambda x: x.float(),
    "to a dtype": lambda x: x.to(torch.float32),
    "to a named dtype": lambda x: x.to(dtype=torch.float32),
    "a softmax": lambda x: x.softmax(-1, dtype=torch.float32),
    "a new tensor": lambda x: x + torch.zeros(3, dtype=torch.float32),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_what_names_float32_is_not_rounded(cast):
    x = torch.arange(1, 4) / torch.tensor(3, dtype=torch.float64)
    with Float32MeansFloat64():
        made = cast(x)
    assert made.dtype == torch.float64
    exact = x.softmax(-1) if cast is CASTS["a softmax"] else x
    assert torch.equal(made, exact)


def test_a_number_of_the_code_keeps_the_value_that_float32_has_for_it():
    with Float32MeansFloat64():
        made = torch.tensor(0.1)
    assert made.dtype == torch.float64
    assert made.item() == torch.tensor(0.1).item() != 0.1


def test_the_lowest_number_of_float64_is_no_infinity():
    """XGLM asks for the lowest number of its scores' dtype, and names no dtype for the tensor it makes."""
    lowest = torch.finfo(torch.float64).min
    with Float32MeansFloat64():
        made, whole = torch.tensor(lowest), torch.tensor([1, 2])
    assert made.item() == lowest
    assert whole.dtype == torch.int64


def test_float64_logits_are_the_models_without_its_rounding():
    model = tiny_model("llama")
    ids = torch.arange(20)[None]
    narrow, wide = (
        EagerModel(model, weights_of(model), dtype=dtype).logits(ids)
        for dtype in (torch.float32, torch.float64)
    )
    assert wide.dtype == torch.float64
    assert 0 < (narrow - wide).abs().max() < 1e-4


def test_a_difference_far_below_float32s_rounding_is_refused(monkeypatch, tmp_path):
    plain = attention_hook.attention_hook

    def nearly(*args, scaling, **kwargs):
        return plain(*args, scaling=scaling * (1 + 1e-7), **kwargs)

    monkeypatch.setattr(attention_hook, "attention_hook", nearly)
    with pytest.raises(TraceError, match=r"differs from the model.*\|Δ logit, float64\|"):
        optimize(source_of(tiny_model("llama")), output=tmp_path / "out")


def test_the_rounding_of_a_model_without_fused_attention_is_measured():
    """Granite SWA's rows have the same bits at any length: only float64 shows how much they are rounded."""
    model = tiny_model("granite_swa")
    source = source_of(model)
    traced = trace(model, source.weights)
    with probes_for(model, source, traced) as probes:
        measured, findings = check_trace(model, source, traced, probes)
    exact = next(found for found in findings if "float64" in found.check and "logit" in found.check)
    assert exact.value < 1e-12
    assert NOISE_FACTOR * measured.noise > findings[0].value > 0


def test_a_model_that_counts_tokens_itself_is_not_asked_for_its_last_positions():
    """Llama 4 takes positions for its rotary layers, and counts for the temperature of the others."""
    counting, told = tiny_model("llama4_text"), tiny_model("llama")
    for model, probed in ((counting, False), (told, True)):
        source = source_of(model)
        with probes_for(model, source, trace(model, source.weights)) as probes:
            assert bool(probes.far) == probed

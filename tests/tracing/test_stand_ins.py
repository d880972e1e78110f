"""Code that stands in for a model's own while it is traced: it says the same, and for no longer."""

import copy

import pytest
import torch

from optpipe.errors import TraceError
from optpipe.testing import model_of, tiny_config, tiny_model, tolerance, weights_of
from optpipe.tracing import stand_ins
from optpipe.tracing.stand_ins import standing_in
from optpipe.tracing.trace import trace

IDS = torch.arange(5, 25)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", ["longcat_flash", "xmod"])
def test_a_stand_in_says_what_the_model_says_and_leaves(name):
    model = tiny_model(name)
    own = logits(model)
    methods = [copy.copy(vars(module)) for module in model.modules()]
    with standing_in(model):
        assert any("forward" in vars(m) or "lang_adapter" in vars(m) for m in model.modules())
        torch.testing.assert_close(logits(model), own, **tolerance("float32"))
    for module, before in zip(model.modules(), methods, strict=True):
        assert {key for key in vars(module) if not key.startswith("_optpipe")} == set(before)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("own_norm", "reuse"), [(True, False), (False, True), (False, False)])
def test_the_adapter_follows_every_way_of_the_config(before, own_norm, reuse):
    config = tiny_config("xmod")
    config.ln_before_adapter, config.adapter_layer_norm, config.adapter_reuse_layer_norm = (
        before,
        own_norm,
        reuse,
    )
    config.default_language = config.languages[-1]
    model = model_of(config)
    own = logits(model)
    with standing_in(model):
        torch.testing.assert_close(logits(model), own, **tolerance("float32"))


def test_longcats_experts_are_one_operation_a_layer():
    model = tiny_model("longcat_flash")
    gm = trace(model, weights_of(model)).gm
    calls = [node for node in gm.graph.nodes if node.target is torch.ops.optpipe.moe.default]
    assert len(calls) == model.config.num_layers


def test_experts_with_an_unknown_activation_keep_their_own_code(monkeypatch):
    monkeypatch.setattr(stand_ins, "gating_of_activation", lambda activation: None)
    model = tiny_model("longcat_flash")
    with pytest.raises(TraceError, match="lists of tokens whose lengths depend on the data"):
        trace(model, weights_of(model))

"""Models that would be served wrong are refused, each for its true reason."""

import json

import pytest
import torch
from torch import nn

from optpipe.errors import ContractError, TraceError
from optpipe.optimizer import optimize
from optpipe.sources.source import ModelSource
from optpipe.testing import model_of, tiny_config, tiny_model, weights_of
from optpipe.tracing.trace import trace

STATE = "recurrent or convolutional state that mixes tokens"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lfm2", STATE),
        ("mamba", STATE),
        ("qwen3_next", STATE),
        ("rwkv", STATE),
        ("recurrent_gemma", STATE),
        ("doge", "hides keys by what they hold"),
        ("deepseek_v32", "picks a few keys for each token"),
        ("dbrx", "lists of tokens whose lengths depend on the data"),
    ],
)
def test_it_is_refused_in_words(name, reason):
    model = tiny_model(name)
    with pytest.raises(TraceError) as caught:
        trace(model, weights_of(model))
    message = str(caught.value)
    assert reason in message
    assert not any(word in message for word in ("guard", "Constraints", "symbol", "\n"))


def hybrid(*layers):
    config = tiny_config("granitemoehybrid")
    fields = config.to_dict() | {"layer_types": list(layers), "num_hidden_layers": len(layers)}
    return model_of(type(config)(**fields))


def test_a_hybrid_whose_layers_are_all_attention_is_no_hybrid():
    """Granite 4.0 Micro, for one."""
    model = hybrid("full_attention", "full_attention")
    calls = [node.target for node in trace(model, weights_of(model)).gm.graph.nodes]
    assert calls.count(torch.ops.optpipe.attention.default) == 2


def test_one_layer_with_a_state_is_enough_to_refuse():
    model = hybrid("full_attention", "linear_attention")
    with pytest.raises(TraceError, match=STATE):
        trace(model, weights_of(model))


def test_an_encoder_is_refused():
    config = tiny_config("bert")
    config.is_decoder = False
    model = model_of(config)
    with pytest.raises(TraceError, match="both directions"):
        trace(model, weights_of(model))


def rope(kind, **values):
    config = tiny_config("llama")
    fields = config.to_dict() | {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}
    return model_of(type(config)(**fields))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_look_at_the_whole_batch_are_refused(kind):
    factors = {"factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    wanted = factors if kind == "longrope" else {"factor": 4.0}
    model = rope(kind, original_max_position_embeddings=64, **wanted)
    with pytest.raises(TraceError, match=f"'{kind}' rotary embeddings.*one request would change another"):
        trace(model, weights_of(model))


def source_of(model):
    config = json.loads(model.config.to_json_string(use_diff=False))
    weights = weights_of(model)
    size = sum(weight.nbytes for weight in weights.values())
    return ModelSource(config, weights, {}, "a tiny model", {}, size, "f32")


def test_experts_that_drop_tokens_past_a_capacity_are_caught(monkeypatch, tmp_path):
    """What one token gets then depends on how many others want the same expert."""
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    plain = MixtralTopKRouter.forward

    def dropping(self, hidden_states):
        logits, weights, experts = plain(self, hidden_states)
        first = nn.functional.one_hot(experts[:, 0], 4).float()
        earlier = torch.tril(torch.ones_like(first @ first.T)) @ first  # a running count, spelled out
        crowded = (earlier * first).sum(-1, keepdim=True) > 12
        return logits, weights.masked_fill(crowded, 0.0), experts

    monkeypatch.setattr(MixtralTopKRouter, "forward", dropping)
    with pytest.raises(ContractError, match="packed"):
        optimize(source_of(tiny_model("mixtral")), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()

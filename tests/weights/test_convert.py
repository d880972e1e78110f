"""Loading lazily gives what transformers loads, and what cannot be matched is named."""

import pytest
import torch

from optpipe.errors import ModelError
from optpipe.sources.model import empty_model
from optpipe.testing.tiny import tiny_model
from optpipe.weights import GridWeight, QuantizedTensor, TensorWeight, Weights
from optpipe.weights.bind import bind
from optpipe.weights.convert import convert
from optpipe.weights.safetensors import safetensors_weights


def saved(name: str, folder):
    """A tiny model as a checkpoint: (model, stored tensors, an empty model of its config)."""
    model = tiny_model(name)
    model.save_pretrained(folder)
    return model, safetensors_weights(folder / "model.safetensors"), empty_model(model.config.to_dict())


def stored_as_tensors(stored):
    return {name: TensorWeight(weight.load().clone()) for name, weight in stored.items()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mixtral", "qwen2_moe", "gpt_oss", "phi3"])
def test_every_parameter_is_what_transformers_saved(name, tmp_path):
    model, stored, empty = saved(name, tmp_path)
    weights = bind(empty, convert(empty, stored))
    expected = model.state_dict()
    assert set(weights) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(weights[key].load(), tensor), key


def test_experts_are_stacked_on_demand_and_streamed_by_layer(tmp_path):
    model, stored, empty = saved("mixtral", tmp_path)
    assert any(".experts.0.w1.weight" in name for name in stored), "the checkpoint has one matrix an expert"
    weight = bind(empty, convert(empty, stored))["model.layers.1.mlp.experts.gate_up_proj"]
    expected = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    assert weight.shape == tuple(expected.shape)
    assert weight.nbytes == expected.numel() * 4
    assert torch.equal(weight.rows(torch.tensor([1])), expected[[1]])


def test_the_grid_of_experts_survives_stacking(tmp_path):
    _, stored, empty = saved("mixtral", tmp_path)
    quantized = {name: on_grid(w) if ".experts." in name else w for name, w in stored.items()}
    weights = bind(empty, convert(empty, quantized))
    for name in ("gate_up_proj", "down_proj"):
        weight = weights[f"model.layers.0.mlp.experts.{name}"]
        assert weight.grid is not None
        assert weight.grid.has_minimum
        assert torch.equal(weight.blocks().dequantize(), weight.load())


def test_experts_on_different_grids_lose_them(tmp_path):
    _, stored, empty = saved("mixtral", tmp_path)
    quantized = {name: on_grid(w) if ".experts.0." in name else w for name, w in stored.items()}
    weight = bind(empty, convert(empty, quantized))["model.layers.0.mlp.experts.down_proj"]
    assert weight.grid is None
    with pytest.raises(ModelError, match="not on a grid"):
        weight.blocks()


def on_grid(weight) -> GridWeight:
    """Some grid of one group a row for a matrix; its values do not matter."""
    generator = torch.Generator().manual_seed(weight.shape[0])
    codes = torch.randint(0, 16, weight.shape, generator=generator, dtype=torch.uint8)
    scale = torch.rand(weight.shape[0], 1, generator=generator).half()
    return GridWeight(QuantizedTensor(codes, scale, -scale, 4, -1))


def test_tied_names_share_one_object(tmp_path):
    _, stored, empty = saved("gemma3", tmp_path)
    weights = bind(empty, convert(empty, stored))
    assert weights.tied("lm_head.weight") == ("model.embed_tokens.weight",)


def test_tied_tensors_stored_twice_must_agree(tmp_path):
    _, stored, empty = saved("gemma3", tmp_path)
    again = TensorWeight(stored["model.embed_tokens.weight"].load().clone())
    weights = bind(empty, convert(empty, {**stored, "lm_head.weight": again}))
    assert weights.tied("lm_head.weight")
    other = TensorWeight(again.load() + 1)
    with pytest.raises(ModelError, match="two different ones"):
        bind(empty, convert(empty, {**stored, "lm_head.weight": other}))


def test_a_missing_tensor_is_named(tmp_path):
    _, stored, empty = saved("llama", tmp_path)
    del stored["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"lacks 'model\.layers\.1\.mlp\.up_proj\.weight', which Llama"):
        bind(empty, convert(empty, stored))


def test_an_unexpected_tensor_is_named(tmp_path):
    _, stored, empty = saved("llama", tmp_path)
    stored["model.layers.0.self_attn.q_proj.lora_A"] = TensorWeight(torch.ones(2))
    with pytest.raises(ModelError, match=r"has 'model\.layers\.0\.self_attn\.q_proj\.lora_A'"):
        bind(empty, convert(empty, stored))


def test_many_unexpected_tensors_are_counted(tmp_path):
    _, stored, empty = saved("llama", tmp_path)
    stored |= {f"extra.{number}": TensorWeight(torch.ones(2)) for number in range(9)}
    with pytest.raises(ModelError, match="and 4 more tensors"):
        bind(empty, convert(empty, stored))


def test_buffers_of_older_versions_are_let_be(tmp_path):
    _, stored, empty = saved("llama", tmp_path)
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = TensorWeight(torch.ones(2))
    assert isinstance(bind(empty, convert(empty, stored)), Weights)


def test_another_shape_is_refused(tmp_path):
    _, stored, empty = saved("llama", tmp_path)
    stored["model.norm.weight"] = TensorWeight(torch.ones(3))
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' has the shape \(3,\)"):
        bind(empty, convert(empty, stored))


def test_integers_in_place_of_floats_are_refused(tmp_path):
    _, stored, empty = saved("llama", tmp_path)
    stored["model.norm.weight"] = TensorWeight(
        torch.ones(stored["model.norm.weight"].shape, dtype=torch.int8)
    )
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' is torch\.int8"):
        bind(empty, convert(empty, stored))


def test_an_expert_of_another_shape_is_refused(tmp_path):
    _, stored, empty = saved("mixtral", tmp_path)
    name = next(name for name in stored if name.endswith("experts.0.w2.weight"))
    stored[name] = TensorWeight(torch.ones(2, 2))
    with pytest.raises(ModelError, match="cannot be made of"):
        bind(empty, convert(empty, stored))


def test_a_checkpoint_of_the_base_model_gets_its_prefix(tmp_path):
    model, stored, empty = saved("gpt2", tmp_path)
    bare = {name.removeprefix("transformer."): weight for name, weight in stored_as_tensors(stored).items()}
    weights = bind(empty, convert(empty, bare))
    assert torch.equal(weights["transformer.wte.weight"].load(), model.state_dict()["transformer.wte.weight"])

"""A model written as llama.cpp writes it comes back with the same logits."""

import json

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from optpipe.errors import ModelError
from optpipe.sources import ModelSource, resolve
from optpipe.sources.gguf_config import shortest
from optpipe.sources.model import empty_model

from .tiny_gguf import llama3_factors, tiny, write_gguf

IDS = torch.arange(40, 70)[None]  # longer than the windows of 8


def load(source: ModelSource) -> PreTrainedModel:
    model = empty_model(source.config)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.copy_(source.weights[name].load())
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


@pytest.fixture
def opened(tmp_path):
    def write_and_open(architecture, model=None, tensors=None, **keys):
        path = tmp_path / "tiny.gguf"
        write_gguf(path, architecture, model or tiny(architecture), tensors, **keys)
        return resolve(str(path), cache_dir=tmp_path / "cache")

    return write_and_open


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_the_logits_are_those_of_the_original(opened, architecture):
    model = tiny(architecture)
    copy = load(opened(architecture, model))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[name], tensor, rtol=0, atol=1e-6)  # 1 + w and back
    torch.testing.assert_close(logits(copy), logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("llama", True), ("gemma3", True)])
def test_a_file_without_output_has_a_tied_head(opened, architecture, tied):
    source = opened(architecture, tiny(architecture, tie_word_embeddings=tied))
    assert source.config["tie_word_embeddings"] is tied
    assert bool(source.weights.tied("lm_head.weight")) is tied


def test_llama_biases_are_found_and_permuted(opened):
    model = tiny("llama", attention_bias=True)
    source = opened("llama", model)
    assert source.config["attention_bias"] is True
    torch.testing.assert_close(logits(load(source)), logits(model), rtol=0, atol=1e-4)


def test_gemma3_windows_and_both_rotary_bases(opened):
    config = opened("gemma3").config
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 5000.0
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0
    assert config["query_pre_attn_scalar"] == 16
    assert config["sliding_window"] == 8


def test_gemma3_scaling_is_of_the_full_layers_only(opened):
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    rope = opened("gemma3", **keys).config["rope_parameters"]
    assert rope["full_attention"] == {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0}
    assert rope["sliding_attention"]["rope_type"] == "default"


def test_a_window_pattern_in_the_file_counts(opened):
    pattern = [True, False, True, False, True, False, True]
    types = opened("gemma3", **{"attention.sliding_window_pattern": pattern}).config["layer_types"]
    assert [kind == "sliding_attention" for kind in types] == pattern


def test_llama3_scaling_is_found_in_the_factors(opened):
    model = tiny("llama", head_dim=64, num_attention_heads=2, num_key_value_heads=1, hidden_size=64)
    factors = {"rope_freqs.weight": llama3_factors(500000.0, 64)}
    source = opened("llama", model, factors, **{"rope.freq_base": 500000.0})
    rope = source.config["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == (
        "llama3",
        8.0,
        8192,
    )
    inverse = load(source).model.rotary_emb.inv_freq
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(
        inverse, plain / torch.from_numpy(factors["rope_freqs.weight"]), rtol=1e-4, atol=0
    )


def test_other_rotary_factors_are_refused(opened):
    factors = {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)}
    with pytest.raises(ModelError, match=r"not those of Llama 3\.1"):
        opened("llama", None, factors)


def test_the_tokenizer_comes_along(opened):
    from tokenizers import Tokenizer

    source = opened("llama")
    tokenizer = Tokenizer.from_str(source.read("tokenizer.json").decode())
    ids = tokenizer.encode("hehe<|259|>").ids
    assert ids == [258, 256, 256, 259]
    assert tokenizer.decode(ids) == "hehe"
    settings = json.loads(source.read("tokenizer_config.json"))
    assert (settings["bos_token"], settings["eos_token"]) == ("<|258|>", "<|259|>")
    assert source.read("chat_template.jinja") == b"{{ messages[0]['content'] }}"
    assert source.read("missing.json") is None


def test_transformers_reads_the_same_tokenizer(opened, tmp_path):
    from transformers import AutoTokenizer

    source = opened("llama")
    for name in source.files:
        (tmp_path / name).write_bytes(source.read(name))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("hehe").input_ids == [258, 256, 256]


def test_no_begin_token_where_the_file_says_so(opened):
    from tokenizers import Tokenizer

    source = opened("llama", **{".add_bos_token": False})
    assert Tokenizer.from_str(source.read("tokenizer.json").decode()).encode("he").ids == [256]


def test_a_turns_end_ends_generation_too(opened):
    content = json.loads(opened("llama", **{".eot_token_id": 260}).read("generation_config.json"))
    assert content == {"bos_token_id": 258, "eos_token_id": [259, 260]}


def test_who_it_is_is_recorded(opened, tmp_path):
    import hashlib

    source = opened("llama")
    content = (tmp_path / "tiny.gguf").read_bytes()
    assert source.identity["sha256"] == hashlib.sha256(content).hexdigest()
    assert source.identity["kind"] == "gguf"
    assert source.dtype == "f32"
    assert source.bytes == source.weights.nbytes


def test_the_converted_tokenizer_is_cached(opened, tmp_path, monkeypatch):
    opened("llama")
    monkeypatch.setattr("optpipe.sources.gguf_tokenizer._convert", lambda *_: pytest.fail("converted twice"))
    resolve(str(tmp_path / "tiny.gguf"), cache_dir=tmp_path / "cache")


BAD = {
    "absurd layers": ({"block_count": 2_000_000_000}, "2000000000 layers"),
    "no layers": ({"block_count": None}, r"says None for 'llama\.block_count'"),
    "zero heads": ({"attention.head_count": 0}, "a whole number above zero"),
    "heads are text": ({"attention.head_count": "four"}, "a whole number above zero"),
    "a norm of zero": ({"attention.layer_norm_rms_epsilon": 0.0}, "a number above zero"),
    "a norm that is not a number": (
        {"attention.layer_norm_rms_epsilon": float("nan")},
        "a number above zero",
    ),
    "another width": ({"embedding_length": 128}, "has the shape"),
    "heads that do not divide": ({"attention.head_count": 7}, r"number of attention heads \(7\)"),
    "absurd width": ({"feed_forward_length": 2_000_000_000}, "cannot be built|has the shape"),
    "partly rotary": ({"rope.dimension_count": 8}, "rotates 8 of 16"),
    "mixture of experts": ({"expert_count": 8}, "mixture of experts"),
    "another scaling": ({"rope.scaling.type": "yarn"}, "yarn"),
    "a special token past the end": ({".eos_token_id": 4_000_000}, "eos token is number 4000000"),
    "another tokenizer": ({".model": "rwkv"}, "tokenizer in the GGUF file .* cannot be converted"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata_is_refused(opened, case):
    keys, message = BAD[case]
    with pytest.raises(ModelError, match=message):
        opened("llama", **keys)


def test_another_architecture_is_refused_by_name(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", "mamba", tiny("llama"))
    with pytest.raises(ModelError, match="architecture 'mamba' are not read"):
        resolve(str(path), cache_dir=tmp_path)


def test_tensors_of_no_known_use_are_named(opened):
    with pytest.raises(ModelError, match=r"no known use: 'blk\.0\.attn_sinks\.weight'"):
        opened("llama", None, {"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)})


def test_a_missing_tensor_is_named(tmp_path):
    model = tiny("llama")
    model.model.layers[3].mlp.up_proj = torch.nn.Identity()
    path = write_gguf(tmp_path / "x.gguf", "llama", model)
    with pytest.raises(ModelError, match=r"lacks 'model\.layers\.3\.mlp\.up_proj\.weight'"):
        resolve(str(path), cache_dir=tmp_path)


def test_a_file_that_is_not_there():
    with pytest.raises(ModelError, match="There is no file"):
        resolve("/nowhere/model.gguf")


@pytest.mark.parametrize("number", [1e-5, 1e-6, 10000.0, 0.1, 1e6, 5e-324, 3.0])
def test_floats_are_written_as_people_wrote_them(number):
    assert shortest(float(np.float32(number))) == (number if number != 5e-324 else 0.0)

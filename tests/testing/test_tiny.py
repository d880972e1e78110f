"""The tiny models are worth comparing: spread logits, windows that bite, causal, the same every time."""

import json
import subprocess
import sys

import pytest
import torch

from optpipe.errors import ModelError
from optpipe.testing import (
    mapping_names,
    probe_tokens,
    save_tiny,
    tiny_config,
    tiny_model,
    tiny_names,
    weights_of,
)
from optpipe.testing.architectures import PROBE_TOKENS, VOCAB
from optpipe.testing.overrides import NOT_RUNNABLE, OVERRIDES
from optpipe.testing.shrink import shrunk_config

ALL_WINDOWED = {"mistral", "phi3", "mixtral"}  # every layer has a window of 8, and there are two layers


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0]


@pytest.mark.parametrize("name", tiny_names())
def test_logits_are_spread_and_depend_on_far_tokens_and_on_no_later_one(name):
    model = tiny_model(name)
    ids = probe_tokens(model.config)
    base = logits(model, ids)
    assert 0.4 < base.std() < 2.5
    first, last = ids.clone(), ids.clone()
    first[0, 0] = (ids[0, 0] + 7) % 200 + 5
    last[0, -1] = (ids[0, -1] + 7) % 200 + 5
    moved = (logits(model, first) - base).abs().amax(-1)
    assert moved[8] > 0.01
    assert (moved[-1] > 1e-3) == (name not in ALL_WINDOWED)
    assert (logits(model, last) - base)[:-1].abs().max() < 1e-5


@pytest.mark.parametrize("name", tiny_names())
def test_every_layer_type_is_there_twice_and_windows_are_short(name):
    config = tiny_config(name)
    kinds = getattr(config, "layer_types", None) or []
    assert all(kinds.count(kind) >= 2 for kind in kinds)
    assert getattr(config, "num_hidden_layers", 2) >= 2
    window = getattr(config, "sliding_window", None)
    assert window is None or window < PROBE_TOKENS / 2


def test_the_same_name_gives_the_same_weights_and_another_seed_others():
    one, two, other = (tiny_model("qwen2", seed) for seed in (0, 0, 1))
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_no_parameter_is_left_at_its_initial_value():
    model = tiny_model("gpt-oss")
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0.05, name


def test_making_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    tiny_model("llama")
    assert torch.equal(before, torch.rand(1))


def test_tied_weights_are_one_in_the_store():
    weights = weights_of(tiny_model("llama-tied"))
    assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]


def test_a_saved_model_loads_and_its_tokenizer_goes_both_ways(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny("gemma3", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = probe_tokens(loaded.config)
    torch.testing.assert_close(logits(loaded, ids), logits(tiny_model("gemma3"), ids), rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Paris «ça va»? 東京\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= VOCAB
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<s>user: hi\nassistant: "
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == VOCAB


def test_an_unknown_name_says_what_is_near():
    with pytest.raises(ModelError) as caught:
        tiny_model("gema3")
    assert "gemma3" in caught.value.hint


@pytest.mark.parametrize("name", sorted(set(mapping_names()) - set(NOT_RUNNABLE)))
def test_every_model_type_has_a_tiny_configuration(name):
    config = shrunk_config(name).get_text_config(decoder=True)
    assert config.vocab_size <= 1000


def test_the_tables_name_real_model_types():
    assert set(OVERRIDES) <= set(mapping_names())
    assert set(NOT_RUNNABLE) <= set(mapping_names())


def test_importing_the_kit_imports_no_torch():
    code = "import sys, optpipe.testing; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

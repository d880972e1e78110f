import subprocess
import sys

import pytest
import torch

from optpipe.errors import ModelError
from optpipe.sources.model import empty_model
from optpipe.testing.tiny import tiny_model


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gptj", "bloom"])
def test_buffers_that_no_checkpoint_has_are_real(name):
    model = tiny_model(name)
    empty = empty_model(model.config.to_dict())
    saved = model.state_dict()
    expected = {key: one for key, one in model.named_buffers() if key not in saved}
    found = dict(empty.named_buffers())
    assert all(torch.equal(found[key], one) for key, one in expected.items())


def test_it_is_float32_in_eval_mode_and_tied():
    empty = empty_model(tiny_model("gemma3").config.to_dict() | {"dtype": "bfloat16"})
    assert not empty.training
    assert {parameter.dtype for parameter in empty.parameters()} == {torch.float32}
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    assert empty.config._attn_implementation == "eager"


def test_parameters_take_no_memory():
    config = {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008}
    code = f"""
import resource
from optpipe.sources.model import empty_model
import transformers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = empty_model({config})
assert sum(p.numel() for p in model.parameters()) > 6e9
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < 1 << 30, "a 25 GB model costs the modelling code's imports"


def test_a_config_may_hold_infinity():
    empty = empty_model(tiny_model("llama").config.to_dict() | {"extra": {"__float__": "Infinity"}})
    assert empty.config.extra == float("inf")


def test_a_type_without_a_causal_class_is_refused():
    with pytest.raises(ModelError, match="A 'vit' model is not a causal language model"):
        empty_model({"model_type": "vit"})

"""One decoder layer, whole: what a change of the lowering would change for everybody."""

import pytest

from optpipe.artifact import load_artifact
from optpipe_kernels.cpu.lowering import lower
from optpipe_kernels.cpu.pack import quantized_bytes

FLOAT = """
linear             self_attn.q_proj
rope_kv_write      self_attn
paged_attention    self_attn
linear             self_attn.o_proj
rms_norm
linear_gated       mlp
linear             mlp.down_proj
rms_norm
"""
QUANTIZED = """
quant_linear       self_attn.q_proj
rope_kv_write      self_attn
paged_attention    self_attn
quantize           self_attn.o_proj
quant_linear       self_attn.o_proj
rms_norm
quant_linear_gated mlp
quant_linear       mlp.down_proj
rms_norm
"""


@pytest.mark.parametrize(
    ("passes", "expected"),
    [("paged", FLOAT), ("quant{group=32 zero=float},paged", QUANTIZED)],
    ids=["float", "quantized"],
)
def test_a_llama_layer_is_these_instructions(tiny, passes, expected):
    program = load_artifact(tiny("llama", passes)).program
    steps = lower(program, quantized_bytes).lowered.steps
    inside = [step for step in steps if step.path.startswith("model.layers.0")]
    lines = [
        f"{step.kernel:18} {step.path.removeprefix('model.layers.0').removeprefix('.')}".rstrip()
        for step in inside
        if step.path != "model.layers.0.input_layernorm"
    ]
    assert lines == expected.strip().splitlines()


def test_the_way_in_and_the_way_out_of_a_tied_model(tiny):
    program = load_artifact(tiny("llama-tied", "quant{group=32 zero=float},paged")).program
    plans = lower(program, quantized_bytes)
    assert plans.logits.kernels[0] == "embedding"
    assert plans.logits.kernels[-3:] == ["index_select", "quantize", "quant_linear"]
    assert plans.greedy.kernels[-1] == "quant_linear_argmax"
    tables = [it for it in plans.weights if "embed_tokens" in it.name]
    assert len(tables) == 1

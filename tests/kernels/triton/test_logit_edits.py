from __future__ import annotations

import numpy as np
import torch

from optpipe_kernels.triton.logit_edits import RowEdits, edited, edits
from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.sampling.mask import Scratch, apply_bits
from optpipe_runtime.sampling.state import RowState


def test_equals_the_cpu_samplers_rows(device):
    rng = np.random.default_rng(0)
    size, end = 5000, 7
    logits = (rng.normal(size=(3, size)) * 3).astype(np.float32)
    prompt = rng.integers(0, size, 300).tolist()
    output = rng.integers(0, size, 400).tolist() + [prompt[0]] * 5
    params = [
        SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.37),
        SamplingParams(logit_bias={3: 5.5, output[1]: -2.0}, frequency_penalty=-0.1, min_tokens=1000),
        SamplingParams(),
    ]
    rows, expected = [], []
    for row, chosen in zip(logits, params, strict=True):
        state = RowState(chosen, prompt, vocab_size=size, eos=[end], seed=0)
        counts = dict.fromkeys(prompt if chosen.repetition_penalty != 1 else (), 0)
        for token in output:
            state.advance(token)
            counts[token] = counts.get(token, 0) + 1
        expected.append(state.edited(row, Scratch(size)).values)
        rows.append(
            RowEdits(
                bias=chosen.logit_bias or {},
                counts={} if chosen is params[2] else counts,
                banned=[end] if chosen.min_tokens else [],
                repetition=chosen.repetition_penalty,
                presence=chosen.presence_penalty,
                frequency=chosen.frequency_penalty,
            )
        )
    found = edited(torch.from_numpy(logits).to(device), edits(rows, device))
    assert np.array_equal(found.cpu().numpy(), np.stack(expected))


def test_the_mask_of_a_grammar_wins_over_everything(device):
    rng = np.random.default_rng(0)
    size = 4133  # of no whole word
    logits = rng.normal(size=(3, size)).astype(np.float32)
    bits = rng.integers(-(2**31), 2**31, (2, size // 32 + 3)).astype(np.int32)
    bias = dict.fromkeys(range(0, size, 50), 10.0)
    rows = [RowEdits(bias=bias, mask=1), RowEdits(), RowEdits(mask=0)]
    found = edited(
        torch.from_numpy(logits).to(device), edits(rows, device), torch.from_numpy(bits).to(device)
    )
    logits[0, list(bias)] += np.float32(10)
    scratch = Scratch(size)
    expected = [
        apply_bits(logits[0], bits[1].view(np.uint32), scratch).values.copy(),
        logits[1],
        apply_bits(logits[2], bits[0].view(np.uint32), scratch).values.copy(),
    ]
    assert np.array_equal(found.cpu().numpy(), np.stack(expected))


def test_the_models_row_stays_as_it_is(device):
    logits = torch.randn(2, 40, device=device).half()
    before = logits.clone()
    found = edited(logits, edits([RowEdits(banned=[3]), RowEdits()], device))
    assert torch.equal(logits, before)
    assert torch.equal(found[1], before[1].float())
    assert found[0, 3] == -torch.inf

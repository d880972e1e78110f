from __future__ import annotations

import numpy as np
import pytest
import torch

from optpipe.targets.protocol import BANNED, PENALIZED
from optpipe_kernels.triton.logit_edits import Edits, edited
from optpipe_runtime.sampling import RowState, SamplingParams, draws_of
from optpipe_runtime.sampling.mask import Scratch, apply_bits


def on(device, edits):
    """A step's rules on a device."""
    return Edits(**{name: torch.from_numpy(array).to(device) for name, array in vars(edits).items()})


@pytest.mark.parametrize("size", [5000, 4133])  # of no whole word
def test_equals_the_cpu_samplers_rows(device, size):
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(4, size)) * 3).astype(np.float32)
    prompt = rng.integers(0, size, 300).tolist()
    output = rng.integers(0, size, 400).tolist() + [prompt[0]] * 5
    params = [
        SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.37),
        SamplingParams(logit_bias={3: 5.5, output[1]: -2.0}, frequency_penalty=-0.1, min_tokens=1000),
        SamplingParams(),
        SamplingParams(allowed_token_ids=tuple(range(0, size, 3)), presence_penalty=0.5),
    ]
    states = [RowState(it, prompt, vocab_size=size, eos=[7], seed=0) for it in params]
    for state in states:
        for token in output:
            state.advance(token)
    expected = np.full((4, size), -np.inf, np.float32)
    for row, (state, values) in enumerate(zip(states, logits, strict=True)):
        found = state.edited(values, Scratch(size))
        expected[row, slice(None) if found.ids is None else found.ids] = found.values
    rules = on(device, draws_of(states).edits)
    assert len(rules.tokens) > 1000 and len(rules.masks) == 1
    found = edited(torch.from_numpy(logits).to(device), rules)
    assert np.array_equal(found.cpu().numpy(), expected)


def rules(rows, entries=(), masked=None, masks=None):
    """Edits of entries (row, token, bias, flags), in the order of rows."""
    which, tokens, biases, flags = zip(*entries, strict=True) if entries else ((), (), (), ())
    starts = np.searchsorted(which, range(rows + 1))
    return Edits(
        starts=torch.tensor(starts, dtype=torch.int32),
        tokens=torch.tensor(tokens, dtype=torch.int32),
        biases=torch.tensor(biases, dtype=torch.float32),
        counts=torch.ones(len(tokens)),
        flags=torch.tensor(flags, dtype=torch.int32),
        penalties=torch.tensor([[2.0, 0.25, 0.5]] * rows),
        masked=torch.tensor(masked or [-1] * rows, dtype=torch.int32),
        masks=torch.from_numpy(np.zeros((0, 0), np.int32) if masks is None else masks),
    )


def to(device, it):
    return Edits(**{name: getattr(it, name).to(device) for name in Edits.__slots__})


def test_a_mask_wins_over_everything(device):
    rng = np.random.default_rng(0)
    size = 4133
    logits = rng.normal(size=(3, size)).astype(np.float32)
    bits = rng.integers(-(2**31), 2**31, (2, size // 32 + 3)).astype(np.int32)
    biased = range(0, size, 50)
    it = rules(3, [(0, token, 10.0, 0) for token in biased], [1, -1, 0], bits)
    found = edited(torch.from_numpy(logits).to(device), to(device, it))
    logits[0, list(biased)] += np.float32(10)
    expected = [
        apply_bits(logits[0], bits[1].view(np.uint32), Scratch(size)).values,
        logits[1],
        apply_bits(logits[2], bits[0].view(np.uint32), Scratch(size)).values,
    ]
    assert np.array_equal(found.cpu().numpy(), np.stack(expected))


def test_entries_stand_alone_and_the_models_row_stays_as_it_is(device):
    logits = torch.randn(2, 40, device=device).half()
    before = logits.clone()
    it = rules(2, [(0, 3, 1.0, BANNED), (0, 5, 1.0, 0), (1, 3, 0.0, PENALIZED)])
    found = edited(logits, to(device, it))
    assert torch.equal(logits, before)
    expected = before.float()
    expected[0, 3], expected[0, 5] = -torch.inf, expected[0, 5] + 1
    value = expected[1, 3]
    expected[1, 3] = (value / 2 if value > 0 else value * 2) - 0.5 - 0.25
    assert torch.equal(found, expected)

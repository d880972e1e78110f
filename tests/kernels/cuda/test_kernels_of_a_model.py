"""How many kernels an 8B model's steps are made of: steps of other sizes take the same compiled ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks.gpu.random_model import Size, program
from optpipe.program.ops import DTYPES
from optpipe.targets.protocol import StepInputs
from optpipe.targets.steps import INPUTS
from optpipe_kernels.cuda.attention import Lists, layer_of
from optpipe_kernels.cuda.cache import Stored
from optpipe_kernels.cuda.calls import Calls
from optpipe_kernels.cuda.fusion import lower
from optpipe_kernels.cuda.operations import Operations
from optpipe_kernels.cuda.recipes import names_of
from optpipe_kernels.cuda.weights import make, recipes_of
from optpipe_kernels.triton.launch import Launch

META = torch.device("meta")
LAYER = Size(layers=1)  # all layers have the same kernels
BUCKETS = (1, 2, 3, 15, 16), (17, 24, 31, 32), (33, 48, 63, 64), (65, 100, 127, 128)
"""Tokens of steps that take the same tiles."""
MOST = {16: 32, 8: 25, 4: 25}  # kernels that all steps take together, of a model in so many bits
SECONDS = 3.0  # to take all of them out of Triton's cache, of the 15 that a start may take


class Model:
    """One layer of a Llama 3.1 8B, its head and its embedding, on ``meta``: launches are collected."""

    def __init__(self, bits: int) -> None:
        made = program(LAYER, bits)
        lowered, operations = lower(made), Operations(torch.bfloat16)

        def stored(name: str) -> torch.Tensor:
            weight = made.weights[name]
            return torch.empty(weight.type.shape, dtype=DTYPES[weight.stored], device=META)

        weights = {
            it: make(it, {name: stored(name) for name in names_of(it)}, operations)
            for it in recipes_of(lowered)
        }
        self.calls = Calls(lowered, weights, operations, META)
        layers = [layer_of(step) for step in lowered.steps if step.kernel == "paged_attention"]
        self.lists = Lists(layers, 2, META, batch_invariant=True)

    def launches(self, tokens: int, sequences: int, *, greedy: bool) -> Iterator[Launch]:
        """Of one step."""
        blocks = -(-tokens // sequences // LAYER.block) + tokens % 5  # tables of any width
        step = StepInputs(
            *(np.zeros(tokens, np.int64) for _ in range(3)),
            query_start=np.linspace(0, tokens, sequences + 1).astype(np.int32),
            context_lens=np.full(sequences, blocks * LAYER.block, np.int32),
            block_tables=np.zeros((sequences, blocks), np.int32),
            logit_rows=np.zeros(sequences, np.int64),
        )
        arrays, counts = self.lists.arrays(step, None, LAYER.block)
        views = {name: torch.from_numpy(it).to(META) for name, it in {**vars(step), **arrays}.items()}
        inputs = {INPUTS.get(name, name): view for name, view in views.items()}
        room = torch.empty(1024, LAYER.block, LAYER.kv_heads, LAYER.width, dtype=torch.bfloat16, device=META)
        inputs |= {f"{kind}_cache.0": Stored(room) for kind in "kv"}
        sizes = {"T": tokens, "B": sequences, "R": sequences, "M": blocks, "P": 1024}
        found: list[Launch] = []
        with mock.patch.object(Launch, "run", lambda launch: found.append(launch)):
            self.calls.run(inputs, sizes, self.lists.works(views, counts), greedy=greedy)
        assert found, "a step launches kernels"
        return iter(found)

    def codes(self, tokens: int, sequences: int) -> dict[str, Launch]:
        """Of a step whose logits are wanted, and of one that gives tokens."""
        both = (it for greedy in (False, True) for it in self.launches(tokens, sequences, greedy=greedy))
        return {it.code(90): it for it in both}


@pytest.mark.parametrize("bits", MOST)
def test_steps_of_any_size_take_a_few_kernels(bits):
    model, every = Model(bits), set()
    for bucket in BUCKETS:
        codes = [set(model.codes(tokens, tokens)) for tokens in bucket]  # a step of decoding
        assert all(it == codes[0] for it in codes)
        every |= codes[0]
    prompts = [set(model.codes(tokens, 3)) for tokens in (200, 256, 777, 2048, 8191)]
    assert len(every.union(*prompts)) == MOST[bits]


def test_codes_tell_kernels_apart():
    few, many = Model(4).codes(1, 1), Model(4).codes(64, 64)
    assert not {it.title for it in few.values()} & {it.title for it in many.values() if "M=" in it.title}
    assert set(few) != set(many)


@pytest.mark.slow
def test_kernels_that_are_in_the_cache_come_out_of_it_in_a_moment(tmp_path, monkeypatch):
    """Compiled once into an empty cache, then loaded as a process that starts does."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    model = Model(4)
    codes = {code: it for tokens in (1, 32, 64, 128) for code, it in model.codes(tokens, tokens).items()}
    codes |= model.codes(2048, 3)
    for launch in codes.values():
        launch.compile(90)
    stored = len(list(tmp_path.iterdir()))
    begun = time.process_time()
    for launch in codes.values():
        launch.compile(90)
    assert time.process_time() - begun < SECONDS
    assert len(list(tmp_path.iterdir())) == stored >= len(codes)

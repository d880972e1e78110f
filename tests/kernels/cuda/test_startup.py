"""What the host does before the first step of an 8B model, but for reading its weights."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu.random_model import Size, program
from optpipe.program import parse_program, print_program
from optpipe.program.ops import DTYPES
from optpipe_kernels.cuda.calls import Calls
from optpipe_kernels.cuda.fusion import lower
from optpipe_kernels.cuda.operations import Operations
from optpipe_kernels.cuda.recipes import EightBits, Grid, Quantized, names_of
from optpipe_kernels.cuda.weights import make, recipes_of

CPU_SECONDS = 1.0  # 0.025 measured; the 15 s are for reading, hashing and loading kernels


def test_parsing_lowering_and_binding_an_8b_model_is_a_moment():
    text = print_program(program(Size(), 4))
    operations = Operations(torch.bfloat16)
    recipes = recipes_of(
        lower(parse_program(text))
    )  # a first time: what is imported and cached is not counted
    stored = parse_program(text).weights

    def on_meta(name):
        return torch.empty(stored[name].type.shape, dtype=DTYPES[stored[name].stored], device="meta")

    weights = {it: make(it, {name: on_meta(name) for name in names_of(it)}, operations) for it in recipes}
    Calls(lower(parse_program(text)), weights, operations, torch.device("cpu"))
    begun = time.process_time()
    lowered = lower(parse_program(text))
    calls = Calls(lowered, weights, operations, torch.device("cpu"))
    assert time.process_time() - begun < CPU_SECONDS
    assert not operations.on_bodies
    assert len(calls.calls) < 400  # of the graph's 586 nodes
    assert sum(isinstance(it, Quantized) for it in recipes) == 4 * 32 + 1  # qkv, o, gate-up, down; the head


def test_weights_of_8_bits_are_not_repacked():
    """Rows are used as they are stored: an artifact of fp8 or w8a8 is copied and joined, no more."""
    recipe = EightBits((Grid("q", "q_scale"), Grid("k", "k_scale")), "i8")
    stored = {
        name: torch.randint(-127, 128, (rows, 16), dtype=torch.int8) for name, rows in (("q", 4), ("k", 2))
    }
    stored |= {"q_scale": torch.rand(4, 1), "k_scale": torch.rand(2, 1)}
    codes, scale = make(recipe, stored, Operations(torch.bfloat16))
    assert torch.equal(codes, torch.cat((stored["q"], stored["k"])))
    assert torch.equal(scale, torch.cat((stored["q_scale"], stored["k_scale"]))[:, 0])

"""Steps of a model's first layers on the reference and the cpu target: what they give, what they leave."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import RequestError
from optpipe.program import parse_program, print_program
from optpipe.program.early_exit import early_exit, num_layers
from optpipe.targets.protocol import is_layered
from optpipe.testing import tiny_config, tiny_model, tiny_names
from optpipe_kernels.cpu.lowerings import Lowerings
from optpipe_kernels.cpu.target import CpuTarget

from .test_executor import TOKENS, Sequences

PROMPT = TOKENS[:37]  # past a block
NOISE = 4e-5  # of a logit near 1: float32 sums in three orders


def shorter(name, layers):
    """transformers' own model of the first layers: the whole one's weights in one that has no more."""
    whole = tiny_model(name)
    config = copy.deepcopy(tiny_config(name))
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = model.load_state_dict(whole.state_dict(), strict=False)
    assert not found.missing_keys, found.missing_keys
    return model


@pytest.mark.parametrize("name", tiny_names())
def test_the_first_layers_of_every_architecture(tiny, name):
    """After every layer: what transformers' own model of so many layers gives."""
    artifact = load_artifact(tiny(name))
    count = num_layers(artifact.program)
    reference, cpu = (
        optpipe.load(artifact, target="reference"),
        CpuTarget().load_artifact(artifact, threads=1),
    )
    assert reference.num_layers == cpu.num_layers == count >= 2
    sequences = {"reference": Sequences(reference, [PROMPT]), "cpu": Sequences(cpu, [PROMPT])}
    for layers in range(1, count):
        part = early_exit(artifact.program, layers)
        assert num_layers(part) == layers
        assert (part.inputs, part.outputs) == (artifact.program.inputs, artifact.program.outputs)
        assert parse_program(print_program(part)) == part
        with torch.no_grad():
            expected = shorter(name, layers)(torch.tensor(PROMPT)[None]).logits[0].numpy()
        for target, one in sequences.items():
            found = one.run([(0, 0, len(PROMPT))], layers=layers)
            np.testing.assert_allclose(found, expected, atol=NOISE, rtol=0, err_msg=f"{target}, {layers}")
    cpu.close()


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("passes", ["paged", "quant{group=32 zero=float},paged"], ids=["f32", "int4"])
def test_a_whole_step_writes_over_what_a_part_left(tiny, passes, target):
    """Prompt whole, drafts in part, and then other tokens whole, in the same slots: as if never drafted."""
    executor = optpipe.load(tiny("gemma3", passes), target=target)
    assert is_layered(executor)
    tokens = TOKENS[:40]
    plain = Sequences(executor, [tokens])
    plain.run([(0, 0, 30)])
    expected = plain.run([(0, 30, 40)])
    drafted = Sequences(executor, [np.concatenate([tokens[:31], (tokens[31:] + 1) % 250])])
    drafted.run([(0, 0, 30)])
    drafts = [drafted.run([(0, at, at + 1)], layers=2) for at in range(30, 40)]
    assert len({it.argmax() for it in drafts}) > 1
    drafted.tokens = [tokens]
    np.testing.assert_array_equal(drafted.run([(0, 30, 40)]), expected)


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
def test_steps_of_parts_and_of_the_whole_in_turn(tiny, kv_dtype):
    """A part reads what whole steps wrote: its rows have the same bits however the prompt was computed."""
    executor = CpuTarget().load_artifact(load_artifact(tiny("gemma3")), threads=2)
    one = Sequences(executor, [TOKENS], kv_dtype)
    expected = {k: one.run([(0, 0, 70)], layers=k) for k in (1, 3)}
    one = Sequences(executor, [TOKENS], kv_dtype)
    one.run([(0, 0, 50)])
    for k, rows in expected.items():
        for at in range(50, 70):
            np.testing.assert_array_equal(one.run([(0, at, at + 1)], layers=k), rows[at : at + 1])
            assert one.run([(0, at, at + 1)], False, layers=k) == rows[at].argmax()
    executor.close()


INT4 = [("llama-tied", "quant{group=32 zero=none},paged"), ("gemma3", "quant{group=32 zero=float},paged")]


@pytest.mark.parametrize(("name", "passes"), [*((name, "paged") for name in tiny_names()), *INT4])
def test_a_part_has_no_weights_of_its_own(tiny, name, passes):
    """Nothing is packed twice: recipe for recipe they are the whole model's."""
    program = load_artifact(tiny(name, passes)).program
    lowerings = Lowerings(program, 2)
    whole = lowerings.plans("f32")
    for layers in range(1, lowerings.num_layers):
        part = lowerings.plans("f32", layers)
        assert part.weights.items() < whole.weights.items()
        assert part.cache_spec == whole.cache_spec
        units = zip(part.greedy.arena_bytes, whole.greedy.arena_bytes, strict=True)
        assert all(own <= theirs for own, theirs in units)
        assert lowerings.plans("f32", layers) is part


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_number_of_layers_that_is_no_part(tiny, target):
    executor = optpipe.load(tiny("llama"), target=target)
    one = Sequences(executor, [PROMPT])
    for layers in (0, 2):
        with pytest.raises(RequestError, match=f"has from 1 to 1, not {layers}"):
            one.run([(0, 0, 5)], layers=layers)
        with pytest.raises(RequestError, match=f"has from 1 to 1, not {layers}"):
            executor.prepare_layers(layers)

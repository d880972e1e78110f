"""Each named architecture, traced once: what fuses is pinned, and nothing of the model's plumbing is left."""

import functools
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from optpipe.graph.nodes import aten, is_call
from optpipe.optimizer import plan
from optpipe.pipeline.manager import Manager
from optpipe.program import from_fx, parse_program, print_program
from optpipe.targets.reference import ReferenceExecutor
from optpipe.testing import probe_tokens, tiny_model, tiny_names, tolerance, weights_of
from optpipe.tracing.eager import EagerModel
from optpipe.tracing.trace import trace

# how many of each operation the tiny model's graph has:
#   attention, rope, norm (rms or layer), norm fused with the sum before it, gated activation, routed experts
# rope is twice the layers that turn q and k; norms are those of layers, the last one, and q's and k's
COUNTS = {
    "llama": (2, 4, 1, 4, 2, 0),
    "llama-tied": (2, 4, 1, 4, 2, 0),
    "mistral": (2, 4, 1, 4, 2, 0),
    "qwen2": (2, 4, 1, 4, 2, 0),
    "qwen2-moe": (4, 8, 1, 8, 4, 2),  # two dense layers and two shared experts are gated
    "qwen3": (2, 4, 5, 4, 2, 0),
    "gemma2": (4, 8, 9, 8, 4, 0),
    "gemma3": (4, 8, 17, 8, 4, 0),
    "phi3": (2, 4, 1, 4, 2, 0),
    "gpt2": (2, 0, 5, 0, 0, 0),
    "gpt-neox": (2, 4, 5, 0, 0, 0),
    "opt": (2, 0, 5, 0, 0, 0),
    "stablelm": (2, 4, 17, 0, 2, 0),  # one norm a head for q and k
    "olmo2": (2, 4, 8, 1, 2, 0),  # norms stand before the sums
    "granite": (2, 4, 1, 4, 2, 0),
    "cohere": (2, 4, 7, 0, 2, 0),
    "smollm3": (4, 4, 1, 8, 4, 0),  # every other layer turns nothing
    "mixtral": (2, 4, 1, 4, 0, 2),
    "qwen3-moe": (4, 8, 9, 8, 2, 2),
    "gpt-oss": (4, 8, 1, 8, 0, 4),
    "falcon": (2, 4, 3, 0, 0, 0),
    "falcon-new": (2, 4, 5, 0, 0, 0),
    "gptj": (2, 4, 3, 0, 0, 0),
    "bloom": (2, 0, 6, 0, 0, 0),
}
NOTHING_OF = (
    *(aten._assert_tensor_metadata, aten._assert_scalar, aten._assert_async, torch.ops.optpipe.mask),
    *(aten.alias, aten.detach, aten.clone, aten.contiguous, aten.dropout, aten.view, aten._unsafe_view),
    *(aten.unsqueeze, aten.squeeze, aten.transpose, aten.t, aten.lift_fresh_copy, aten.softmax.int),
)


@dataclass
class Made:
    """One architecture: its model, its graph as traced, and its graph after the default pipeline."""

    model: Any
    traced: Any
    gm: fx.GraphModule


@functools.cache
def made(name: str) -> Made:
    model = tiny_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it exports
        traced = trace(model, weights_of(model))
    manager = Manager(traced.gm, traced.weights, traced.constants, model.config.to_dict())
    manager.run(plan("paged"))
    return Made(model, traced, manager.gm)


def test_every_named_architecture_has_its_counts():
    assert list(COUNTS) == tiny_names()


@pytest.mark.parametrize("name", tiny_names())
def test_the_traced_graph_equals_the_model(name):
    one = made(name)
    executor = ReferenceExecutor(one.traced.gm, one.traced.weights)
    for tokens in (40, 3):
        ids = probe_tokens(one.model.config, tokens)
        eager = EagerModel(one.model, weights_of(one.model)).logits(ids)[0]
        [found] = executor.logits_of([ids[0].numpy()], [np.arange(tokens)])
        torch.testing.assert_close(torch.from_numpy(found), eager, **tolerance("float32"))


@pytest.mark.parametrize("name", tiny_names())
def test_every_fusion_finds_what_the_architecture_has(name):
    count = Counter(
        str(node.target).removesuffix(".default").removeprefix("optpipe.")
        for node in made(name).gm.graph.nodes
        if node.op == "call_function"
    )
    norms = count["rms_norm"] + count["layer_norm"]
    parts = ("paged_attention", "rope", "add_rms_norm", "gated_act", "moe")
    attention, rope, add_norm, gated, moe = (count[part] for part in parts)
    assert (attention, rope, norms, add_norm, gated, moe) == COUNTS[name]


@pytest.mark.parametrize(("name", "turned"), [("llama4_text", 4), ("deepseek_v2", 8)])
def test_rotations_by_complex_numbers_are_rope_too(name, turned):
    """Two a layer with positions; the tables are made once."""
    calls = [str(node.target) for node in made(name).gm.graph.nodes if node.op == "call_function"]
    assert calls.count("optpipe.rope.default") == turned
    assert calls.count("aten.cos.default") == calls.count("aten.sin.default") == 1
    assert "aten.select.int" not in calls


@pytest.mark.parametrize("name", tiny_names())
def test_nothing_of_the_models_plumbing_is_left(name):
    for node in made(name).gm.graph.nodes:
        assert not is_call(node, *(op for op in NOTHING_OF if not _is_routing(node, op))), node.format_node()
        if is_call(node, aten.to.dtype, aten._to_copy, aten.expand):
            before = node.args[0].meta["val"]
            same = before.dtype == node.meta["val"].dtype and before.shape == node.meta["val"].shape
            assert not same, f"it changes nothing: {node.format_node()}"


def _is_routing(node: fx.Node, op: Any) -> bool:
    """A softmax over experts, not over tokens."""
    softmax = op is aten.softmax.int and is_call(node, aten.softmax.int)
    return softmax and isinstance(node.meta["val"].shape[-1], int)


@pytest.mark.parametrize("name", tiny_names())
def test_the_graph_survives_its_text(name):
    for gm in (made(name).traced.gm, made(name).gm):
        text = print_program(from_fx(gm))
        assert print_program(parse_program(text)) == text

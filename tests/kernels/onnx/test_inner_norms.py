"""Norms of queries and keys inside attention, which the CUDA provider alone computes.

Here each is written before the operator again, as the operator's schema says it works, and run on a CPU: so
weights, order and packing are tested, if not the provider.
"""

from __future__ import annotations

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact
from optpipe.testing import model_of, tiny_config
from optpipe.testing.tokenizer import save_tokenizer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper  # noqa: E402

from optpipe_kernels.onnx.converter import ExportOptions  # noqa: E402
from optpipe_kernels.onnx.executor import OnnxExecutor  # noqa: E402
from optpipe_kernels.onnx.export import write_model  # noqa: E402
from optpipe_kernels.onnx.session import Settings  # noqa: E402
from optpipe_kernels.onnx.target import OnnxTarget  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 250, 40)
BOUND = 2e-5  # of a logit near 1 to 10, both sides in float32
OPTIONS = ExportOptions(context=64, rows="chosen", experts=False, norms=True)
Q_NORM, K_NORM = 14, 15  # inputs of the operator


def attributes(node):
    return {it.name: helper.get_attribute_value(it) for it in node.attribute}


def before(node, width):
    """The nodes that compute the norms, and the operator without them."""
    given, names = attributes(node), list(node.input)
    epsilon = given.pop("qk_norm_epsilon")
    heads = {"q": given["num_heads"], "k": given["kv_num_heads"], "v": given["kv_num_heads"]}
    made, parts = [], dict(zip("qkv", names[:3], strict=True))
    if not parts["k"]:
        parts = {it: f"{node.name}/{it}" for it in "qkv"}
        sizes = helper.make_node(
            "Constant", [], [f"{node.name}/sizes"], value_ints=[heads[it] * width for it in "qkv"]
        )
        made += [sizes, helper.make_node("Split", [names[0], sizes.output[0]], parts.values(), axis=-1)]
    for part, place in (("q", Q_NORM), ("k", K_NORM)):
        name = f"{node.name}/{part}"
        for suffix, shape in (("by_head", [0, 0, heads[part], width]), ("rows", [0, 0, -1])):
            made.append(helper.make_node("Constant", [], [f"{name}/{suffix}/shape"], value_ints=shape))
        made += [
            helper.make_node("Reshape", [parts[part], f"{name}/by_head/shape"], [f"{name}/by_head"]),
            helper.make_node(
                "RMSNormalization",
                [f"{name}/by_head", names[place]],
                [f"{name}/normed"],
                axis=-1,
                epsilon=epsilon,
            ),
            helper.make_node("Reshape", [f"{name}/normed", f"{name}/rows/shape"], [f"{name}/rows"]),
        ]
        names[place] = ""
    names[:3] = [f"{node.name}/q/rows", f"{node.name}/k/rows", parts["v"]]
    whole = helper.make_node(node.op_type, names, node.output, name=node.name, domain=node.domain, **given)
    return [*made, whole]


def saved(config, home):
    """A random model's folder."""
    model_of(config).save_pretrained(home / "model")
    save_tokenizer(home / "model")
    return home / "model"


def test_heads_that_are_rotated_before_are_normalized_before(tiny, tmp_path):
    """The operator rotates what it has normalized, and heads of 24 it does not rotate."""
    path = write_model(load_artifact(tiny("qwen3")), tmp_path, OPTIONS)
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    kinds = [it.op_type for it in nodes]
    norms = [it.name for it in nodes if it.op_type == "RMSNormalization" and "self_attn" in it.name]
    assert len(norms) == kinds.count("RotaryEmbedding") == 2 * kinds.count("GroupQueryAttention")


@pytest.mark.parametrize(("name", "passes"), [("qwen3", "quant,paged"), ("gemma3", "paged")])
def test_norms_inside_are_those_before(tmp_path, monkeypatch, name, passes):
    monkeypatch.setenv("OPTPIPE_CACHE", str(tmp_path / "cache"))
    config = tiny_config(name)
    config.head_dim = 32  # so that the rotation is inside too
    optpipe.optimize(str(saved(config, tmp_path)), passes=passes, output=tmp_path / "artifact", verify=False)
    artifact = load_artifact(tmp_path / "artifact")
    path = write_model(artifact, tmp_path, OPTIONS)
    model = onnx.load(str(path), load_external_data=False)
    width = next(it for it in model.graph.input if "past" in it.name).type.tensor_type.shape.dim[3].dim_value
    kinds = [it.op_type for it in model.graph.node]
    layers = kinds.count("GroupQueryAttention")
    nodes = []
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            assert len(node.input) > K_NORM and all(node.input[it] for it in (Q_NORM, K_NORM))
            assert not any(node.input[1:3])  # so one product makes queries, keys and values
            nodes += before(node, width)
        else:
            nodes.append(node)
    assert layers > 0 and len(nodes) > len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
    whole = OnnxTarget().load_artifact(artifact, threads=1, slot_tokens=64)
    undone = OnnxExecutor(path, whole.cache_spec.layers, 0, Settings("cpu", 1, 64))
    assert np.abs(undone.logits(TOKENS) - whole.logits(TOKENS)).max() < BOUND

"""Packed experts in one operator, where ONNX Runtime has it."""

from __future__ import annotations

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from optpipe_kernels.onnx.converter import ExportOptions  # noqa: E402
from optpipe_kernels.onnx.export import write_model  # noqa: E402
from optpipe_kernels.onnx.format import OnnxFormat  # noqa: E402
from optpipe_kernels.onnx.rules.qmoe import by_turns  # noqa: E402
from optpipe_kernels.onnx.target import OnnxTarget  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 250, 40)
BOUND = 2e-5  # of a logit near 1 to 10, both sides in float32
SYMMETRIC = "quant{zero=none},paged"


def operators(artifact, folder, **options):
    folder.mkdir()
    path = write_model(artifact, folder, ExportOptions(**options))
    return [it.op_type for it in onnx.load(str(path), load_external_data=False).graph.node]


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss"])
def test_symmetric_experts_are_one_operator_and_equal_the_reference(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setenv("OPTPIPE_CACHE", str(tmp_path / "cache"))
    artifact = load_artifact(tiny(name, passes=SYMMETRIC))
    layers = sum(it.op == "optpipe.quant_moe" for it in artifact.program.nodes)
    kinds = operators(artifact, tmp_path / "model")
    assert kinds.count("QMoE") == layers > 0 and "ScatterND" not in kinds
    wanted = optpipe.load(artifact, target="reference").logits(TOKENS)
    found = OnnxTarget().load_artifact(artifact, threads=1, slot_tokens=64).logits(TOKENS)
    assert np.abs(found - wanted).max() < BOUND


def test_what_the_operator_does_not_take_is_written_expert_by_expert(tiny, tmp_path):
    symmetric = load_artifact(tiny("mixtral", passes=SYMMETRIC))
    assert "QMoE" not in operators(symmetric, tmp_path / "standard", microsoft=False)
    minima = load_artifact(tiny("mixtral", passes="quant{zero=float},paged"))
    assert "QMoE" not in operators(minima, tmp_path / "minima")  # its zero points are integers
    bytes_ = load_artifact(tiny("mixtral", passes="quant{bits=8},paged"))
    assert "QMoE" not in operators(bytes_, tmp_path / "exact")  # it would round activations
    assert "QMoE" in operators(bytes_, tmp_path / "rounded", accuracy_level=4)


def test_the_form_of_the_cuda_provider_has_experts_one_by_one(tiny, tmp_path):
    """Its operator takes no weights of a router."""
    symmetric = load_artifact(tiny("mixtral", passes=SYMMETRIC))
    for dtype, held in {"float32": True, "float16": False}.items():
        folder = tmp_path / dtype
        OnnxFormat().export(symmetric, folder, dtype=dtype)
        nodes = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.node
        assert any(it.op_type == "QMoE" for it in nodes) is held


def test_rows_of_two_halves_by_turns():
    rows = np.array([[0, 1, 2, 10, 11, 12]])
    np.testing.assert_array_equal(by_turns(rows), [[0, 10, 1, 11, 2, 12]])

"""Mappings of third parties, and what is said without one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import PluginError, RequestError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from optpipe_kernels.onnx import export
from optpipe_kernels.onnx.target import OnnxTarget

TOKENS = np.arange(5, 45)


class Erfc:
    """As docs/onnx.md has it."""

    name = "aten.special_erfc"

    def write(self, converter, node):
        erf = converter.emit("Erf", converter.name(node.args[0]))
        converter.bind(node.results[0], converter.emit("Sub", converter.constant(1, "f32"), erf))


@pytest.fixture
def provided(monkeypatch, tmp_path):
    """Mappings as if a plugin had provided them."""
    monkeypatch.setenv("OPTPIPE_CACHE", str(tmp_path))

    def provide(*mappings):
        found = {
            it.name: SimpleNamespace(value=it, plugin=SimpleNamespace(distribution="acme")) for it in mappings
        }
        plugins = SimpleNamespace(onnx_mappings=lambda: found)
        monkeypatch.setattr(export, "installed_plugins", lambda: plugins)

    return provide


@pytest.fixture
def unusual(tiny):
    """An artifact whose rotary embedding takes erfc where others take sin."""
    opened = load_artifact(tiny("llama"))
    nodes = tuple(replace(it, op=Erfc.name) if it.op == "aten.sin" else it for it in opened.program.nodes)
    return replace(opened, program=replace(opened.program, nodes=nodes))


def test_a_plugins_mapping_is_used(provided, unusual):
    provided(Erfc())
    wanted = optpipe.load(unusual, target="reference").logits(TOKENS)
    found = OnnxTarget().load_artifact(unusual, threads=1, slot_tokens=64).logits(TOKENS)
    assert np.abs(found - wanted).max() < 2e-5


def test_without_one_the_operation_and_its_module_are_named(provided, unusual):
    provided()
    with pytest.raises(RequestError, match=r"aten\.special_erfc \(in 'model\.rotary_emb'\)"):
        OnnxTarget().load_artifact(unusual)


def test_no_plugin_replaces_a_mapping_of_ours(provided, unusual):
    ours = Erfc()
    ours.name = "aten.cos"
    provided(ours)
    with pytest.raises(PluginError, match="acme"):
        OnnxTarget().load_artifact(unusual)

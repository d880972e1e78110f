"""Mappings of third parties, and what is said without one."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
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


DOCS = Path(__file__).resolve().parents[3] / "docs" / "onnx.md"


def documented():
    """The mapping of docs/onnx.md, from its own code."""
    section = DOCS.read_text().split("## Mappings of your own")[1]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    found = {}
    exec(textwrap.dedent("\n".join(lines)), found)
    (mapping,) = found["optpipe_onnx_mappings"]()
    return mapping


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
    nodes = tuple(
        replace(it, op="aten.special_erfc") if it.op == "aten.sin" else it for it in opened.program.nodes
    )
    return replace(opened, program=replace(opened.program, nodes=nodes))


def test_a_plugins_mapping_is_used(provided, unusual):
    provided(documented())
    wanted = optpipe.load(unusual, target="reference").logits(TOKENS)
    found = OnnxTarget().load_artifact(unusual, threads=1, slot_tokens=64).logits(TOKENS)
    assert np.abs(found - wanted).max() < 2e-5


def test_without_one_the_operation_and_its_module_are_named(provided, unusual):
    provided()
    with pytest.raises(RequestError, match=r"aten\.special_erfc \(in 'model\.rotary_emb'\)"):
        OnnxTarget().load_artifact(unusual)


def test_no_plugin_replaces_a_mapping_of_ours(provided, unusual, monkeypatch):
    ours = documented()
    monkeypatch.setattr(ours, "name", "aten.cos")
    provided(ours)
    with pytest.raises(PluginError, match="acme"):
        OnnxTarget().load_artifact(unusual)

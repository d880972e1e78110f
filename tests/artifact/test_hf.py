"""Folders that transformers loads: what it computes is what the graph computes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import optpipe
from optpipe.artifact import load_artifact
from optpipe.artifact.export import export_hf
from optpipe.artifact.hf import _targets
from optpipe.dialect.row_wise_linear import row_wise_linear
from optpipe.errors import ArtifactError
from optpipe.quantize.pack import unpack
from optpipe.targets.reference import ReferenceExecutor
from optpipe.testing import tolerance
from optpipe.weights.grid import QuantizedTensor

IDS = torch.arange(3, 67)


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and compressed-tensors deprecate in passing
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS[None]).logits[0]
    return logits


def transformers_logits(folder: Path) -> torch.Tensor:
    return logits_of(transformers_model(folder))


def our_logits(folder: Path) -> torch.Tensor:
    return torch.from_numpy(optpipe.load(folder).logits(IDS.numpy()))


def assert_same(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine, theirs, **tolerance("float32 sum"))


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        ("llama", "quant{zero=none}"),
        ("llama", "quant{bits=8}"),
        ("llama", "quant{zero=none head=none}"),
        ("llama", "quant{zero=none head=4 skip=*.o_proj}"),
        ("qwen2", "quant{zero=none group=64}"),
        ("gemma3", "quant{zero=none}"),
        ("llama", "paged"),
        ("gpt2", "paged"),
    ],
)
def test_transformers_gives_the_artifacts_logits(
    made: Callable[[str, str], Path], model: str, passes: str
) -> None:
    pytest.importorskip("compressed_tensors")
    folder = made(model, passes)
    manifest = load_artifact(folder).manifest
    assert manifest.hf_obstacle is None
    assert manifest.hf_loadable
    assert_same(our_logits(folder), transformers_logits(folder))


def test_transformers_unpacks_the_very_weights(made: Callable[[str, str], Path]) -> None:
    pytest.importorskip("compressed_tensors")
    folder = made("llama", "quant{zero=none}")
    stored = load_artifact(folder).weights
    model = transformers_model(folder)
    logits_of(model)  # unpacks, if loading did not
    for name, bits in (("model.layers.0.self_attn.q_proj", 4), ("lm_head", 8)):
        words, scale = (stored[f"{name}.weight_{part}"].load() for part in ("packed", "scale"))
        weight = model.get_submodule(name).weight
        codes = unpack(words, bits, weight.shape[1])
        group = -1 if scale.shape[1] == 1 else weight.shape[1] // scale.shape[1]
        assert torch.equal(weight, QuantizedTensor(codes, scale, None, bits, group).dequantize())


@pytest.mark.parametrize(
    ("model", "passes", "reason"),
    [
        ("llama", "quant", "float minimum"),
        ("gemma3", "quant", "compressed-tensors packs linear layers only"),
        ("gpt2", "quant{zero=none}", "belongs to a Conv1D"),
        ("mixtral", "quant{zero=none}", "experts"),
    ],
)
def test_says_what_stands_in_the_way_and_exports_all_the_same(
    made: Callable[[str, str], Path], tmp_path: Path, model: str, passes: str, reason: str
) -> None:
    folder = made(model, passes)
    opened = load_artifact(folder)
    assert not opened.manifest.hf_loadable
    assert reason in str(opened.manifest.hf_obstacle)
    assert f"(by the pass '{passes}')" in str(opened.manifest.hf_obstacle)
    assert "quantization_config" not in opened.config
    export_hf(opened, tmp_path / "plain")
    assert_same(our_logits(folder), transformers_logits(tmp_path / "plain"))


def test_export_of_a_loadable_artifact_is_plain(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = made("llama", "quant{zero=none}")
    export_hf(load_artifact(folder), tmp_path / "plain", shard_bytes=20_000)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config
    assert len(list((tmp_path / "plain").glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "plain" / "graph.opt").exists()
    assert_same(our_logits(folder), transformers_logits(tmp_path / "plain"))


def test_export_in_half_precision_halves_the_weights(
    made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    opened = load_artifact(made("llama", "quant"))
    export_hf(opened, tmp_path / "wide")
    export_hf(opened, tmp_path / "narrow", dtype="bfloat16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "narrow")]
    assert sizes[1] < 0.6 * sizes[0]


def test_export_refuses_what_it_cannot_write(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    opened = load_artifact(made("llama", "quant"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty"):
        export_hf(opened, tmp_path / "taken")
    with pytest.raises(ArtifactError, match="as 'int3'"):
        export_hf(opened, tmp_path / "new", dtype="int3")


def test_a_packed_head_is_untied_in_the_config(made: Callable[[str, str], Path]) -> None:
    config = load_artifact(made("gemma3", "quant{zero=none}")).config
    assert config["tie_word_embeddings"] is False


def test_targets_are_patterns_only_where_they_mean_no_other_layer() -> None:
    every = [f"model.layers.{i}.{name}" for i in range(3) for name in ("q", "k")] + ["lm_head"]
    names = ["model.layers.0.q", "model.layers.1.q", "model.layers.2.q", "model.layers.1.k", "lm_head"]
    assert _targets(names, every) == [r"re:model\.layers\.\d+\.q$", "model.layers.1.k", "lm_head"]


@pytest.mark.parametrize(
    ("scheme", "head", "form"),
    [("w8a8", "none", "int-quantized"), ("fp8", "none", "float-quantized"), ("fp8", "8", "mixed-precision")],
)
def test_transformers_reads_rows_of_8_bits(
    made: Callable[[str, str], Path], tmp_path: Path, scheme: str, head: str, form: str
) -> None:
    """The very weights, and activations rounded a token at a time: one of its layers gives what ours does.

    compressed-tensors divides int8 activations by 127.5 where we divide by 127, so only float8 is compared.
    """
    pytest.importorskip("compressed_tensors")
    folder = made("llama", f"quant{{scheme={scheme} head={head}}}")
    opened = load_artifact(folder)
    assert opened.config["quantization_config"]["format"] == form
    model = transformers_model(folder)
    logits_of(model)
    name = "model.layers.0.mlp.up_proj"
    weight, scale = (opened.weights[f"{name}.weight{part}"].load() for part in ("", "_scale"))
    theirs = model.get_submodule(name)
    assert torch.equal(theirs.weight, weight.float() * scale)
    x = torch.randn(1, 5, weight.shape[1], generator=torch.Generator().manual_seed(1))
    if scheme == "fp8":
        with torch.no_grad():
            torch.testing.assert_close(
                theirs(x), row_wise_linear(x, weight, scale), **tolerance("float32 sum")
            )
    export_hf(opened, tmp_path / "plain")
    smooth = ReferenceExecutor(opened.graph(), opened.weights, rounds=False).logits(IDS.numpy())
    assert_same(torch.from_numpy(smooth), transformers_logits(tmp_path / "plain"))

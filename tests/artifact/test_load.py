"""A folder that was touched is refused, and the error says what is wrong with which file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import optpipe
from optpipe.artifact import load_artifact
from optpipe.artifact.folder import hash_folder
from optpipe.artifact.manifest import NAME, FileEntry, Manifest, read_manifest, write_manifest
from optpipe.errors import ArtifactError


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def reseal(folder: Path, **changes: object) -> None:
    """Make the manifest agree with the files again, as someone with bad intent could."""
    content = read_manifest(folder).to_json() | changes
    (folder / NAME).unlink()
    files = hash_folder(folder)
    manifest = Manifest(**{**content, "files": files})  # type: ignore[arg-type]
    write_manifest(folder, manifest)


def test_loads_what_was_saved(artifact: Path) -> None:
    opened = load_artifact(artifact)
    assert opened.program.weights.keys() == opened.weights.keys()
    assert opened.manifest.cache is None
    assert "quant{zero=none}" in opened.manifest.pipeline
    assert opened.read("tokenizer.json") is not None
    assert opened.read("no_such.json") is None


def test_opening_needs_no_torch(artifact: Path) -> None:
    code = (
        "import sys; from optpipe.artifact import load_artifact; "
        f"a = load_artifact({str(artifact)!r}); assert a.program.nodes; "
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["model.safetensors", "graph.opt", "config.json", "constants.safetensors"])
def test_a_flipped_byte_is_found(artifact: Path, name: str) -> None:
    flip(artifact / name)
    with pytest.raises(ArtifactError, match=f"'{name}' .* was changed"):
        load_artifact(artifact)


def test_a_flipped_byte_of_the_manifest_is_found(artifact: Path) -> None:
    text = (artifact / NAME).read_bytes()
    for at in range(0, len(text), 97):
        flip(artifact / NAME, at)
        try:
            manifest = read_manifest(artifact)
        except ArtifactError:
            continue
        finally:
            (artifact / NAME).write_bytes(text)
        assert manifest == read_manifest(artifact)  # the flip hit a space


@pytest.mark.parametrize(
    ("keep", "message"), [(-1, "is cut short: [0-9]+ bytes of"), (0, "is cut short: 0 bytes of")]
)
def test_a_truncated_file_is_found_without_reading_hashes(artifact: Path, keep: int, message: str) -> None:
    path = artifact / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=message):
        load_artifact(artifact, hashes=False)


def test_a_longer_file_is_found(artifact: Path) -> None:
    with (artifact / "graph.opt").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ArtifactError, match="is too long"):
        load_artifact(artifact, hashes=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "graph.opt"])
def test_a_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"'{name}' .* is missing"):
        load_artifact(artifact)


def test_a_missing_manifest_means_no_artifact(artifact: Path, tmp_path: Path) -> None:
    (artifact / NAME).unlink()
    with pytest.raises(ArtifactError, match="not an optpipe artifact"):
        load_artifact(artifact)
    with pytest.raises(ArtifactError, match="is not a folder"):
        load_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".hidden", "modeling.py"])
def test_an_extra_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).write_text("x")
    with pytest.raises(ArtifactError, match=f"extra entry '{name}'"):
        load_artifact(artifact)


def test_an_extra_folder_is_named(artifact: Path) -> None:
    (artifact / "nested").mkdir()
    with pytest.raises(ArtifactError, match="extra entry 'nested'"):
        load_artifact(artifact)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_link_is_refused_even_with_the_right_content(artifact: Path, tmp_path: Path, where: str) -> None:
    path = artifact / "config.json"
    real = tmp_path / "elsewhere.json" if where == "outside" else artifact / "tokenizer.json"
    if where == "outside":
        path.rename(real)
    else:
        path.unlink()
    path.symlink_to(real)
    with pytest.raises(ArtifactError, match=r"'config\.json' .* is a link"):
        load_artifact(artifact)


def test_a_linked_manifest_is_refused(artifact: Path, tmp_path: Path) -> None:
    (artifact / NAME).rename(tmp_path / NAME)
    (artifact / NAME).symlink_to(tmp_path / NAME)
    with pytest.raises(ArtifactError, match="is a link"):
        load_artifact(artifact)


def test_a_folder_in_place_of_a_file_is_refused(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    (artifact / "config.json").mkdir()
    with pytest.raises(ArtifactError, match="not a plain file"):
        load_artifact(artifact)


def test_a_newer_format_is_refused_whatever_else_it_says(artifact: Path) -> None:
    (artifact / NAME).write_text(json.dumps({"format": 2, "new": "things"}))
    with pytest.raises(ArtifactError, match=r"is of format 2; .* up to format 1") as caught:
        load_artifact(artifact)
    assert "upgrade" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "1"}', '{"format": 0}', '{"format": true}', "[" * 100_000]
)
def test_a_manifest_that_is_none_is_refused(artifact: Path, text: str) -> None:
    (artifact / NAME).write_text(text)
    with pytest.raises(ArtifactError, match=r"optpipe\.json"):
        load_artifact(artifact)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/b", "", ".", "..", "a\0b", "x" * 300])
def test_a_manifest_cannot_name_files_elsewhere(artifact: Path, name: str) -> None:
    manifest = read_manifest(artifact)
    manifest.files[name] = FileEntry(0, "0" * 64)
    write_manifest(artifact, manifest)
    with pytest.raises(ArtifactError, match="is not allowed"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": []}, "dict"),
        ({"pipeline": 3}, "str"),
        ({"cache": {"block": -1, "bytes_per_token": 1, "tensors": []}}, "count"),
        ({"hf_loadable": "yes"}, "bool"),
    ],
)
def test_a_manifest_of_wrong_types_is_refused(
    artifact: Path, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_manifest(artifact).to_json() | changes
    monkeypatch.setattr(Manifest, "to_json", lambda self: content)
    write_manifest(artifact, Manifest("", (), {}, {}, {}, None, False, None))
    with pytest.raises(ArtifactError, match=message):
        load_artifact(artifact)


def test_an_unknown_operation_is_refused(artifact: Path) -> None:
    text = (artifact / "graph.opt").read_text()
    (artifact / "graph.opt").write_text(text.replace("optpipe.rms_norm(", "optpipe.rms_nrom("))
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"'optpipe\.rms_nrom' is unknown"):
        load_artifact(artifact).graph()
    with pytest.raises(ArtifactError, match=r"'optpipe\.rms_nrom' is unknown"):
        optpipe.load(artifact)


def test_a_malformed_graph_names_file_and_line(artifact: Path) -> None:
    text = (artifact / "graph.opt").read_text()
    (artifact / "graph.opt").write_text(text.replace("return ", "retrun "))
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"graph\.opt.*Line \d+"):
        load_artifact(artifact)


def test_a_graph_of_other_characters_is_refused(artifact: Path) -> None:
    (artifact / "graph.opt").write_bytes(b"optpipe.program 1\n\xff\n")
    reseal(artifact)
    with pytest.raises(ArtifactError, match="ASCII"):
        load_artifact(artifact)


def test_a_config_that_is_no_object_is_refused(artifact: Path) -> None:
    (artifact / "config.json").write_text("[1]")
    reseal(artifact)
    with pytest.raises(ArtifactError, match="no JSON object"):
        load_artifact(artifact)


def test_weights_that_are_not_what_the_graph_says_are_refused(artifact: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(artifact / "model.safetensors")
    name = "model.norm.weight"
    save_file(tensors | {name: tensors[name].half()}, artifact / "model.safetensors")
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"'model\.norm\.weight' .* is f16 of .* says f32"):
        _ = load_artifact(artifact).weights
    del tensors[name]
    save_file(tensors, artifact / "model.safetensors")
    reseal(artifact)
    with pytest.raises(ArtifactError, match=r"lacks the weight 'model\.norm\.weight'"):
        _ = load_artifact(artifact).weights


def test_damaged_safetensors_that_were_hashed_again_are_refused(artifact: Path) -> None:
    path = artifact / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    reseal(artifact)
    with pytest.raises(ArtifactError, match="cut short"):
        _ = load_artifact(artifact).weights


def test_the_cache_of_a_paged_artifact_is_described(made: Callable[[str, str], Path]) -> None:
    cache = load_artifact(made("llama", "paged")).manifest.cache
    assert cache is not None
    assert cache.block == 16
    assert cache.tensors[0].type.startswith("f32[P, 16, ")
    per_layer = [one for one in cache.tensors if one.name.endswith(".0")]
    assert len(per_layer) == 2
    assert cache.bytes_per_token % (4 * len(cache.tensors)) == 0


def test_weights_are_the_saved_ones(made: Callable[[str, str], Path]) -> None:
    from safetensors.torch import load_file

    folder = made("llama", "quant{zero=none}")
    library = load_file(folder / "model.safetensors")
    ours = load_artifact(folder).weights
    for name in ours:
        if name in library:
            assert torch.equal(ours[name].load(), library[name])

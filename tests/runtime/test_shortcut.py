"""A model where an artifact is expected."""

import json
import os
import threading
import time

import pytest

import optpipe
from optpipe.artifact.folder import hash_folder
from optpipe.artifact.manifest import NAME
from optpipe.cli.main import run
from optpipe.errors import ArtifactError, ModelError
from optpipe.testing import save_tiny
from optpipe_runtime.shortcut import artifact_of


@pytest.fixture
def made(monkeypatch):
    """→ what was optimized: (model, passes, output). Nothing is; the artifact is a manifest of two files."""
    calls = []

    def optimize(model, *, passes, output, trust_remote_code, progress):
        calls.append((model, passes, output))
        time.sleep(0.05)
        output.mkdir(parents=True)
        (output / "graph.opt").write_text("x")
        (output / NAME).write_text("{}")

    monkeypatch.setattr(optpipe, "optimize", optimize)
    monkeypatch.setattr("optpipe_runtime.shortcut.read_manifest", lambda folder: None)
    monkeypatch.setattr("optpipe_runtime.shortcut.check_files", check)
    return calls


def check(folder, manifest, *, hashes):
    if not (folder / "graph.opt").is_file():
        raise ArtifactError("damaged")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"123")
    return folder


def test_an_artifact_is_itself(tmp_path, made):
    (tmp_path / NAME).write_text("{}")
    assert artifact_of(tmp_path) == tmp_path
    with pytest.raises(ArtifactError, match="takes no passes"):
        artifact_of(tmp_path, passes="quant")
    assert made == []


def test_what_is_neither_is_left_to_who_opens_artifacts(tmp_path, made):
    for path in (tmp_path, tmp_path / "none", "nowhere", "./no/where/at/all"):
        assert str(artifact_of(path)) == str(path).removeprefix("./")
    assert made == []


def test_a_model_is_optimized_once_and_found_again(model, tmp_path, made):
    said = []
    first = artifact_of(model, cache=tmp_path, say=said.append)
    assert artifact_of(model, cache=tmp_path, say=said.append) == first
    assert made == [(str(model), "paged", first)]
    assert "optimizing it first, with --passes paged" in said[0]
    assert "was optimized before" in said[1]
    assert first.parent == tmp_path / "artifacts"


def test_another_pipeline_or_another_content_is_another_artifact(model, tmp_path, made):
    folders = [artifact_of(model, cache=tmp_path), artifact_of(model, cache=tmp_path, passes="quant,paged")]
    assert artifact_of(model, cache=tmp_path, passes=" quant, paged ") == folders[1]
    (model / "model.safetensors").write_bytes(b"1234")
    folders.append(artifact_of(model, cache=tmp_path))
    (model / "config.json").write_text('{"model_type": "gemma"}')
    folders.append(artifact_of(model, cache=tmp_path))
    os.utime(model / "model.safetensors", ns=(1, 1))
    folders.append(artifact_of(model, cache=tmp_path))
    assert len(set(folders)) == 5
    assert len(made) == 5


def test_a_damaged_one_is_made_again(model, tmp_path, made, monkeypatch):
    folder = artifact_of(model, cache=tmp_path)
    (folder / "graph.opt").unlink()
    monkeypatch.setattr(optpipe, "optimize", lambda model, output, **options: made.append(output))
    artifact_of(model, cache=tmp_path)
    assert made[-1] == folder


def test_several_at_once_make_it_once(model, tmp_path, made):
    found, said = [], []
    threads = [
        threading.Thread(target=lambda: found.append(artifact_of(model, cache=tmp_path, say=said.append)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(set(found)) == 1
    assert sum("waiting for it" in it for it in said) == 3


def test_a_failure_leaves_nothing_that_would_be_used(model, tmp_path, made, monkeypatch):
    def fail(*arguments, **options):
        raise ModelError("It cannot be read.")

    with monkeypatch.context() as patch:
        patch.setattr(optpipe, "optimize", fail)
        with pytest.raises(ModelError):
            artifact_of(model, cache=tmp_path)
    assert artifact_of(model, cache=tmp_path).is_dir()
    assert len(made) == 1


def test_generate_takes_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPTPIPE_CACHE", str(tmp_path / "cache"))
    model = save_tiny("llama", tmp_path / "model")
    options = ["generate", str(model), "the quick", "--raw", "--max-tokens", "4", "--json"]
    assert run(options) == 0
    first = capsys.readouterr()
    assert "is a model: optimizing it first" in first.err
    [folder] = [it for it in (tmp_path / "cache/artifacts").iterdir() if it.is_dir()]
    before = hash_folder(folder)
    assert run(options) == 0
    second = capsys.readouterr()
    assert "was optimized before" in second.err
    assert json.loads(first.out)["token_ids"] == json.loads(second.out)["token_ids"]
    assert hash_folder(folder) == before

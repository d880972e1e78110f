"""Writing folders: all or nothing, only where nothing is lost, a tensor at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from optpipe.artifact import save
from optpipe.artifact.folder import check_target, written_whole
from optpipe.artifact.load import load_artifact
from optpipe.artifact.manifest import NAME, Manifest, write_manifest
from optpipe.artifact.save import Draft, save_artifact
from optpipe.artifact.tensors import INDEX, write_sharded, write_tensors
from optpipe.errors import ArtifactError
from optpipe.program import parse_program
from optpipe.weights.store import BaseWeight, LazyWeight, TensorWeight

GRAPH = """\
optpipe.program 1
input %x: f32[T, 4]
weight @a.weight: f32[6, 4] stored f32
%0: f32[T, 6] = aten.linear(%x, @a.weight)
return %0
"""


def draft(**changes: object) -> Draft:
    weights: dict[str, LazyWeight] = {"a.weight": TensorWeight(torch.randn(6, 4))}
    base = {
        "program": parse_program(GRAPH),
        "weights": weights,
        "config": {},
        "files": {},
        "pipeline": "quant",
    }
    return Draft(**{**base, **changes})  # type: ignore[arg-type]


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_saved_loads(tmp_path: Path) -> None:
    first = draft(files={"tokenizer.json": b"{}"}, source={"kind": "test"})
    manifest = save_artifact(first, tmp_path / "deep" / "er")
    opened = load_artifact(tmp_path / "deep" / "er")
    assert opened.manifest == manifest
    assert opened.program == first.program
    assert torch.equal(opened.weights["a.weight"].load(), first.weights["a.weight"].load())
    assert opened.read("tokenizer.json") == b"{}"


def test_an_artifact_is_replaced(tmp_path: Path) -> None:
    save_artifact(draft(pipeline="one", files={"tokenizer.json": b"{}"}), tmp_path / "a")
    save_artifact(draft(pipeline="two"), tmp_path / "a")
    assert load_artifact(tmp_path / "a").manifest.pipeline == "two"
    assert leftovers(tmp_path) == ["a"]


def _half_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "print_program", lambda program: GRAPH[:60])


def _another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter([GRAPH.replace("%0", "%1"), GRAPH])
    monkeypatch.setattr(save, "print_program", lambda program: next(texts))


def _another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"a.weight": TensorWeight(torch.zeros(4, 6))}
    monkeypatch.setattr(save, "write_sharded", lambda folder, weights, **_: write_sharded(folder, wrong))


def _a_flipped_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, manifest: Manifest) -> None:
        write_manifest(folder, manifest)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    monkeypatch.setattr(save, "write_manifest", write)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_half_a_graph, "graph.opt"),
        (_another_graph, "reads back as another one"),
        (_another_shape, "its graph says"),
        (_a_flipped_bit, "was changed"),
    ],
)
def test_what_does_not_read_back_is_not_kept(
    spoil: Callable[[pytest.MonkeyPatch], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    spoil(monkeypatch)
    with pytest.raises(ArtifactError, match=f"was not kept: .*{message}"):
        save_artifact(draft(), tmp_path / "a")
    assert leftovers(tmp_path) == []


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not empty and not an optpipe artifact"):
        save_artifact(draft(), tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a folder"):
        save_artifact(draft(), tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(ArtifactError, match="is not a folder"):
        save_artifact(draft(), tmp_path / "link")
    assert leftovers(tmp_path) == ["file", "link", "model"]
    assert leftovers(tmp_path / "model") == ["config.json"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    save_artifact(draft(), tmp_path / "a")
    assert load_artifact(tmp_path / "a")


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    class Broken(BaseWeight):
        def load(self) -> torch.Tensor:
            raise RuntimeError("the disk of the source is gone")

    save_artifact(draft(pipeline="one"), tmp_path / "a")
    weight = Broken((6, 4), torch.float32, 96)
    with pytest.raises(RuntimeError, match="gone"):
        save_artifact(draft(pipeline="two", weights={"a.weight": weight}), tmp_path / "a")
    assert leftovers(tmp_path) == ["a"]
    assert load_artifact(tmp_path / "a").manifest.pipeline == "one"


def test_a_full_disk_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"), written_whole(tmp_path / "a"):
        raise OSError(28, os.strerror(28))
    assert leftovers(tmp_path) == []


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "a" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    (tmp_path / "a").rename(tmp_path / "later")
    with pytest.raises(ArtifactError, match="not empty"), written_whole(tmp_path / "a"):
        (tmp_path / "later").rename(tmp_path / "a")
    assert leftovers(tmp_path) == ["a"]
    assert leftovers(tmp_path / "a") == ["mine"]


def test_a_parent_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="does not allow it"):
        check_target(tmp_path / "file" / "a")


@pytest.mark.parametrize("name", ["../x", "graph.opt", NAME, "model.safetensors", "a/b", ".cache"])
def test_a_models_files_cannot_take_the_artifacts_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be stored|artifacts use themselves"):
        save_artifact(draft(files={name: b""}), tmp_path / "a")
    assert leftovers(tmp_path) == []


def tensors() -> dict[str, torch.Tensor]:
    return {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "long": torch.tensor([3, 5]),
        "codes": torch.randint(0, 255, (9,), dtype=torch.uint8),
        "wide": torch.randn(4, 4, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "words": torch.arange(-3, 9, dtype=torch.int32),
        "view": torch.arange(12.0).view(3, 4).T,
    }


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = tensors()
    write_tensors(tmp_path / "x.safetensors", {name: TensorWeight(tensor) for name, tensor in given.items()})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_large_weights_are_read_by_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr("optpipe.artifact.tensors._SLAB_BYTES", 100)
    values = torch.randn(37, 5)
    asked = []

    class Rows(BaseWeight):
        def rows(self, index: torch.Tensor) -> torch.Tensor:
            asked.append(len(index))
            return values[index]

    write_tensors(tmp_path / "x.safetensors", {"a": Rows((37, 5), torch.float32, 740)})
    assert max(asked) == 5
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], values)


def test_shards_are_cut_between_tensors_and_listed(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file

    given = {f"w{i}": torch.full((10,), float(i)) for i in range(7)}
    weights: dict[str, LazyWeight] = {name: TensorWeight(tensor) for name, tensor in given.items()}
    write_sharded(tmp_path, weights, shard_bytes=100)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 280}
    assert set(index["weight_map"].values()) == {f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], given[name])


def test_a_dtype_without_a_place_is_an_error(tmp_path: Path) -> None:
    weights: dict[str, LazyWeight] = {"z": TensorWeight(torch.zeros(2, dtype=torch.complex64))}
    with pytest.raises(ArtifactError, match="do not hold"):
        write_tensors(tmp_path / "x.safetensors", weights)

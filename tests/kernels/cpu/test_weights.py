"""Packed weights in the cache folder: mapped the second time, and packed anew when they are not whole."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from optpipe_kernels.cpu import making, weights
from optpipe_kernels.cpu.lowering.recipe import Experts, Joined, Linear, Matrix, Plain
from optpipe_kernels.cpu.lowering.view import External
from optpipe_kernels.cpu.making import make, pieces
from optpipe_kernels.cpu.tensors import map_tensors
from optpipe_kernels.cpu.weights import cached_weights

RECIPES = {
    External("weight", "table"): Plain("table", "f32"),
    External("weight", "bias"): Joined((("bias", 24), (None, 8))),
    External("weight", "layer"): Linear((Matrix(("layer",), 32),), 20, 32, 0),
}


@pytest.fixture
def read(randn):
    tensors = {"table": randn(7, 5), "bias": randn(24), "layer": randn(32, 20)}

    def read(name):
        read.names.append(name)
        return tensors[name]

    read.names = []
    return read


def same(packed, expected):
    assert packed.arrays.keys() == expected.keys()
    for external, array in expected.items():
        np.testing.assert_array_equal(packed.arrays[external], array)


@pytest.fixture
def expected(read):
    arrays = {external: make(recipe, read) for external, recipe in RECIPES.items()}
    read.names.clear()
    return arrays


def test_the_second_load_maps_what_the_first_one_packed(read, expected, tmp_path):
    first = cached_weights(RECIPES, read, "an artifact", tmp_path)
    assert sorted(read.names) == ["bias", "layer", "table"]
    read.names.clear()
    second = cached_weights(RECIPES, read, "an artifact", tmp_path)
    assert read.names == []
    same(first, expected)
    same(second, expected)
    assert all(it.ctypes.data % 64 == 0 and not it.flags.writeable for it in second.arrays.values())
    assert (second.loaded, second.nbytes) == (0, sum(it.nbytes for it in expected.values()))


def test_other_content_or_other_recipes_have_other_folders(read, tmp_path):
    cached_weights(RECIPES, read, "an artifact", tmp_path)
    cached_weights(RECIPES, read, "another", tmp_path)
    cached_weights(dict(list(RECIPES.items())[:2]), read, "an artifact", tmp_path)
    assert len(list((tmp_path / "cpu").iterdir())) == 3


def cut(place):
    (place / "weights.bin").write_bytes((place / "weights.bin").read_bytes()[:100])


def lost_index(place):
    (place / "index.json").unlink()


def no_json(place):
    (place / "index.json").write_text("{")


def other_index(place, change):
    """An index that says what it was told to, with a digest that is right."""
    index = json.loads((place / "index.json").read_text().split("\n", 1)[1])
    change(index["arrays"])
    text = json.dumps(index)
    (place / "index.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def outside(place):
    other_index(place, lambda arrays: arrays["table"].__setitem__(0, 1 << 40))


def missing(place):
    other_index(place, lambda arrays: arrays.pop("bias"))


def flipped_bit(place, name="weights.bin", at=700):
    data = bytearray((place / name).read_bytes())
    data[at] ^= 16
    (place / name).write_bytes(data)


def flipped_bit_of_the_index(place):
    flipped_bit(place, "index.json", 90)


def flipped_bit_at_the_end(place):
    flipped_bit(place, at=-1)


def zeros(place):
    """As a page that never reached the disk."""
    data = (place / "weights.bin").read_bytes()
    (place / "weights.bin").write_bytes(data[:64] + bytes(512) + data[576:])


def odd_end(place):
    (place / "weights.bin").write_bytes((place / "weights.bin").read_bytes() + b"x")


DAMAGES = [cut, lost_index, no_json, outside, missing, flipped_bit, flipped_bit_of_the_index]
DAMAGES += [flipped_bit_at_the_end, zeros, odd_end]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_packed_anew(read, expected, tmp_path, caplog, damage):
    cached_weights(RECIPES, read, "an artifact", tmp_path)
    (place,) = (tmp_path / "cpu").iterdir()
    damage(place)
    with caplog.at_level("WARNING"):
        same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert f"{place} are damaged" in caplog.text
    read.names.clear()
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert read.names == []


def test_every_byte_counts(read, tmp_path):
    cached_weights(RECIPES, read, "an artifact", tmp_path)
    (place,) = (tmp_path / "cpu").iterdir()
    raw = np.fromfile(place / "weights.bin", np.uint8)
    for at in range(len(raw)):
        changed = raw.copy()
        changed[at] ^= 1 << at % 8
        assert weights._sums(changed) != weights._sums(raw)


def test_a_sum_is_of_one_megabyte():
    raw = np.zeros(5 << 19, np.uint8)
    raw[(1 << 20) - 1], raw[2 << 20] = 1, 7
    assert weights._sums(raw) == [1 << 56, 0, 7]


def test_a_folder_that_cannot_be_written_keeps_the_weights_in_memory(read, expected, tmp_path, caplog):
    (tmp_path / "cpu").write_text("a file stands where the folder would be")
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert "stay in memory" in caplog.text


def test_a_disk_that_fills_up_keeps_the_weights_in_memory(read, expected, tmp_path, monkeypatch, caplog):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    packed = cached_weights(RECIPES, read, "an artifact", tmp_path)
    same(packed, expected)
    assert packed.loaded == packed.nbytes
    assert "stay in memory: [Errno 28] No space left" in caplog.text
    assert list((tmp_path / "cpu").iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_keeps_the_weights_in_memory(
    read, expected, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(weights, "_mapped", lambda *_: None)
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert "cannot be read back" in caplog.text


def test_two_processes_at_once_leave_one_folder(read, expected, tmp_path, monkeypatch):
    def also_packs(*arguments):
        monkeypatch.undo()
        cached_weights(RECIPES, read, "an artifact", tmp_path)  # the other one is first
        return rename(*arguments)

    rename = weights._rename
    monkeypatch.setattr(weights, "_rename", also_packs)
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert len(list((tmp_path / "cpu").iterdir())) == 1


LARGE = {
    "plain": Plain("rows", "f32"),
    "widened": Plain("bits", "f32"),
    "float": Linear((Matrix(("rows",), 100),), 64, 32, 0),
    "transposed": Linear((Matrix(("rows",), 64, transposed=True),), 100, 32, 0),
    "codes": Linear((Matrix(("codes", "scale", "minimum"), 100),), 64, 4, 32),
    "a scale a row": Linear((Matrix(("codes8", "row_scale", None), 100),), 64, 8, -1),
    "experts": Experts(Matrix(("stack",), 50), 2, 64, 32, 0),
    "experts' codes": Experts(Matrix(("stacked_codes", "stacked_scale", None), 20), 5, 64, 4, 32),
}


@pytest.mark.parametrize("recipe", LARGE.values(), ids=LARGE)
def test_the_pieces_of_a_large_weight_are_the_whole(randn, tmp_path, monkeypatch, recipe):
    codes = np.random.default_rng(1).integers(-(1 << 31), 1 << 31, (100, 16), dtype=np.int32)
    scale = randn(100, 2).astype(np.float16)
    tensors = {
        "rows": randn(100, 64),
        "stack": randn(2, 50, 64),
        "codes": codes[:, :8].copy(),
        "codes8": codes,
    }
    tensors |= {"scale": scale, "minimum": scale[::-1], "row_scale": scale[:, :1]}
    tensors |= {"bits": (codes >> 16).astype(np.uint16)}
    tensors |= {"stacked_codes": codes[:, :8].reshape(5, 20, 8), "stacked_scale": scale.reshape(5, 20, 2)}
    whole = make(recipe, tensors.__getitem__)
    monkeypatch.setattr(making, "SLAB", 2000)
    parts = list(pieces(recipe, tensors.__getitem__))
    assert len(parts) > 1
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    external, forgotten = External("weight", "it"), []
    cached = cached_weights(
        {external: recipe}, tensors.__getitem__, "", tmp_path, forget=lambda: forgotten.append(1)
    )
    same(cached, {external: whole})
    assert len(forgotten) == len(parts)


def test_what_was_forgotten_of_a_mapped_file_is_read_again(tmp_path):
    data, path = np.arange(1 << 18, dtype=np.int32), tmp_path / "it.safetensors"
    header = json.dumps(
        {"it": {"dtype": "I32", "shape": [1 << 18], "data_offsets": [0, data.nbytes]}}
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data.tobytes())
    tensors = map_tensors(path)

    def resident():
        """KiB of the file in this process's memory."""
        maps = Path("/proc/self/smaps").read_text().split(f"{path}\n")
        return sum(int(it.split("Rss:")[1].split()[0]) for it in maps[1:])

    assert tensors["it"].sum(dtype=np.int64) == data.sum(dtype=np.int64)
    assert resident() >= 1024
    tensors.forget()
    assert resident() == 0
    np.testing.assert_array_equal(tensors["it"], data)

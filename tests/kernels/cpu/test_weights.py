"""Packed weights in the cache folder: mapped the second time, and packed anew when they are not whole."""

import json
import os

import numpy as np
import pytest

from optpipe_kernels.cpu.lowering.recipe import Joined, Linear, Matrix, Plain
from optpipe_kernels.cpu.lowering.view import External
from optpipe_kernels.cpu.weights import cached_weights, make

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


def outside(place):
    index = json.loads((place / "index.json").read_text())
    index["table"][0] = 1 << 40
    (place / "index.json").write_text(json.dumps(index))


def missing(place):
    index = json.loads((place / "index.json").read_text())
    del index["bias"]
    (place / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage", [cut, lost_index, no_json, outside, missing])
def test_a_damaged_cache_is_packed_anew(read, expected, tmp_path, damage):
    cached_weights(RECIPES, read, "an artifact", tmp_path)
    (place,) = (tmp_path / "cpu").iterdir()
    damage(place)
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    read.names.clear()
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert read.names == []


def test_a_folder_that_cannot_be_written_keeps_the_weights_in_memory(read, expected, tmp_path):
    (tmp_path / "cpu").write_text("a file stands where the folder would be")
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)


def test_a_disk_that_fills_up_keeps_the_weights_in_memory(read, expected, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert list((tmp_path / "cpu").iterdir()) == []


def test_two_processes_at_once_leave_one_folder(read, expected, tmp_path, monkeypatch):
    def also_packs(*arguments):
        monkeypatch.undo()
        cached_weights(RECIPES, read, "an artifact", tmp_path)  # the other one is first
        return rename(*arguments)

    from optpipe_kernels.cpu import weights

    rename = weights._rename
    monkeypatch.setattr(weights, "_rename", also_packs)
    same(cached_weights(RECIPES, read, "an artifact", tmp_path), expected)
    assert len(list((tmp_path / "cpu").iterdir())) == 1

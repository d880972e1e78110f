from __future__ import annotations

import json

import pytest
import torch

from optpipe.errors import KernelError
from optpipe_kernels.triton import tiles
from optpipe_kernels.triton.tiles import CAPABILITIES, Tile, device_key, tile

ROWS = [
    {"when": {"width": [129, None]}, "constants": {"BLOCK": 1}, "num_warps": 8, "num_stages": 2},
    {"when": {"width": [None, 64], "bits": 4}, "constants": {"BLOCK": 2}, "num_warps": 4, "num_stages": 3},
    {"when": {"width": 64}, "constants": {"BLOCK": 3}, "num_warps": 2, "num_stages": 1},
]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "TABLES", tmp_path)
    tiles._rows.cache_clear()
    (tmp_path / "sm_90").mkdir()
    (tmp_path / "sm_90" / "thing.json").write_text(json.dumps(ROWS))
    yield tmp_path
    tiles._rows.cache_clear()


def test_the_first_row_whose_conditions_hold_is_taken(tables):
    assert tile("thing", "sm_90", width=256, bits=4) == Tile({"BLOCK": 1}, 8, 2)
    assert tile("thing", "sm_90", width=64, bits=4) == Tile({"BLOCK": 2}, 4, 3)
    assert tile("thing", "sm_90", width=64, bits=8) == Tile({"BLOCK": 3}, 2, 1)


def test_no_row_no_table_and_a_missing_size_are_named(tables):
    with pytest.raises(KernelError, match="no row for thing with width=100, bits=8"):
        tile("thing", "sm_90", width=100, bits=8)
    with pytest.raises(KernelError, match="no tile table of thing for 'sm_80'"):
        tile("thing", "sm_80", width=64, bits=4)
    with pytest.raises(KernelError, match="asks for 'width' of thing"):
        tile("thing", "sm_90", bits=4)


def test_a_named_gpu_s_rows_are_asked_before_its_capability_s(tables):
    (tables / "sm_90" / "fast_gpu").mkdir()
    tuned = [{**ROWS[2], "constants": {"BLOCK": 9}}]
    (tables / "sm_90" / "fast_gpu" / "thing.json").write_text(json.dumps(tuned))
    assert tile("thing", "sm_90/fast_gpu", width=64, bits=8).constants == {"BLOCK": 9}
    assert tile("thing", "sm_90/fast_gpu", width=256, bits=8).constants == {"BLOCK": 1}


def test_the_cpu_and_meta_borrow_a_gpu_s_tiles():
    assert device_key(torch.device("cpu")) == device_key(torch.device("meta")) == "sm_90"


@pytest.mark.parametrize(
    ("capability", "key"), [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((12, 0), "sm_100")]
)
def test_a_gpu_takes_the_newest_table_not_newer_than_itself(capability, key):
    assert tiles._capability_key(*capability) == key


def test_a_gpu_that_is_too_old_is_refused():
    with pytest.raises(KernelError, match=r"8\.0 or newer, got 7\.5"):
        tiles._capability_key(7, 5)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_table_has_rows_of_the_form_that_is_read(capability):
    found = sorted((tiles.TABLES / f"sm_{capability}").rglob("*.json"))
    assert found
    for path in found:
        for row in json.loads(path.read_text()):
            assert set(row) == {"when", "constants", "num_warps", "num_stages"}, path

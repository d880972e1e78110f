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
    ("capability", "key"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
    ],
)
def test_a_gpu_takes_the_newest_table_not_newer_than_itself(capability, key):
    assert tiles._capability_key(*capability) == key


def test_a_chip_with_little_shared_memory_borrows_what_it_has_no_rows_for(tables):
    (tables / "sm_80").mkdir()
    (tables / "sm_80" / "thing.json").write_text(json.dumps([ROWS[2]]))
    for key in ("sm_86", "sm_89", "sm_120"):
        assert tile("thing", key, width=64) == Tile({"BLOCK": 3}, 2, 1)
    (tables / "sm_86").mkdir()
    own = {**ROWS[2], "constants": {"BLOCK": 7}}
    (tables / "sm_86" / "thing.json").write_text(json.dumps([own]))
    (tables / "sm_89" / "a_gpu").mkdir(parents=True)
    (tables / "sm_89" / "a_gpu" / "thing.json").write_text(json.dumps([{**own, "num_warps": 8}]))
    tiles._rows.cache_clear()
    assert [tile("thing", f"sm_{chip}", width=64).constants["BLOCK"] for chip in (80, 86, 89, 120)] == [
        3,
        7,
        7,
        7,
    ]
    assert tile("thing", "sm_89/a_gpu", width=64).num_warps == 8


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


# Every row of every table: its blocks in the table's order, and warps. Small tiles would hide spills, so they
# change here and in benchmarks/results/kernels.md together. What a GPU was tuned to is in folders below.
PINNED = """
sm_100 dense_linear 64x16x64/4 64x32x64/4 64x64x64/4 64x128x64/4 128x128x64/8
sm_100 experts 64x16x128/4 64x32x128/4 128x64x64/8
sm_100 experts_gated 64x16x128/4 64x32x128/4 128x64x64/8
sm_100 greedy_head 128x16x64/4 128x32x64/4 128x64x64/4 128x128x64/8 64x16/4 128x32/8 64x64/4
sm_100 paged_decode 128x32/8 128x32/8 16x32/4 16x64/4
sm_100 paged_prefill 128x32/8 128x32/8 128x32/8 128x64/8 128x128/8
sm_100 quant_experts 64x16/8 64x32/8 64x64/4
sm_100 quant_experts_gated 64x16/8 64x32/8 64x64/4
sm_100 quant_gate_up 64/4 128x32/8 128x32/8 64x64/4 64x64/4 128x64/8
sm_100 quant_linear 64/4 64x16/4 128x32/4 64x64/4 128x64/4 128x128/8
sm_100 row_wise 64x16x128/4 64x64x128/4 128x128x128/8
sm_80 dense_linear 64x16x64/4 64x32x64/4 64x64x64/4 64x128x64/4 128x128x64/8
sm_80 experts 64x16x128/4 64x32x128/4 128x64x64/8
sm_80 experts_gated 64x16x128/4 64x32x128/4 64x64x64/4
sm_80 greedy_head 128x16x64/4 128x32x64/4 128x64x64/4 128x64x64/4 64x16/4 64x32/4 64x64/8
sm_80 paged_decode 64x32/4 16x32/4 16x64/4
sm_80 paged_prefill 128x32/8 128x32/8 128x32/8 64x32/4 64x32/4 128x64/8
sm_80 quant_experts 64x16/4 64x32/4 64x32/4
sm_80 quant_experts_gated 64x16/4 64x32/4 64x32/4
sm_80 quant_gate_up 64/4 64x16/4 64x32/4 128x64/8 128x64/8 128x64/8
sm_80 quant_linear 64/4 64x16/4 64x32/4 128x64/8 64x32/4 128x64/8
sm_80 row_wise 64x16x128/4 64x64x128/4 128x128x128/8
sm_86 quant_gate_up 64/4 64x16/4 64x32/4 128x32/8 128x32/8 128x64/8 128x64/8 128x64/8
sm_90 dense_linear 64x16x64/4 64x32x64/4 64x64x64/4 64x128x64/4 128x128x64/8
sm_90 experts 64x16x128/4 64x32x128/4 128x64x64/8
sm_90 experts_gated 64x16x128/4 64x32x128/4 128x64x64/8
sm_90 greedy_head 128x16x64/4 128x32x64/4 128x64x64/4 128x128x64/8 64x16/4 64x32/4 64x64/4
sm_90 paged_decode 64x32/4 64x32/4 64x64/4 16x32/4 16x64/4
sm_90 paged_prefill 128x32/8 128x32/8 128x64/8 128x32/8 128x64/8 128x128/8
sm_90 quant_experts 64x16/4 64x32/4 64x64/4
sm_90 quant_experts_gated 64x16/4 64x32/4 64x64/4
sm_90 quant_gate_up 64/4 64x16/4 64x32/4 64x64/4 64x64/4 128x64/8
sm_90 quant_linear 64/4 64x16/4 64x32/4 64x64/4 64x64/4 128x128/8
sm_90 row_wise 64x16x128/4 64x64x128/4 128x128x128/8
"""


def sizes(row):
    """Blocks and warps of a row, as they are pinned."""
    blocks = "x".join(str(size) for name, size in row["constants"].items() if name.startswith("BLOCK_"))
    return f"{blocks}/{row['num_warps']}"


def test_the_tiles_that_ship_are_these():
    found = [
        " ".join((path.parent.name, path.stem, *map(sizes, json.loads(path.read_text()))))
        for path in sorted(tiles.TABLES.glob("sm_*/*.json"))
    ]
    assert found == PINNED.strip().splitlines()

"""What of ``python -m benchmarks.gpu`` can be told without a GPU: rows that fail alone, goals, candidates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))  # benchmarks are of the checkout, not of the wheel

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import autotune
from benchmarks.gpu.__main__ import SECONDS, TOTAL, allowed, in_time
from benchmarks.gpu.cases import Case, Place, Row, run_case
from benchmarks.gpu.report import page
from benchmarks.gpu.tunable import KERNELS, candidates
from optpipe_kernels.triton import dense_linear
from optpipe_kernels.triton.tiles import TABLES, Tile

DRY = Place(torch.device("cpu"), 1e9, 1e9, True)


def fails():
    raise RuntimeError("no kernel image\nand more")


def test_a_row_that_fails_says_why_and_others_keep_their_figures():
    row = run_case(Case("a", [fails], {"peer": [lambda: None], "broken": [fails]}), DRY)
    assert row.ours == row.others["broken"] == "RuntimeError: no kernel image"
    assert row.others["peer"] > 0


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_result_has_no_figure(error):
    row = run_case(Case("a", [lambda: None], check=lambda: error), DRY)
    assert row.ours.startswith("wrong: error")


def test_goals_beside_a_peer_are_shares_of_its_speed():
    case = Case("a", [lambda: None], {"peer": [lambda: None]}, bytes=1e9, must=0.5, beside="peer")
    row = run_case(case, DRY)
    assert row.must == pytest.approx(0.5 * row.floor / row.others["peer"])
    case.others = {"peer": [fails]}
    assert run_case(case, DRY).must is None


def test_rows_end_in_time():
    rows = [Row(name, 0.0, 1.0, {}, None, None) for name in "abc"]
    assert [row.name for row in in_time(iter(rows), 60)] == ["a", "b", "c"]
    cut = list(in_time(iter(rows), -1))
    assert [row.name for row in cut] == ["a", "the rows after these"]
    assert "not measured" in page({"gpu": "x"}, {"part": cut}, "command", dry=False)
    assert [row.name for row in in_time(iter(rows), -1, dry=True)] == ["a", "b", "c"]


def test_parts_share_nine_minutes():
    assert sum(SECONDS.values()) <= TOTAL < 9 * 60
    assert allowed("model", 0) == allowed("model", 1000, dry=True) == SECONDS["model"]
    assert allowed("rows", TOTAL - 3) == 3
    assert allowed("rows", TOTAL + 1) < 0


def test_a_part_behind_the_end_of_time_says_so_and_fails(tmp_path, monkeypatch):
    wet = Place(torch.device("cpu"), 1.0, 1.0, False)
    monkeypatch.setattr(command, "_place", lambda dry: wet)
    monkeypatch.setattr(command, "facts", lambda where: {"gpu": "x"})
    monkeypatch.setattr(command, "TOTAL", 0)
    monkeypatch.setattr(sys, "argv", ["gpu", "--only", "rows", "--output", str(tmp_path / "page.md")])
    assert command.main() == 1
    assert "not measured: the 0 s of all parts were over" in (tmp_path / "page.md").read_text()


def test_without_a_gpu_it_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert command.main() == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "there is no GPU here: --dry-run walks every part without one"
    ]


@pytest.mark.parametrize(
    "path", sorted(TABLES.glob("sm_*/*.json")), ids=lambda path: f"{path.parts[-2]}-{path.stem}"
)
def test_no_candidate_moves_bits(path):
    fixed = ("BLOCK_M", "BLOCK_R", "BLOCK_K", "SPAN", "VALUES", "INSIDE")
    for row in json.loads(path.read_text()):
        for made in candidates(row, KERNELS[path.stem].space):
            assert made != row and made["when"] == row["when"]
            for name in fixed:
                assert made["constants"].get(name) == row["constants"].get(name)
            if "SPAN" in row["constants"]:
                assert made["constants"] == row["constants"] and made["num_warps"] == row["num_warps"]


def test_a_candidate_is_taken_by_its_kernel_alone():
    row = {"constants": {"BLOCK_N": 128}, "num_warps": 8, "num_stages": 7}
    with autotune.using("dense_linear", row):
        assert dense_linear.tile("dense_linear", "sm_90", rows=1) == Tile({"BLOCK_N": 128}, 8, 7)
        assert dense_linear.tile("row_wise", "sm_90", rows=1).num_stages != 7
    assert dense_linear.tile("dense_linear", "sm_90", rows=1).num_stages != 7


def test_candidates_compile_without_a_gpu():
    row = json.loads((TABLES / "sm_90" / "dense_linear.json").read_text())[0]
    place = Place(torch.device("cuda"), 1.0, 1.0, False)
    assert autotune.compile_candidate("dense_linear", row, place, 90) == 1


def test_other_bits_are_not_taken(monkeypatch):
    """On a GPU; the interpreter's products have bits of their own."""
    wet = Place(torch.device("cpu"), 1.0, 1.0, False)
    one, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.0000001])
    assert autotune._same(one, one.clone(), wet) and not autotune._same(one, other, wet)
    assert not autotune._same(None, one, wet)


def test_the_faster_tile_is_written(tmp_path, monkeypatch):
    def measured(kernel, row, call, place):
        return (1.0 if row["num_stages"] == 3 else 2.0), torch.ones(1)

    monkeypatch.setattr(autotune, "_measured", measured)
    found = autotune.tune(DRY, 60, tmp_path, kernels=("row_wise",))
    written = json.loads((tmp_path / "row_wise.json").read_text())
    table = json.loads((TABLES / "sm_90" / "row_wise.json").read_text())
    assert [row["num_stages"] for row in table] != [row["num_stages"] for row in written] == [3, 3, 3]
    assert found["row_wise"].startswith("2 of 3 rows changed")

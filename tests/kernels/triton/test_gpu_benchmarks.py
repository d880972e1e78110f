"""What of ``python -m benchmarks.gpu`` can be told without a GPU: rows that fail alone, goals, candidates."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))  # benchmarks are of the checkout, not of the wheel

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    attention,
    autotune,
    cases,
    end_to_end,
    gpu_tests,
    limits,
    random_model,
    start,
    static_loop,
)
from benchmarks.gpu.__main__ import SECONDS, TOTAL, allowed, in_time
from benchmarks.gpu.cases import Case, Place, Row, run_case
from benchmarks.gpu.random_model import Size
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


def test_what_runs_over_is_interrupted_and_the_rows_before_it_stay(monkeypatch):
    monkeypatch.setattr(limits, "GRACE", 0.0)

    def rows():
        yield Row("a", 0.0, 1.0, {}, None, None)
        yield run_case(Case("b", [lambda: None], {"slow": [lambda: time.sleep(60)], "after": [fails]}), DRY)
        raise AssertionError("no row is begun when the time is over")

    with limits.within(0.2):
        found = list(in_time(rows(), 0.2))
    assert [row.name for row in found] == ["a", "b", "the rows after these"]
    assert found[1].ours > 0 and not found[1].others  # the figure that it had
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # nothing rings any more


def test_operands_that_take_too_long_end_the_part(monkeypatch):
    monkeypatch.setattr(limits, "GRACE", 0.0)

    def rows():
        yield Row("a", 0.0, 1.0, {}, None, None)
        time.sleep(60)

    with limits.within(0.1):
        assert [row.name for row in in_time(rows(), 0.05)] == ["a", "the rows after these"]


def test_a_row_that_has_no_figure_yet_says_that_the_time_was_over(monkeypatch):
    monkeypatch.setattr(limits, "GRACE", 0.0)
    with limits.within(0.05):
        row = run_case(Case("a", [lambda: time.sleep(60)]), DRY)
    assert row.ours == "not measured: 0 s were over"


def test_a_call_that_does_not_return_ends_the_command():
    script = "import time; from benchmarks.gpu import limits\nwith limits.last(0.2): time.sleep(60)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 3 and "stopped after 0 s: a call did not return" in done.stderr


def test_tests_that_run_over_take_their_workers_with_them(tmp_path):
    sign = tmp_path / "sign"
    worker = f"import time; print('worker', flush=True); time.sleep(3); open({str(sign)!r}, 'w').close()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    lines, over = gpu_tests.said([sys.executable, "-c", script], 1.5)
    assert over and lines == ["worker"]
    time.sleep(3)
    assert not sign.exists()
    assert gpu_tests.said([sys.executable, "-c", "print('done')"], 30) == (["done"], False)


def test_short_runs_are_repeated_within_a_graph_and_long_ones_replayed_less():
    assert cases.plan(20e-6) == (50, 20)
    assert cases.plan(300e-6) == (4, 20)
    assert cases.plan(5e-3) == (1, 20)
    assert cases.plan(0.2) == cases.plan(30.0) == (1, 5)


@pytest.mark.parametrize("kind", [None, torch.int8])
def test_attention_is_checked_by_what_its_cache_holds(kind):
    torch.manual_seed(0)
    problem = attention._Paged(DRY, 2, 40, 3, kind)
    assert 1e-5 < problem.error() < 2e-3
    before = problem.run()
    problem.keys, problem.values = problem.keys.clone(), problem.values.clone()
    problem.values[problem.tables[0, 1].long()] = 1
    assert not torch.equal(problem.run(), before)
    assert problem.error() < 2e-3
    problem.run = lambda invariant: before  # of the cache as it was
    assert problem.error() > 1e-2


def test_the_static_loop_attends_as_gqa_does_and_is_compiled_once():
    size, kept, compiled = Size(3, 64, 4, 2, 16, 96, 50), [], []
    attend = torch.nn.functional.scaled_dot_product_attention

    def both(q, k, v, attn_mask):
        found, heads = attend(q, k, v, attn_mask=attn_mask), q.reshape(1, size.heads, 1, size.width)
        kept.append((found.view_as(heads), attend(heads, k, v, attn_mask=attn_mask, enable_gqa=True)))
        return found

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    with torch.inference_mode():
        model = static_loop.Model(size, 24)
        for layer in model.layers:
            layer.keys.normal_()
            layer.values.normal_()
        step = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([9])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(static_loop.F, "scaled_dot_product_attention", both)
            first = model(*step)
        for layer in model.layers:
            layer.compile(fullgraph=True, dynamic=False, backend=backend)
        assert torch.equal(model(*step), first)
    assert len(kept) == 3 and len(compiled) == 1
    for found, expected in kept:
        torch.testing.assert_close(found, expected)


def test_a_token_reads_every_matrix_but_the_embedding():
    made = random_model.program(Size(), 16).weights
    shapes = [it.type.shape for name, it in made.items() if name != "embed"]
    assert end_to_end.weights_of(Size(), 0) == sum(it[0] * it[1] for it in shapes if len(it) == 2)


def test_a_start_is_timed_by_what_the_process_says():
    script = f"import time\nfor it in {start.STAGES!r}: time.sleep(0.05); print(it, flush=True)"
    found = list(start.staged([sys.executable, "-c", script]).values())
    assert all(later - sooner > 0.04 for sooner, later in pairwise([0.0, *found]))
    with pytest.raises(RuntimeError, match="no GPU here"):
        start.staged([sys.executable, "-c", "print('imports'); raise SystemExit('no GPU here')"])
    with pytest.raises(RuntimeError, match="it said nothing"):
        start.staged([sys.executable, "-c", "print('imports')"])
    gigabytes = [start.stored(bits) / 1e9 for bits in (16, 8, 4)]
    assert gigabytes == pytest.approx([16.06, 8.56, 5.2], rel=0.02)


@pytest.mark.slow
def test_the_process_that_is_timed_comes_to_its_second_token():
    assert tuple(start.staged([sys.executable, "-m", "benchmarks.gpu.start", "--dry-run"])) == start.STAGES


def test_parts_share_nine_minutes():
    assert TOTAL + limits.GRACE < limits.LAST < 9 * 60
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

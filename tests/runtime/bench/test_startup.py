"""The start of a process, timed from outside and by marks from inside."""

import json

import pytest

import optpipe
from optpipe.cli.main import run
from optpipe.errors import EngineError
from optpipe.testing import save_tiny
from optpipe_kernels.cpu.library import find
from optpipe_runtime.bench import startup
from optpipe_runtime.bench.startup import PHASES, measure_startup, start_once


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    home = tmp_path_factory.mktemp("startup")
    optpipe.optimize(str(save_tiny("llama", home / "model")), output=home / "artifact", verify=False)
    return str(home / "artifact")


@pytest.mark.skipif(find() is None, reason="needs the native library: without torch a start is short enough")
def test_the_phases_of_the_command_add_up_to_the_whole(artifact, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OPTPIPE_CACHE", str(tmp_path))
    arguments = ["bench", "startup", artifact, "--target", "cpu", "--runs", "2", "--warmup", "1", "--json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {
        "kind", "phases_ms", "total_ms", "peak_rss_mb", "imported", "runs", "warmup", "settings",
    }  # fmt: skip
    assert tuple(found["phases_ms"]) == PHASES
    parts = sum(it["min"] for it in found["phases_ms"].values())
    assert 0 < parts <= found["total_ms"]["min"] * (1 + 1e-9), "each run's phases add up to its total"
    assert all(0 <= it["min"] <= it["median"] for it in found["phases_ms"].values())
    assert found["imported"] == []
    assert 20 < found["peak_rss_mb"]["min"] < 1000
    assert found["phases_ms"]["weights"]["min"] > 0


def test_a_process_that_fails_is_an_error_with_its_own_words():
    with pytest.raises(EngineError) as caught:
        start_once(["no-such-artifact", "x"])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("it said: error: ")
    assert "no-such-artifact" in caught.value.hint


RUNS = [
    {"phases": dict.fromkeys(PHASES, value), "total": 7 * value, "peak_rss_mb": value, "imported": imported}
    for value, imported in ((9.0, []), (3.0, ["torch"]), (1.0, []), (2.0, []))
]


def test_minimum_and_median_are_of_the_runs_behind_the_warm_up(monkeypatch):
    runs = iter(RUNS)
    monkeypatch.setattr(startup, "start_once", lambda arguments: next(runs))
    ended = []
    found = measure_startup(["x"], runs=3, warmup=1, on_end=lambda *it: ended.append(it))
    assert found["phases_ms"]["plan"] == {"min": 1, "median": 2}
    assert found["total_ms"] == {"min": 7, "median": 14}
    assert found["imported"] == ["torch"]
    assert ended == [(i, 4) for i in range(1, 5)]


def test_phases_touch():
    marks = {
        "started": 110, "artifact": 130, "plan": 160, "weights_ns": 7, "engine": 200, "ready": 250,
        "peak_rss_mb": 1.0, "imported": [],
    }  # fmt: skip
    found = startup._phases(marks, 100, 300)
    assert [round(it * 1e6) for it in found["phases"].values()] == [10, 20, 30, 33, 7, 50, 50]
    assert sum(found["phases"].values()) == pytest.approx(found["total"])

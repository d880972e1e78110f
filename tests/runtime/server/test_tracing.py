"""Spans: one a request, in the client's trace, with what it took and nothing that was said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from .kit import MODEL, Served, serve, wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def traced() -> Iterator[tuple[Served, InMemorySpanExporter]]:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with serve(traces=provider) as served:
        yield served, spans


def span_of(traced: tuple[Served, InMemorySpanExporter], **fields: Any) -> ReadableSpan:
    served, spans = traced
    spans.clear()
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-Id": "mine"}
    httpx.post(f"{served.url}/v1/completions", json={"prompt": "a secret", **fields}, headers=headers)
    wait_until(lambda: len(spans.get_finished_spans()) == 1)
    return spans.get_finished_spans()[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_is_part_of_the_clients_trace(
    traced: tuple[Served, InMemorySpanExporter], stream: bool
) -> None:
    span = span_of(traced, max_tokens=3, stream=stream)
    assert span.name == "POST /v1/completions"
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/v1/completions",
        "http.response.status_code": 200,
        "optpipe.request_id": "mine",
        "gen_ai.response.model": MODEL,
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": 3,
    }


def test_a_refusal_has_its_status(traced: tuple[Served, InMemorySpanExporter]) -> None:
    span = span_of(traced, temperature="a secret")
    assert (span.attributes or {})["http.response.status_code"] == 400
    assert "secret" not in span.to_json()


def test_health_and_metrics_make_none(traced: tuple[Served, InMemorySpanExporter]) -> None:
    served, spans = traced
    spans.clear()
    served.get("/health")
    served.get("/metrics")
    served.get("/v1/models")
    wait_until(lambda: len(spans.get_finished_spans()) == 1)
    assert spans.get_finished_spans()[0].name == "GET /v1/models"

"""The log: a line a request, with its id and what it took, and never what was said."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from optpipe_runtime.server.logs import JsonLines, TextLines

from .kit import Served, wait_until


def logged(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one request that is logged, which may be a moment after its answer has come."""
    wait_until(lambda: any(it.getMessage() == "request" for it in caplog.records))
    (record,) = [it for it in caplog.records if it.getMessage() == "request"]
    return record


def test_a_request_is_one_line_of_facts(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "optpipe.server"):
        served.post(
            "/v1/completions",
            {"prompt": "a secret", "max_tokens": 3, "user": "a secret"},
            headers={"X-Request-Id": "mine", "Authorization": "Bearer a-secret"},
        )
        record = logged(caplog)
    assert record.request_id == "mine"  # type: ignore[attr-defined]
    line = json.loads(JsonLines().format(record))
    assert line["event"] == "request"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
    assert line["usage"]["completion_tokens"] == 3
    assert line["seconds"] > 0
    assert "secret" not in json.dumps(line)


def test_refusals_are_logged_without_the_body(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "optpipe.server"):
        served.complete("a secret", temperature="a secret")
        record = logged(caplog)
    assert record.status == 400  # type: ignore[attr-defined]
    assert "secret" not in JsonLines().format(record)


def test_health_and_metrics_are_quiet(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "optpipe.server"):
        served.get("/health")
        served.get("/metrics")
    assert not [it for it in caplog.records if it.message == "request"]


@pytest.mark.parametrize("form", [JsonLines(), TextLines()])
def test_line_ends_from_outside_make_no_line(form: logging.Formatter) -> None:
    record = logging.makeLogRecord({"msg": "request", "levelname": "INFO", "path": "/a\n{}\r\nx"})
    assert len(form.format(record).splitlines()) == 1


def test_failures_keep_their_trace() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "levelname": "ERROR", "exc_info": sys.exc_info()})
    assert "ValueError: why" in json.loads(JsonLines().format(record))["trace"]
    assert "ValueError: why" in TextLines().format(record)

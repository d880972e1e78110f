"""What clients hear when the server ends before their answers do."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from optpipe_runtime.server import ServerConfig

from .kit import MODEL, LetterExecutor, Served, serve, wait_until
from .test_failures import events


def twice(served: Served) -> None:
    served.listener.handle_exit(signal.SIGTERM, None)
    served.listener.handle_exit(signal.SIGTERM, None)


def once(served: Served) -> None:
    served.listener.handle_exit(signal.SIGTERM, None)  # then the time for draining passes


@pytest.mark.parametrize(("end", "patience"), [(twice, 30.0), (once, 0.2)])
def test_clients_are_told_in_their_own_words(
    end: Callable[[Served], None], patience: float, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(model_name=MODEL, drain_timeout=patience)
    executor = LetterExecutor(cost=lambda step: 0.05)
    with serve(executor, config=config) as served, ThreadPoolExecutor(3) as pool:
        whole = pool.submit(served.complete, max_tokens=200)  # ten seconds
        several = pool.submit(served.complete, ["a", "b"], max_tokens=200, stream=True)
        stream = pool.submit(served.chat, max_tokens=200, stream=True)
        wait_until(lambda: served.engine.stats().running == 4)
        begun = time.monotonic()
        end(served)
        answer = whole.result(10)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "stopped"
        for found in (stream.result(10), several.result(10)):
            *_, error, done = events(found.text)
            assert (json.loads(error)["error"]["code"], done) == ("stopped", "[DONE]")
        assert time.monotonic() - begun < 5
    assert "CancelledError" not in caplog.text
    assert not [it for it in caplog.records if it.levelname == "ERROR"]


@pytest.mark.parametrize("end", [twice, once])
def test_clients_of_a_step_that_hangs_are_told_too(
    end: Callable[[Served], None], caplog: pytest.LogCaptureFixture
) -> None:
    config, release = ServerConfig(model_name=MODEL, drain_timeout=0.2), threading.Event()
    inside = threading.Event()
    executor = LetterExecutor(before_step=lambda step: (inside.set(), release.wait(30)))
    begun = time.monotonic()
    try:
        with serve(executor, config=config) as served, ThreadPoolExecutor(2) as pool:
            whole = pool.submit(served.complete, max_tokens=3)
            stream = pool.submit(served.chat, max_tokens=3, stream=True)
            assert inside.wait(5)
            wait_until(lambda: len(served.listener._service.jobs) == 2)
            end(served)
            answer = whole.result(10)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopped")
            found = stream.result(10)
            assert found.status_code == 503 or events(found.text)[-1] == "[DONE]"
        assert time.monotonic() - begun < 8, "nobody waits ten seconds more for the step"
    finally:
        release.set()
    assert "CancelledError" not in caplog.text
    assert [it.message for it in caplog.records if it.levelname == "ERROR"] == [
        "a step of the engine does not come back; nobody waits for it any longer",
        "a step does not come back; its thread is left behind",
    ]


def test_a_request_that_comes_to_its_end_while_draining_is_answered() -> None:
    with serve(LetterExecutor(cost=lambda step: 0.02)) as served, ThreadPoolExecutor(1) as pool:
        whole = pool.submit(served.complete, max_tokens=20)
        wait_until(lambda: served.engine.stats().running == 1)
        once(served)
        assert whole.result(10).json()["usage"]["completion_tokens"] == 20

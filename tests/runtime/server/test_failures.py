"""What clients see when generation fails, hangs, or has no room."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from optpipe.errors import ArtifactError, CapacityError, EngineError
from optpipe.targets.protocol import StepInputs
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.engine.submission import Submission
from optpipe_runtime.server import ServerConfig, create_app

from .kit import MODEL, LetterExecutor, Served, ids, serve, wait_until
from .test_bad_input import text

POISON = ids("!")[0]


def break_on_poison(step: StepInputs) -> None:
    if POISON in step.token_ids:
        raise ZeroDivisionError("secret details")


def events(body: str) -> list[str]:
    return [it.removeprefix("data: ") for it in body.split("\n\n") if it]


@pytest.fixture(scope="module")
def brittle() -> object:
    with serve(LetterExecutor(before_step=break_on_poison, cost=lambda step: 0.001)) as it:
        yield it


def test_a_step_that_raises_is_a_500_without_details(
    brittle: Served, caplog: pytest.LogCaptureFixture
) -> None:
    answer = brittle.complete("!", max_tokens=4)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "secret details" in caplog.text
    wait_until(lambda: brittle.idle)
    assert brittle.complete("a", max_tokens=4).json()["choices"][0]["text"] == text(brittle, "a", 4)


def test_a_step_that_raises_ends_a_stream_with_an_event(brittle: Served) -> None:
    answer = brittle.complete("!", max_tokens=4, stream=True)
    assert answer.status_code == 200  # the head was sent when the request was accepted
    *_, error, done = events(answer.text)
    assert json.loads(error)["error"]["code"] == "generation_failed"
    assert done == "[DONE]"
    wait_until(lambda: brittle.idle)


def test_one_of_many_prompts_that_fails_fails_the_request(brittle: Served) -> None:
    answer = brittle.complete(["a", "!", "b"], max_tokens=30)
    assert answer.status_code == 500
    wait_until(lambda: brittle.idle)


class OutOfMemoryError(RuntimeError):
    """torch's has this name."""


@pytest.mark.parametrize(
    "error", [MemoryError(), CapacityError("No block is left."), OutOfMemoryError("secret details")], ids=repr
)
def test_an_executor_that_runs_out_of_memory_is_a_503(error: Exception) -> None:
    """Whoever is not in that step goes on, and nothing stays behind."""
    begun, go_on = threading.Event(), threading.Event()

    def step(inputs: StepInputs) -> None:
        if POISON in inputs.token_ids:
            begun.set()
            go_on.wait(10)
            raise error

    with serve(LetterExecutor(before_step=step), max_num_seqs=1) as served, ThreadPoolExecutor(2) as pool:
        bad = pool.submit(served.complete, "!", max_tokens=4)
        assert begun.wait(5)
        neighbour = pool.submit(served.complete, "a neighbour", max_tokens=9)
        wait_until(lambda: served.engine.stats().waiting > 0)
        go_on.set()
        answer = bad.result(10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
        assert answer.json()["error"]["message"].endswith("did not fit into memory.")
        assert "Retry-After" in answer.headers
        found = neighbour.result(10).json()["choices"][0]["text"]
        assert found == text(served, "a neighbour", 9)
        wait_until(lambda: served.idle)
        assert served.complete("a", max_tokens=4).json()["choices"][0]["text"] == text(served, "a", 4)


def test_with_too_few_blocks_requests_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 blocks of 4 tokens hold one of these sequences and a half; each is preempted and computed again."""
    together, left = threading.Event(), iter(range(8, 0, -1))
    executor = LetterExecutor(before_step=lambda step: together.wait(10))  # none ends before all have come
    with serve(executor, num_blocks=16, watermark=0.0) as served, ThreadPoolExecutor(8) as pool:
        submit = served.engine.submit

        def counting(*args: Any, **options: Any) -> Submission:
            submission = submit(*args, **options)
            if next(left, 0) == 1:
                together.set()
            return submission

        monkeypatch.setattr(served.engine, "submit", counting)
        answers = list(pool.map(lambda i: served.complete(f"number {i}", max_tokens=32), range(8)))
        for i, it in enumerate(answers):
            assert it.json()["choices"][0]["text"] == text(served, f"number {i}", 32)
        wait_until(lambda: served.idle)
        assert served.engine.stats().preemptions > 0


def test_a_prompt_that_no_cache_could_hold_is_refused_at_once() -> None:
    with serve(LetterExecutor(), num_blocks=4) as served:
        answer = served.complete("a" * 20, max_tokens=1)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert served.complete("a" * 8, max_tokens=4).status_code == 200


@pytest.mark.parametrize("stall_after", [0.3, ServerConfig().stall_after], ids=["short", "default"])
def test_health_fails_within_five_seconds_of_a_hang_and_recovers(stall_after: float) -> None:
    hang, release = threading.Event(), threading.Event()

    def step(inputs: StepInputs) -> None:
        if hang.is_set():
            release.wait(20)

    config = ServerConfig(model_name=MODEL, stall_after=stall_after)
    with serve(LetterExecutor(before_step=step), config=config, stall_timeout=stall_after) as served:
        assert served.get("/health").json() == {"status": "ok"}
        hang.set()
        thread = threading.Thread(target=served.complete, kwargs={"max_tokens": 4})
        thread.start()
        try:
            begun = time.monotonic()
            wait_until(lambda: served.get("/health").status_code == 503, 10)
            assert time.monotonic() - begun < 5
            answer = served.get("/health").json()["error"]
            assert answer["code"] == "unhealthy"
            assert served.get("/metrics").status_code == 200  # the others go on
            assert served.get("/v1/models").status_code == 200
        finally:
            hang.clear()
            release.set()
            thread.join(10)
        wait_until(lambda: served.get("/health").status_code == 200)


def test_health_of_an_idle_server_is_proven_by_a_token() -> None:
    broken = threading.Event()

    def step(inputs: StepInputs) -> None:
        if broken.is_set():
            raise RuntimeError("broken")

    with serve(LetterExecutor(before_step=step)) as served:
        broken.set()
        assert served.get("/health").status_code == 503
        broken.clear()
        assert served.get("/health").status_code == 200
        steps = served.engine.stats().steps
        assert served.get("/health").status_code == 200
        assert served.engine.stats().steps == steps  # the proof still holds


def test_health_comes_back_after_many_probes_that_failed() -> None:
    broken = threading.Event()

    def step(inputs: StepInputs) -> None:
        if broken.is_set():
            raise RuntimeError("broken")

    with serve(LetterExecutor(before_step=step)) as served:
        broken.set()
        for _ in range(served.engine.config.max_failures + 2):
            assert served.get("/health").status_code == 503
        assert not served.engine.health().ok
        broken.clear()
        assert served.get("/health").status_code == 200
        assert served.engine.health().ok


def test_health_of_a_hanging_idle_server_is_known_in_time() -> None:
    release = threading.Event()
    config = ServerConfig(model_name=MODEL)
    with serve(LetterExecutor(before_step=lambda step: release.wait(10)), config=config) as served:
        try:
            begun = time.monotonic()
            assert served.get("/health").status_code == 503
            assert time.monotonic() - begun < 5
        finally:
            release.set()


def test_a_request_that_takes_too_long_is_given_up() -> None:
    config = ServerConfig(model_name=MODEL, request_timeout=0.2)
    with serve(LetterExecutor(cost=lambda step: 0.02), config=config) as served:
        answer = served.complete(max_tokens=200)
        assert answer.status_code == 504
        assert answer.json()["error"]["type"] == "timeout_error"
        wait_until(lambda: served.idle)
        streamed = served.complete(max_tokens=200, stream=True)
        *_, error, done = events(streamed.text)
        assert (json.loads(error)["error"]["code"], done) == ("timeout", "[DONE]")
        wait_until(lambda: served.idle)
        assert served.complete(max_tokens=2).status_code == 200


def test_a_closed_engine_is_a_503() -> None:
    with serve(LetterExecutor()) as served:
        served.engine.close()
        answer = served.complete()
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        assert served.get("/health").status_code == 503


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_an_engine_that_gives_everything_up_ends_streams_with_an_event(
    prompt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(LetterExecutor(cost=lambda step: 0.02)) as served, ThreadPoolExecutor(1) as pool:
        stream = pool.submit(served.complete, prompt, max_tokens=200, stream=True)
        wait_until(lambda: served.engine.stats().generated_tokens > 4)
        served.engine._loop.abandon(EngineError("secret details"))
        *_, error, done = events(stream.result(10).text)
        assert (json.loads(error)["error"]["code"], done) == ("stopped", "[DONE]")
        assert "secret" not in error
    assert "failed unexpectedly" not in caplog.text


def test_an_engine_without_a_tokenizer_cannot_be_served() -> None:
    with (
        Engine.over(LetterExecutor(), config=EngineConfig(num_blocks=8)) as engine,
        pytest.raises(ArtifactError, match="no tokenizer"),
    ):
        create_app(engine)

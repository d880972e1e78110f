"""Clients that leave, at every phase and in crowds, and clients that stay and do not read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from optpipe_runtime.server import ServerConfig
from optpipe_runtime.server.listener import Listener

from .kit import MODEL, LetterExecutor, Served, serve, wait_until
from .test_bad_input import text

PHASES = (
    "connected",
    "half of the headers",
    "half of the body",
    "body sent",
    "first byte",
    "in the middle",
    "whole answer, unread",
    "half closed",
)


def connect(served: Served) -> socket.socket:
    where = urlsplit(served.url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 0), timeout=10)


def request(**fields: Any) -> tuple[bytes, bytes]:
    """Headers and body of a completion."""
    body = json.dumps({"prompt": "someone", "temperature": 0, "max_tokens": 100, **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


def leave(served: Served, phase: str, *, stream: bool) -> None:
    head, body = request(stream=stream)
    with connect(served) as client:
        if phase == "connected":
            return
        if phase == "half of the headers":
            client.sendall(head[:40])
            return
        if phase == "half of the body":
            client.sendall(head + body[:10])
            return
        client.sendall(head + body)
        if phase == "half closed":
            client.shutdown(socket.SHUT_WR)
        elif phase == "first byte":
            client.recv(1)
        elif phase == "in the middle":
            client.recv(100)
            client.recv(100)
        elif phase == "whole answer, unread":
            wait_until(lambda: served.engine.stats().waiting == 0, 20)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_at_every_phase_under_64_requests(stream: bool) -> None:
    with (
        serve(LetterExecutor(cost=lambda step: 0.0005), num_blocks=2000) as served,
        ThreadPoolExecutor(64) as pool,
    ):
        stay = [pool.submit(served.complete, f"{i} stays", max_tokens=30) for i in range(16)]
        go = [pool.submit(leave, served, PHASES[i % len(PHASES)], stream=stream) for i in range(48)]
        for it in go:
            it.result(30)
        for i, it in enumerate(stay):
            assert it.result(30).json()["choices"][0]["text"] == text(served, f"{i} stays", 30)
        wait_until(lambda: served.idle)
        assert served.blocks == 0
        wait_until(lambda: active(served) == 1)  # the one that asks
        assert served.complete(max_tokens=3).status_code == 200


def active(served: Served) -> float:
    (line,) = [
        it
        for it in served.get("/metrics").text.splitlines()
        if it.startswith("optpipe:http_requests_active{")
    ]
    return float(line.split()[-1])


def test_in_the_middle_of_a_body_is_no_failure_of_the_server(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(served) as client:
        client.sendall(request()[0].replace(b"/v1/completions", b"/tokenize") + b"half")
        wait_until(lambda: active(served) == 2)
    wait_until(lambda: active(served) == 1)
    assert "unexpectedly" not in caplog.text


PIPELINED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("behind", [b"", PIPELINED], ids=["alone", "pipelined"])
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_blocks_are_free_within_one_step(stream: bool, behind: bytes) -> None:
    steps = threading.Semaphore(0)
    executor = LetterExecutor(before_step=lambda step: steps.acquire())
    try:
        with serve(executor) as served, connect(served) as client:
            client.sendall(b"".join(request(stream=stream)))
            steps.release(5)
            wait_until(lambda: len(executor.steps) == 6)  # the sixth is waiting inside
            assert served.blocks > 0
            client.sendall(behind)
            if behind:
                time.sleep(0.1)  # so that it is read before the end
            client.close()
            wait_until(lambda: bool(served.engine._loop._inbox))  # the engine was told
            steps.release(1)
            wait_until(lambda: served.blocks == 0)
            assert len(executor.steps) <= 7
    finally:
        steps.release(1000)


@pytest.mark.parametrize("together", [True, False])
def test_a_request_behind_another_is_not_lost_in_silence(served: Served, together: bool) -> None:
    """The connection says that it closes, so that the client sends it again."""
    with connect(served) as client:
        first = b"".join(request(max_tokens=20))
        client.sendall(first + PIPELINED if together else first)
        if not together:
            client.sendall(PIPELINED)
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200") == 1
    assert b"text_completion" in received


def test_connections_are_used_again(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        for text in ("short", "long" * 50):
            for _ in range(2):
                body = {"prompt": text, "max_tokens": 2}
                assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/tokenize", json={"prompt": "a" * 500_000}).status_code == 400  # a long body
        assert client.post("/tokenize", json={"prompt": "a" * 1000}).json()["count"] == 1000
        assert client.get("/health").status_code == 200
        wait_until(lambda: len(served.listener.server_state.connections) == 1)


def test_a_reader_that_is_too_slow_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = Listener.startup

    async def startup(self: Listener, sockets: Any = None) -> None:
        await started(self, sockets)
        for it in self.servers[0].sockets:
            with socket.socket(fileno=os.dup(it.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what connections inherit

    monkeypatch.setattr(Listener, "startup", startup)
    config = ServerConfig(model_name=MODEL, write_timeout=0.3)
    with (
        serve(LetterExecutor(), config=config, context=2048, num_blocks=2048) as served,
        connect(served) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"".join(request(stream=True, max_tokens=1000, logprobs=20)))
        assert client.recv(4)
        neighbour = served.complete("a neighbour", max_tokens=20)  # while the other's buffers fill
        assert neighbour.json()["choices"][0]["text"] == text(served, "a neighbour", 20)
        wait_until(lambda: served.idle)
        wait_until(lambda: active(served) == 1)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                received += piece
        assert b"[DONE]" not in received
        assert "the reader of a stream is too slow" in caplog.text
        assert served.complete(max_tokens=3).status_code == 200

"""Who may ask, how much, and how fast."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hmac
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from optpipe_runtime.server import ServerConfig
from optpipe_runtime.server.middleware import admission

from .kit import MODEL, LetterExecutor, Served, serve, wait_until
from .test_bad_input import text
from .test_clients_that_leave import connect, request

ROUTES = ("/", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/openapi.json", "/nothing")
POSTS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    config = ServerConfig(
        model_name=MODEL,
        api_keys=("sesame", "schlüssel"),
        allowed_hosts=("127.0.0.1", "localhost", "::1"),
        header_timeout=1.0,
        body_timeout=1.0,
        max_body_bytes=1000,
        max_header_bytes=4096,
    )
    with serve(LetterExecutor(), config=config) as it:
        yield it


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_but_health_asks_for_the_key(guarded: Served) -> None:
    assert guarded.get("/health").status_code == 200
    for path in ROUTES:
        answer = guarded.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["WWW-Authenticate"]
    for path in POSTS:
        assert guarded.post(path, {}).status_code == 401, path
    assert guarded.get("/v1/models", headers=bearer("sesame")).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer sesam",
        "Bearer sesame2",
        "sesame",
        "Basic ?",
        "Basic c2VzYW1l",
        "Bearer \xff",
    ],
)
def test_other_keys_do_not_open(guarded: Served, value: str) -> None:
    answer = guarded.get("/v1/models", headers=[(b"authorization", value.encode("latin-1"))])
    assert answer.status_code == 401


def test_a_browser_may_send_the_key_as_a_password(guarded: Served) -> None:
    sent = {"Authorization": "Basic " + base64.b64encode(b"me:sesame").decode()}
    assert guarded.get("/", headers=sent).status_code == 200
    assert guarded.get("/").headers["WWW-Authenticate"].startswith("Basic")


def test_keys_are_compared_in_constant_time(guarded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key as a digest, all of them whichever matches, and by compare_digest alone."""
    compared: list[tuple[bytes, bytes]] = []
    right = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return right(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in ("sesame", "x", "s" * 500):
        compared.clear()
        guarded.get("/v1/models", headers=bearer(key))
        assert len(compared) == 2
        assert {len(it) for pair in compared for it in pair} == {32}


def test_other_names_of_the_host_are_refused(guarded: Served) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        answer = guarded.get("/health", headers={"Host": host})
        assert answer.status_code == 403
    for host in ("localhost:8000", "[::1]:80", "LOCALHOST"):
        assert guarded.get("/health", headers={"Host": host}).status_code == 200


def test_other_origins_get_no_permission(served: Served) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{served.url}/v1/completions", headers=asked)
    assert answer.status_code == 405
    assert not [it for it in answer.headers if it.startswith("access-control")]
    assert not [
        it for it in served.get("/v1/models", headers=asked).headers if it.startswith("access-control")
    ]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_what_a_foreign_form_can_send_is_refused(served: Served, kind: str) -> None:
    body = b'{"prompt": "a"}'
    answer = httpx.post(f"{served.url}/v1/completions", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_a_body_that_is_too_long_is_refused_however_it_is_sent(guarded: Served) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    url, headers = f"{guarded.url}/tokenize", {**bearer("sesame"), "Content-Type": "application/json"}
    assert httpx.post(url, content=b" " * 1001, headers=headers).status_code == 413
    assert httpx.post(url, content=pieces(), headers=headers).status_code == 413
    with connect(guarded) as client:
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\n"
        client.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: 1{'0' * 15}\r\n\r\n".encode()
        )
        assert b"413" in client.recv(100)
    assert guarded.get("/health").status_code == 200


def test_headers_that_are_too_long_are_refused(guarded: Served) -> None:
    many = [(f"x-{i}", "y" * 50) for i in range(300)]
    for headers in ({"X-Long": "x" * 6_000}, many):
        answer = guarded.get("/health", headers=headers)
        assert answer.status_code == 431
        assert "4096 bytes" in answer.json()["error"]["message"]
    assert guarded.get("/health?" + "q" * 5000).status_code == 431
    with connect(guarded) as client:  # one that does not end
        client.sendall(b"GET /health HTTP/1.1\r\nX-Long: " + b"x" * 300_000)
        with contextlib.suppress(ConnectionResetError):
            assert b"400" in client.recv(100)
    with connect(guarded) as client:
        client.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert b"400" in client.recv(100)
    assert guarded.get("/health").status_code == 200


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/comp", request()[0][:60]], ids=["nothing", "a line", "a header"]
)
def test_headers_that_come_too_slowly_end_the_connection(guarded: Served, sent: bytes) -> None:
    begun = time.monotonic()
    with connect(guarded) as client:
        client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
    assert time.monotonic() - begun < 5


def test_later_headers_have_no_more_time_than_the_first(guarded: Served) -> None:
    with connect(guarded) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b'{"status":"ok"}'):
            received += client.recv(1000)
        time.sleep(1.2)  # idle for longer than headers may take
        client.sendall(b"GET /health HT")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_body_that_comes_too_slowly_is_a_408(guarded: Served) -> None:
    head, body = request()
    with connect(guarded) as client:
        client.sendall(head[:-2] + b"Authorization: Bearer sesame\r\n\r\n" + body[:5])
        assert b"408" in client.recv(100)


HALVES = {
    "nothing": b"",
    "half of the headers": request()[0][:40],
    "half of the body": b"".join(request())[:-5],
    "an answered request": b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_connections_that_wait_for_their_client_make_way_in_turn(half: bytes) -> None:
    config = ServerConfig(model_name=MODEL, max_requests=2)  # and so 8 connections
    with serve(LetterExecutor(), config=config) as served, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(served)) for _ in range(8)]
        wait_until(lambda: len(served.listener.server_state.connections) == 8)
        for it in held:
            it.sendall(half)
            received = b""
            while half.endswith(b"\r\n\r\n") and not received.endswith(b"]}"):
                received += it.recv(1000)  # one after the other, so that the first waits the longest
        for place in range(3):
            assert served.complete(max_tokens=1).status_code == 200  # a connection of its own each time
            with contextlib.suppress(ConnectionResetError):
                assert held[0].recv(1000) == b""
            assert place == 0 or select.select(held[1:], [], [], 0.05)[0] == [], (
                "no more make way than need to"
            )
        assert len(served.listener.server_state.connections) <= 8
    wait_until(lambda: served.idle)


def test_connections_have_an_upper_bound() -> None:
    """All of them wait for their answers, so that none can make way."""
    config, release = ServerConfig(model_name=MODEL, max_requests=2), threading.Event()
    with (
        serve(LetterExecutor(before_step=lambda step: release.wait(10)), config=config) as served,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(connect(served)) for _ in range(8)]
        for it in held:
            it.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(served.listener.server_state.tasks) == 8)
        with connect(served) as extra:
            try:
                extra.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert extra.recv(100) == b""
            except (ConnectionResetError, BrokenPipeError):
                pass
        release.set()
        for it in held:
            assert it.recv(1000).startswith(b"HTTP/1.1 200")
        assert served.get("/health").status_code == 200


def test_a_full_queue_is_a_429_with_retry_after() -> None:
    closed = threading.Event()
    with (
        serve(
            LetterExecutor(before_step=lambda step: closed.wait(20)), max_num_seqs=2, max_waiting=2
        ) as served,
        ThreadPoolExecutor(8) as pool,
    ):
        try:
            inside = [pool.submit(served.complete, f"{i}", max_tokens=3) for i in range(4)]
            wait_until(lambda: served.engine._gate.queued + served.engine._gate.running == 4)
            answer = served.complete("one more")
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert served.complete(["a", "b"], stream=True).status_code == 429
        finally:
            closed.set()
        for i, it in enumerate(inside):
            assert it.result(20).json()["choices"][0]["text"] == text(served, f"{i}", 3)
        wait_until(lambda: served.idle)
        assert served.complete("one more", max_tokens=1).status_code == 200


def test_a_request_of_many_sequences_gets_all_its_places_or_none() -> None:
    closed = threading.Event()
    with (
        serve(
            LetterExecutor(before_step=lambda step: closed.wait(20)), max_num_seqs=2, max_waiting=2
        ) as served,
        ThreadPoolExecutor(4) as pool,
    ):
        try:
            answer = served.complete(["a", "b", "c"], n=2)  # could never fit: trying again does not help
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "prompt"
            assert served.engine._gate.queued == 0
            inside = [pool.submit(served.complete, f"{i}", max_tokens=3) for i in range(3)]
            wait_until(lambda: served.engine._gate.queued + served.engine._gate.running == 3)
            admitted = []
            admit = served.engine._gate.admit
            served.engine._gate.admit = lambda *given: (admitted.append(given), admit(*given))  # type: ignore
            assert served.complete(["a", "b"]).status_code == 429
            assert not admitted
            inside.append(pool.submit(served.complete, "one more", max_tokens=3))
            wait_until(lambda: len(admitted) == 1)
        finally:
            closed.set()
        assert [it.result(20).status_code for it in inside] == [200] * 4
        wait_until(lambda: served.idle)
        assert served.engine._gate.queued == served.engine._gate.running == 0


def test_more_requests_than_the_server_takes_are_a_429_before_their_bodies() -> None:
    config, release = ServerConfig(model_name=MODEL, max_requests=1), threading.Event()
    with (
        serve(LetterExecutor(before_step=lambda step: release.wait(10)), config=config) as served,
        ThreadPoolExecutor(1) as pool,
        connect(served) as second,
        connect(served) as third,
    ):
        try:
            second.sendall(request()[0])  # it comes before the place is taken, its body after
            first = pool.submit(served.complete, max_tokens=1)
            wait_until(lambda: served.engine.stats().waiting + served.engine._gate.running == 1)
            second.sendall(request()[1])
            assert second.recv(100).startswith(b"HTTP/1.1 429 ")
            third.sendall(request()[0])  # and no body
            assert third.recv(100).startswith(b"HTTP/1.1 429 ")
            assert served.get("/metrics").status_code == 200
        finally:
            release.set()
        assert first.result(10).status_code == 200
        assert served.complete(max_tokens=1).status_code == 200


def test_half_of_a_body_keeps_nobody_out() -> None:
    config = ServerConfig(model_name=MODEL, max_requests=2)
    with serve(LetterExecutor(), config=config) as served, contextlib.ExitStack() as stack:
        for _ in range(6):
            head, body = request()
            stack.enter_context(connect(served)).sendall(head + body[:5])
        wait_until(lambda: len(served.listener.server_state.tasks) == 6)
        for _ in range(3):
            assert served.complete(max_tokens=1).status_code == 200


def test_bodies_on_their_way_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BODIES", 1)
    monkeypatch.setattr(admission, "SMALL", 100)
    config = ServerConfig(model_name=MODEL, max_body_bytes=400)
    with serve(LetterExecutor(), config=config) as served:
        head = request(prompt="a" * 300)[0]
        with connect(served) as first, connect(served) as second:
            first.sendall(head + b" " * 250)
            wait_until(lambda: len(served.listener.server_state.tasks) == 1)
            second.sendall(head + b" " * 250)
            both = [first, second]
            said = [it.recv(100) for it in select.select(both, [], [], 5)[0]]
            assert [it.startswith(b"HTTP/1.1 429 ") for it in said] == [True]
            assert served.complete(max_tokens=1).status_code == 200  # its body is short
        wait_until(lambda: served.complete(max_tokens=1).status_code == 200)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"),
        (b"what is this\r\n\r\n", "not HTTP: "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 17_000, "headers pass 16384 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_http_is_told_why(served: Served, head: bytes, said: str) -> None:
    with connect(served) as client:
        client.sendall(head)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    message = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert said in message
    assert len(message) < 300


def test_errors_do_not_repeat_long_paths(served: Served) -> None:
    for answer in (served.get("/" + "a" * 15_000), served.post("/health", {}), served.get("/nothing")):
        assert answer.status_code in (404, 405)
        assert len(answer.text) < 500
    assert "'/nothing'" in answer.text


def test_compressed_bodies_are_refused(served: Served) -> None:
    sent = gzip.compress(b'{"prompt": "a"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = httpx.post(f"{served.url}/v1/completions", content=sent, headers=headers)
    assert answer.status_code == 415
    assert "compressed" in answer.json()["error"]["message"]
    assert (
        served.post("/tokenize", {"prompt": "a"}, headers={"Content-Encoding": "identity"}).status_code == 200
    )


def test_ids_of_requests_are_echoed_when_they_are_sane(served: Served) -> None:
    assert (
        served.get("/health", headers={"X-Request-Id": "mine-1.a:b"}).headers["x-request-id"] == "mine-1.a:b"
    )
    for bad in ("", "a" * 200, "a b", "<script>", "ä"):
        found = served.get("/health", headers=[(b"x-request-id", bad.encode())]).headers["x-request-id"]
        assert found != bad
        assert len(found) == 32


def test_requests_of_one_id_do_not_meet(served: Served) -> None:
    def ask(prompt: str) -> Any:
        return served.post(
            "/v1/completions",
            {"prompt": prompt, "max_tokens": 20, "seed": 1},
            headers={"X-Request-Id": "same"},
        ).json()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, ["a", "b", "c", "d"]))
    assert len({it["id"] for it in answers}) == 4
    assert all(it["choices"][0]["text"] for it in answers)


def test_salts_keep_cached_prompts_apart(served: Served) -> None:
    def cached(salt: str | None) -> int:
        usage = served.complete("a prompt of several blocks", max_tokens=1, cache_salt=salt).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached("alice") == 0
    assert cached("bob") == 0
    assert cached(None) == 0
    assert cached("alice") > 0


def test_sockets_are_the_loopbacks_own(served: Served) -> None:
    (listening,) = served.listener.servers[0].sockets
    assert listening.family == socket.AF_INET
    assert listening.getsockname()[0] == "127.0.0.1"

"""What is wrong before it is JSON: floods of headers and bodies, broken framing, one id for many requests.

Each gets its status and sentence, and harms nobody, as in ``test_bad_input``.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .kit import Served, wait_until
from .test_bad_input import harmless, text
from .test_clients_that_leave import connect, request

LIMIT, HEAD = 4 << 20, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


def chunked(pieces: int, size: int) -> bytes:
    return (
        HEAD + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n%s\r\n" % (size, b" " * size)) * pieces
    )


# name → (what is sent, status, what the sentence says)
CASES: dict[str, tuple[bytes, int, str]] = {
    "one header of 20,000 bytes": (HEAD + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431, "pass 16384 bytes"),
    "a thousand headers": (
        HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 20) for i in range(1000)),
        431,
        "16384",
    ),
    "headers without an end": (HEAD + b"X: " + b"a" * 200_000, 400, "pass 16384 bytes"),
    "a line without an end": (b"GET /" + b"a" * 200_000, 400, "pass 16384 bytes"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "not HTTP"),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}", 400, "Content-Length"),
    "a length and chunks": (
        HEAD + JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        400,
        ".",
    ),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n", 400, "not HTTP"),
    "a length of terabytes": (HEAD + JSON + b"Content-Length: 9999999999999\r\n\r\n", 413, str(LIMIT)),
    "a length of 30 digits": (
        HEAD + JSON + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        400,
        "Content-Length",
    ),
    "a body of 5 MiB in chunks": (chunked(80, 64 << 10), 413, str(LIMIT)),
    "a form": (
        HEAD + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b",
        415,
        "json",
    ),
    "a compressed body": (
        HEAD + JSON + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        415,
        "compressed",
    ),
}


# Whether the parser sees the whole of it at once, or refuses it before, is the network's choice.
EARLIER = {"one header of 20,000 bytes": (400,), "a thousand headers": (400,)}


def answer_to(client: socket.socket, sent: bytes) -> bytes:
    """All that comes back; the server may close before it has read everything."""
    received = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.sendall(sent)
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        client.settimeout(5)
        while piece := client.recv(65536):
            received += piece
            head, end, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if end and length and len(body) >= int(length[1]):
                break
    return received


@pytest.mark.parametrize("name", CASES)
def test_is_refused_and_harms_nobody(served: Served, name: str) -> None:
    sent, status, sentence = CASES[name]
    if name == "a thousand headers":
        sent += b"\r\n"
    with harmless(served), connect(served) as client:
        received = answer_to(client, sent)
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in (status, *EARLIER.get(name, ())), received[:300]
    assert re.search(sentence, json.loads(body)["error"]["message"])


def test_many_connections_that_send_nothing_harm_nobody(served: Served) -> None:
    with harmless(served), contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(served)) for _ in range(300)]
        for it in held[::2]:
            it.sendall(request()[0][:50])
        wait_until(lambda: len(served.listener.server_state.connections) >= 300)
        assert served.get("/health").status_code == 200
    wait_until(lambda: len(served.listener.server_state.connections) < 10)


def test_requests_of_one_id_harm_nobody(served: Served) -> None:
    """The ids are clients' own, so that two may be the same; the server tells the requests apart."""

    def ask(prompt: str) -> str:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 20}
        answer = served.post("/v1/completions", body, headers={"X-Request-Id": "same"})
        assert answer.status_code == 200
        assert answer.headers["X-Request-Id"] == "same"
        return str(answer.json()["choices"][0]["text"])

    prompts = [f"number {i}" for i in range(6)]
    with harmless(served), ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, prompts))
    assert found == [text(served, it, 20) for it in prompts]


def test_bytes_that_drip_harm_nobody(served: Served) -> None:
    head, body = request(max_tokens=3)
    with harmless(served), connect(served) as client:
        for byte in head + body:
            client.sendall(bytes([byte]))
            time.sleep(0.0005)
        assert client.recv(12) == b"HTTP/1.1 200"

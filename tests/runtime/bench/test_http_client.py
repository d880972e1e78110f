"""The HTTP client against a server that sends what it is told, when it is told."""

import asyncio
import contextlib
import json
import time

import pytest

from optpipe.errors import RequestError
from optpipe_runtime.bench.http_client import HttpClient, read_events
from optpipe_runtime.bench.http_stream import Server, get_json, parse_url
from optpipe_runtime.bench.load import ClientError, run_load
from optpipe_runtime.bench.record import Record
from optpipe_runtime.bench.workload import Request

NOISE = 0.25  # a piece is read this much after it was written, at most; both sides share one event loop
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def event(value):
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def text(value, finish=None):
    return event({"choices": [{"index": 0, "text": value, "finish_reason": finish}]})


def chat(finish=None, **delta):
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
DONE = event(b"[DONE]")
END = chunk(b"")


class Fake:
    """Answers every request with the same pieces, each after its pause."""

    def __init__(self, *script):
        self.script, self.requests, self.written = script, [], []

    async def answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(it[15:]) for it in head.split(b"\r\n") if it.startswith(b"Content-Length:")), 0)
        self.requests.append((head.decode(), await reader.readexactly(length)))
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            for pause, data in self.script:
                await asyncio.sleep(pause)
                self.written.append(time.perf_counter())
                writer.write(data)
                await writer.drain()


def exchange(*script, prompt=(1, 2, 3), timeout=5.0, key=None, **options):
    """→ the record of one request to such a server, and the server."""

    async def main():
        fake = Fake(*[it if isinstance(it, tuple) else (0, it) for it in script])
        listening = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            client = HttpClient(parse_url(f"http://127.0.0.1:{port}", key), "m", **options)
            wanted = prompt if isinstance(prompt, str) else list(prompt)
            load = await run_load(client, [Request(wanted, 5, 0.0)], timeout=timeout)
            return load.records[0], fake

    return asyncio.run(main())


def test_chunks_have_the_times_at_which_they_were_sent():
    pauses = (0.05, 0.03, 0.02, 0.04)
    pieces = [(pause, chunk(text(it))) for pause, it in zip(pauses, "abcd", strict=True)]
    record, fake = exchange(CHUNKED, *pieces, chunk(text("", "length") + USAGE + DONE), END)
    assert record.error is None
    written = fake.written[1:]
    for seen, sent in zip(record.chunks, written, strict=False):
        assert 0 <= seen - sent < NOISE
    assert len(record.chunks) == 4, "the end brings no token"
    assert record.ttft >= 0.05
    assert sum(record.gaps) == pytest.approx(written[3] - written[0], abs=NOISE)
    assert record.last >= record.chunks[-1]
    assert (record.prompt_tokens, record.output_tokens, record.counted_by) == (7, 5, "usage")
    assert record.tpot == pytest.approx((record.last - record.chunks[0]) / 4)


def test_without_usage_chunks_are_counted_and_it_says_so():
    record, fake = exchange(
        CHUNKED, chunk(text("a")), chunk(text("b")), chunk(text("c", "length") + DONE), END
    )
    assert (record.prompt_tokens, record.output_tokens, record.counted_by) == (3, 3, "chunks")
    assert json.loads(fake.requests[0][1])["stream_options"] == {"include_usage": True}
    record, fake = exchange(CHUNKED, chunk(text("a") + text("b", "stop") + USAGE), END, count="chunks")
    assert (record.output_tokens, record.counted_by) == (2, "chunks")
    assert "stream_options" not in json.loads(fake.requests[0][1])


def test_events_may_be_split_and_joined_in_any_way():
    whole = (
        text("é") + b": a comment\n\n" + text("b").replace(b"\n\n", b"\r\n\r\n") + text("c", "stop") + DONE
    )
    for size in (1, 7, len(whole)):
        pieces = [chunk(whole[i : i + size]) for i in range(0, len(whole), size)]
        record, _ = exchange(CHUNKED, *pieces, END)
        assert (record.error, record.output_tokens) == (None, 3), size


def test_a_body_may_have_a_length_or_end_with_the_connection():
    body = text("a") + text("b", "stop") + DONE
    record, _ = exchange(HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body)
    assert (record.error, record.output_tokens) == (None, 2)
    record, _ = exchange(HEAD + b"\r\n", body.rstrip())
    assert (record.error, record.output_tokens) == (None, 2)


def test_the_opening_of_a_chat_is_no_token():
    pieces = [
        chat(role="assistant", content=""),
        chat(content="a"),
        chat(reasoning_content="b"),
        chat("stop"),
    ]
    record, fake = exchange(
        CHUNKED, chunk(pieces[0]), *[(0.02, chunk(it)) for it in pieces[1:]], chunk(DONE), END,
        prompt="hello", endpoint="chat",
    )  # fmt: skip
    assert record.ttft >= 0.02
    assert len(record.chunks) == record.output_tokens == 2
    assert record.last - record.chunks[-1] >= 0.015, "the end token came with the end"
    assert record.prompt_tokens is None
    head, body = fake.requests[0]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert json.loads(body)["messages"] == [{"role": "user", "content": "hello"}]


def test_a_token_without_text_is_a_token():
    record, _ = exchange(CHUNKED, chunk(text("")), chunk(text("é")), chunk(text("", "length")), END)
    assert len(record.chunks) == 2


def test_an_answer_of_an_end_alone_has_its_time():
    record, _ = exchange(CHUNKED, (0.03, chunk(text("", "stop") + USAGE + DONE)), END)
    assert record.error is None
    assert record.ttft == record.e2e >= 0.03


def test_what_is_sent():
    _, fake = exchange(CHUNKED, END, key="secret")
    head, body = fake.requests[0]
    assert head.startswith("POST /v1/completions HTTP/1.1\r\n")
    assert "Authorization: Bearer secret\r\n" in head
    assert json.loads(body) == {
        "model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True,
    }  # fmt: skip


FULL = b'{"error": {"message": "The queue\\nis full."}}'
TOO_MANY = b"HTTP/1.1 429 Too Many\r\nContent-Length: %d\r\n\r\n%s" % (len(FULL), FULL)
TROUBLE = chunk(event({"error": {"message": "no room"}}))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([TOO_MANY], "HTTP 429: The queue is full."),
        ([b"HTTP/1.1 500 No\r\n\r\n", b"oops"], "HTTP 500: oops"),
        ([CHUNKED, chunk(text("a")), TROUBLE, END], "the stream says: no room"),
        ([CHUNKED, chunk(text("a")), END], "the stream ended early"),
        ([CHUNKED, chunk(DONE), END], "the answer has no token"),
        ([CHUNKED, END], "the answer has no token"),
        ([CHUNKED, chunk(event(b"{")), END], "an event of the stream is no JSON object"),
        ([CHUNKED, chunk(event({"choices": 3})), END], "the events of the stream are not of OpenAI's form"),
        ([CHUNKED, chunk(text("a")), b"10\r\nda"], "the connection was cut, or does not speak HTTP"),
        ([CHUNKED, b"zz\r\n"], "the connection was cut, or does not speak HTTP"),
        ([b"SSH-2.0\r\n"], "the connection was cut, or does not speak HTTP"),
        ([], "the connection was cut, or does not speak HTTP"),
        ([CHUNKED, chunk(text("a")), (1.0, END)], "no end within 0.1 s"),
    ],
)  # fmt: skip
def test_failures_say_what_happened(script, said):
    record, _ = exchange(*script, timeout=0.1 if "within" in said else 5.0)
    assert record.error == said


def test_nobody_there_is_a_failure():
    async def main():
        listening = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        listening.close()
        await listening.wait_closed()
        client = HttpClient(parse_url(f"http://127.0.0.1:{port}"), "m")
        return (await run_load(client, [Request([1], 1, 0.0)])).records[0]

    assert asyncio.run(main()).error.startswith("ConnectionRefusedError")


def test_models_are_asked_for():
    async def main():
        body = b'{"data": [{"id": "x"}]}'
        fake = Fake((0, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
        async with await asyncio.start_server(fake.answer, "127.0.0.1", 0) as listening:
            return await get_json(Server("127.0.0.1", listening.sockets[0].getsockname()[1]), "/models")

    assert asyncio.run(main()) == {"data": [{"id": "x"}]}


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://h", Server("h", 80)),
        ("https://h/", Server("h", 443, secure=True)),
        ("http://[::1]:80/v1/", Server("::1", 80)),
        ("http://h:81/api", Server("h", 81, "/api/v1")),
    ],
)
def test_urls(url, server):
    assert parse_url(url) == server


@pytest.mark.parametrize(
    "url", ["", "h:80", "ftp://h", "http://", "http://h:99999", "http://h/\r\nX: y", "http://h h"]
)
def test_wrong_urls_are_refused(url):
    with pytest.raises(RequestError, match="no URL"):
        parse_url(url)


def test_a_key_cannot_add_headers():
    with pytest.raises(RequestError, match="API key"):
        parse_url("http://h", "a\r\nX: y")
    assert "secret" not in repr(parse_url("http://h", "secret"))


def test_usage_of_another_form_is_refused_and_a_missing_one_is_none():
    data = json.dumps({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": 3}).encode()
    with pytest.raises(ClientError, match="form"):
        read_events([(1.0, data)], Request("x", 1, 0.0), Record(0.0), by_usage=True)

"""The event loop moves bytes, and leaves what takes time to other threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from optpipe_runtime.sampling import grammar
from optpipe_runtime.server import prompts

from .kit import LetterExecutor, serve, tokenizer
from .test_chat import user

LOOP = "server"  # the thread in which the kit runs the event loop


def test_it_neither_parses_nor_renders_nor_tokenizes_nor_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {}

    def spy(place: Any, name: str) -> None:
        real = getattr(place, name)

        def spied(*args: Any, **options: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return real(*args, **options)

        monkeypatch.setattr(place, name, spied)

    from optpipe_runtime.server.routes import chat, completions, tokens
    from optpipe_runtime.server.token_text import TokenTexts
    from optpipe_runtime.tokenizer import Tokenizer

    for module in (chat, completions, tokens):
        spy(module, "parse")
    spy(prompts, "render_chat")
    spy(Tokenizer, "encode")
    spy(TokenTexts, "decode")
    spy(grammar.GrammarCompiler, "compile")
    with serve(LetterExecutor()) as served:
        assert served.complete(["a", "b"], max_tokens=2, logprobs=1).status_code == 200
        assert served.chat("a", max_tokens=2).status_code == 200
        assert served.complete(max_tokens=2, structured_outputs={"regex": "[a-z]+"}).status_code == 200
        assert served.complete(max_tokens=2, bad_words=["a"]).status_code == 200
        assert served.post("/tokenize", {"messages": user("a")}).status_code == 200
        assert served.post("/detokenize", {"tokens": [1]}).status_code == 200
    assert set(threads) == {"parse", "render_chat", "encode", "decode", "compile"}
    for name, found in threads.items():
        assert LOOP not in found, name


def test_others_are_served_while_a_thread_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from optpipe_runtime.tokenizer import Tokenizer

    real, slow_ends = Tokenizer.encode, threading.Event()

    def slow(self: Tokenizer, text: str, **options: Any) -> list[int]:
        if text == "slow":
            slow_ends.wait(20)
        return real(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", slow)
    with serve(LetterExecutor()) as served:
        thread = threading.Thread(target=served.complete, args=("slow",))
        thread.start()
        try:
            assert served.get("/health").status_code == 200
            assert served.complete(max_tokens=1).status_code == 200
            assert thread.is_alive()
        finally:
            slow_ends.set()
            thread.join()


def test_long_texts_wait_for_each_other_and_short_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from optpipe_runtime.server import service
    from optpipe_runtime.tokenizer import Tokenizer

    real, release = Tokenizer.encode, threading.Event()

    def slow(self: Tokenizer, text: str, **options: Any) -> list[int]:
        if len(text) > 500:
            release.wait(10)
        return real(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", slow)
    monkeypatch.setattr(service, "LONG", 500)
    with serve(LetterExecutor()) as served, ThreadPoolExecutor(8) as pool:
        try:
            long = [pool.submit(served.post, "/tokenize", {"prompt": "a" * 1000}) for _ in range(8)]
            for _ in range(3):
                assert served.complete(max_tokens=1).status_code == 200
            assert not [it for it in long if it.done()]
        finally:
            release.set()
        assert [it.result(20).json()["count"] for it in long] == [1000] * 8


def test_an_idle_server_takes_no_processor_time() -> None:
    """All threads of it together: uvicorn looks at its clock ten times a second, and nothing else wakes."""
    with serve(LetterExecutor()) as served:
        assert served.complete(max_tokens=3).status_code == 200
        shares = []
        for _ in range(5):  # other work of the test process may fall into one of them
            before, begun = time.process_time(), time.perf_counter()
            time.sleep(0.3)
            shares.append((time.process_time() - before) / (time.perf_counter() - begun))
        assert min(shares) < 0.02, shares


def longest_pause(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that work in another thread takes, and the longest pause of this one meanwhile."""
    thread = threading.Thread(target=work)
    begun = last = time.perf_counter()
    longest = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        last, before = time.perf_counter(), last
        longest = max(longest, last - before)
    return last - begun, longest


def test_tokenizing_lets_other_threads_run() -> None:
    """A plain ``encode`` of the library stops the whole process for as long as it takes."""
    encoder = prompts.Encoder(tokenizer())
    text = "hello world " * 150_000
    tries = [longest_pause(lambda: encoder.text(text)) for _ in range(3)]
    assert min(pause / took for took, pause in tries) < 0.5, tries


def test_what_is_surely_too_long_is_not_tokenized() -> None:
    with serve(LetterExecutor()) as served:
        for body in ({"prompt": "a" * 100_000}, {"messages": user("a" * 100_000)}):
            answer = served.post("/tokenize", body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"

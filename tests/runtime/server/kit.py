"""A server over a fake executor on a real socket, and what its tests ask of it.

`ScriptExecutor` makes the tiny byte tokenizer say a given text behind a prompt; otherwise text is what the
tape hashes to.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from optpipe.testing.tokenizer import BOS, EOS, save_tokenizer
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.server import ServerConfig, create_app
from optpipe_runtime.server.listener import Listener
from optpipe_runtime.tokenizer import Tokenizer, load_tokenizer
from tests.runtime.tape import TapeExecutor

VOCAB = 259
MODEL = "tiny"
CONTEXT = 256


@functools.cache
def tokenizer() -> Tokenizer:
    """The byte tokenizer of the tiny models, with its chat template."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return load_tokenizer(Path(folder))


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


class LetterExecutor(TapeExecutor):
    """A tape that prefers letters, so that texts are texts."""

    def __init__(self, *, vocab: int = VOCAB, **options: Any) -> None:
        super().__init__(vocab, end=EOS, **options)
        self._letters = np.zeros(vocab, dtype=np.float32)
        self._letters[[ids(it)[0] for it in "abcdefghijklmnopqrstuvwxyz"]] = 16.0

    def row(self, tokens: Sequence[int]) -> np.ndarray:
        return super().row(tokens) + self._letters


class ScriptExecutor(LetterExecutor):
    """Answers a prompt that ends in one of the keys with the text of that key, then ends."""

    def __init__(self, scripts: Mapping[str, str], **options: Any) -> None:
        super().__init__(**options)
        self._scripts = [(tuple(ids(key)), (*ids(text), EOS)) for key, text in scripts.items()]

    def row(self, tokens: Sequence[int]) -> np.ndarray:
        values = super().row(tokens)
        history = tuple(map(int, tokens))
        for key, script in self._scripts:
            for done in range(len(script)):
                begin = len(history) - done
                if history[max(0, begin - len(key)) : begin] == key and history[begin:] == script[:done]:
                    values[script[done]] += 100.0
        return values


@dataclass
class Served:
    """A running server."""

    engine: Engine
    executor: TapeExecutor
    url: str
    listener: Listener

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=20, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=20, **options)

    def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **fields})

    def chat(self, text: str = "hello", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **fields})

    @property
    def blocks(self) -> int:
        """KV blocks that sequences hold now."""
        return self.engine.stats().blocks_used

    @property
    def idle(self) -> bool:
        stats = self.engine.stats()
        return not (stats.running or stats.waiting or stats.blocks_used)


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.002)


@contextlib.contextmanager
def serve(
    executor: TapeExecutor | None = None,
    *,
    config: ServerConfig | None = None,
    tokens: Tokenizer | None = None,
    context: int = CONTEXT,
    traces: Any = None,
    **engine: Any,
) -> Iterator[Served]:
    """A server in a thread, on a free port."""
    executor = executor or LetterExecutor()
    settings = EngineConfig(
        **{"num_blocks": 512, "max_num_seqs": 8, "sampler_threads": 1, "seed": 0, **engine}
    )
    config = config or ServerConfig(model_name=MODEL)
    with Engine.over(
        executor, tokens or tokenizer(), config=settings, eos=[EOS], context_length=context, model_name=MODEL
    ) as made:
        port: list[int] = []
        listener = Listener(create_app(made, config, traces=traces), config, "127.0.0.1", 0, port.append)
        thread = threading.Thread(target=listener.run, name="server")
        thread.start()
        try:
            wait_until(lambda: bool(port))
            yield Served(made, executor, f"http://127.0.0.1:{port[0]}", listener)
        finally:
            listener.should_exit = True
            thread.join(5)
            listener.force_exit = True
            thread.join(5)
            assert not thread.is_alive(), "the server ends"


__all__ = ["BOS", "EOS", "LetterExecutor", "ScriptExecutor", "Served", "serve", "wait_until"]

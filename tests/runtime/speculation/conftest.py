"""Engines over the tape with a speculator of the test's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import optpipe_runtime.engine.parts as parts
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.speculation import Speculator

from ..tape import TapeExecutor

BLOCKS = 512


@pytest.fixture
def make_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    """→ an engine; keywords are the config's. Without a speculator the config says which."""
    engines = []
    make_speculator = parts.make_speculator

    def make(
        executor: Any = None, speculator: Speculator | None = None, *, eos: Any = (), **config: Any
    ) -> Engine:
        made = make_speculator if speculator is None else lambda *_, **__: speculator
        monkeypatch.setattr(parts, "make_speculator", made)
        tokenizer = config.pop("tokenizer", None)
        settings = EngineConfig(**{"num_blocks": BLOCKS, "seed": 1, **config})
        executor = TapeExecutor() if executor is None else executor
        engines.append(Engine.over(executor, tokenizer, config=settings, eos=eos))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()

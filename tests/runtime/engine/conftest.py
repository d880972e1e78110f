"""Engines over the tape, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from optpipe.testing.tokenizer import save_tokenizer
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.tokenizer import Tokenizer, load_tokenizer

from ..tape import TapeExecutor

BLOCKS = 256


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """→ an engine over an executor (a new tape when none is given); keywords are the config's."""
    engines = []

    def make(executor: Any = None, tokenizer: Any = None, *, eos: Any = (), **config: Any) -> Engine:
        executor = TapeExecutor() if executor is None else executor
        settings = EngineConfig(**{"num_blocks": BLOCKS, "seed": 1, **config})
        engines.append(Engine.over(executor, tokenizer, config=settings, eos=eos))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token a byte, and three special ones."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)

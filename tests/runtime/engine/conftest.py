"""Engines over the tape, closed after each test. ``OPTPIPE_ENGINE_TESTS=onnx``: over ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from optpipe.testing.tokenizer import save_tokenizer
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.tokenizer import Tokenizer, load_tokenizer

from .. import tape

if os.environ.get("OPTPIPE_ENGINE_TESTS") == "onnx":  # before a test module takes it
    from ..onnx_tape import OnnxTape

    tape.TapeExecutor = OnnxTape  # type: ignore[misc]

BLOCKS = 256
SLOTS = tape.TapeExecutor.sequence_blocks == 1  # a sequence has one block to itself
NOT_WITH_SLOTS = {
    "test_the_text_of_many_is_the_model_s_own[preempted-True]": "no sequence wants another block",
    "test_the_text_of_many_is_the_model_s_own[preempted-False]": "no sequence wants another block",
    "test_a_cache_too_small_for_all[fcfs]": "no sequence wants another block",
    "test_a_cache_too_small_for_all[priority]": "no sequence wants another block",
    "test_a_cache_smaller_than_the_context_bounds_it": "one block is as long as the context",
    "test_a_share_is_of_what_weights_and_workspace_leave": "counts bytes of the tape's blocks",
    "test_a_draft_model_takes_its_part": "counts bytes of the tape's blocks",
    "test_no_more_than_can_be_used": "counts blocks of four tokens",
    "test_a_kv_dtype_that_the_target_lacks": "names the tape's own dtype",
    "test_n_choices_share_the_prompt_and_are_those_of_one_choice": "no block is shared",
    "test_reading_what_was_never_written_is_caught": "tests the tape itself",
    "test_the_answers_are_those_of_a_cache": "compares bits of two ways to compute",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is about blocks of a few tokens where a block is a whole sequence."""
    for item in items:
        if SLOTS and item.name in NOT_WITH_SLOTS:
            item.add_marker(pytest.mark.skip(reason=NOT_WITH_SLOTS[item.name]))


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """→ an engine over an executor (a new tape when none is given); keywords are the config's."""
    engines = []

    def make(executor: Any = None, tokenizer: Any = None, *, eos: Any = (), **config: Any) -> Engine:
        executor = tape.TapeExecutor() if executor is None else executor
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

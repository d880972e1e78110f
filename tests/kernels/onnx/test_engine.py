"""The engine over the onnx target: whatever shares a step, a request gets the reference's greedy tokens."""

from __future__ import annotations

import numpy as np
import pytest

import optpipe_runtime.engine.parts as parts
from optpipe.artifact import load_artifact
from optpipe_runtime.core import Scheduler
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from optpipe_kernels.onnx.target import OnnxTarget

LENGTH = 12  # tokens of an answer
PROMPTS = [
    np.random.default_rng(i).integers(3, 250, count).tolist() for i, count in enumerate((3, 40, 17, 1, 29, 8))
]
CASES = [("llama", "paged"), ("gemma3", "paged"), ("mixtral", "quant,paged")]
CONFIGS = {
    "all at once": {"num_blocks": 6},
    "two slots": {"num_blocks": 2},
    "chunks of 8": {"num_blocks": 6, "max_num_batched_tokens": 8},
    "chunks of 16 in three slots": {"num_blocks": 3, "max_num_batched_tokens": 16},
}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def loaded(request, tiny, tmp_path_factory):
    """→ an executor, and what the reference answers."""
    path = tiny(*request.param)
    settings = EngineConfig(num_blocks=64)
    with Engine(path, target="reference", config=settings) as engine:
        expected = answers(engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        executor = OnnxTarget().load_artifact(load_artifact(path), threads=1, slot_tokens=64)
    return executor, expected


def answers(engine, prompts=PROMPTS):
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    return [it.completions[0].token_ids for it in engine.generate(prompts, params)]


def served(executor, **config):
    with Engine.over(executor, config=EngineConfig(**config)) as engine:
        return answers(engine), engine.stats()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_different_lengths(loaded, name):
    executor, expected = loaded
    assert served(executor, **CONFIGS[name])[0] == expected


def test_one_by_one(loaded):
    executor, expected = loaded
    with Engine.over(executor, config=EngineConfig(num_blocks=1)) as engine:
        assert [answers(engine, [it])[0] for it in PROMPTS] == expected


@pytest.mark.parametrize("step", [2, 5, 11])
def test_all_are_preempted_in_some_step(loaded, monkeypatch, step):
    executor, expected = loaded
    reached = []

    class Preempting(Scheduler):
        count = 0

        def plan(self, *arguments):
            self.count += 1
            if self.count == step:
                self.reset()
                reached.append(step)
            return super().plan(*arguments)

    monkeypatch.setattr(parts, "Scheduler", Preempting)
    found, stats = served(executor, num_blocks=4, max_num_batched_tokens=32)
    assert found == expected
    assert reached == [step] and stats.preemptions > 0


def test_there_are_as_many_slots_as_sequences(loaded):
    """More could not be used: a sequence has one."""
    executor, _ = loaded
    with Engine.over(executor, config=EngineConfig(max_num_seqs=5)) as engine:
        assert engine.memory.num_blocks == 5

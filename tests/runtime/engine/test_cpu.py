"""The cpu target keeps its promise: bit for bit the same tokens and logprobs, however a request is served."""

from __future__ import annotations

import random

import pytest

import optpipe
import optpipe_runtime.engine.parts as parts
from optpipe.testing import save_tiny
from optpipe_kernels.cpu.library import find
from optpipe_runtime.core import Scheduler
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams

pytestmark = pytest.mark.skipif(find() is None, reason="optpipe was built without a C++ compiler")

LENGTH = 64


@pytest.fixture(scope="module", params=["paged", "quant,paged"])
def artifact(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("cpu")
    model = save_tiny("llama", home / "model")
    return optpipe.optimize(str(model), passes=request.param, output=home / "artifact", verify=False) and (
        home / "artifact"
    )


@pytest.fixture(scope="module")
def executor(artifact, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        loaded = optpipe.load(artifact, target="cpu", threads=1)
    yield loaded
    loaded.close()


@pytest.fixture
def serve(executor):
    """→ the (tokens, logprobs) of prompts under some settings; one engine at a time has the executor."""

    def serve(prompts, length=LENGTH, *, one_by_one=False, temperature=0.0, **config):
        settings = EngineConfig(**{"num_blocks": 512, "max_num_batched_tokens": 512, **config})
        params = SamplingParams(
            temperature=temperature, seed=7, max_tokens=length, logprobs=2, ignore_eos=True
        )
        with Engine.over(executor, config=settings) as engine:
            groups = [[it] for it in prompts] if one_by_one else [prompts]
            outputs = [it for group in groups for it in engine.generate(group, params)]
        return [(it.completions[0].token_ids, it.completions[0].logprobs) for it in outputs]

    return serve


def prompts(count, longest=100):
    random_ = random.Random(1)
    return [[random_.randrange(3, 250) for _ in range(random_.randint(2, longest))] for _ in range(count)]


CONFIGS = {
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "chunks of 64": {"max_num_batched_tokens": 64, "prefix_caching": False},
    "chunks of 512": {"max_num_batched_tokens": 512},
    "speculated": {"speculation": "ngram"},
    "preempted for want of blocks": {"num_blocks": 60, "watermark": 0.0},
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_of_32(serve, temperature):
    asked = prompts(32)
    alone = serve(asked, 16, one_by_one=True, prefix_caching=False, temperature=temperature)
    for name, config in CONFIGS.items():
        assert serve(asked, 16, temperature=temperature, **config) == alone, name


def test_preempted_at_every_step(serve, monkeypatch):
    asked = prompts(1, longest=30)
    expected = serve(asked)
    assert len(expected[0][0]) == LENGTH
    reached = 0

    class Preempting(Scheduler):
        at, count = 0, 0

        def plan(self, *arguments):
            nonlocal reached
            type(self).count += 1
            if self.count == self.at:
                self.reset()
                reached += 1
            return super().plan(*arguments)

    monkeypatch.setattr(parts, "Scheduler", Preempting)
    for step in range(1, LENGTH + 1):
        Preempting.at, Preempting.count = step, 0
        assert serve(asked) == expected, step
    assert reached == LENGTH

"""The cpu target keeps its promise: bit for bit the same tokens and logprobs, however a request is served."""

from __future__ import annotations

import functools
import random

import pytest

import optpipe
import optpipe_runtime.engine.parts as parts
from optpipe.testing import save_tiny
from optpipe_kernels.cpu.library import find
from optpipe_runtime.core import Scheduler
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.speculation import FixedController, NgramProposer, Speculator, SuffixProposer

from ..speculation.scripted import ScriptedProposer, texts_known

pytestmark = pytest.mark.skipif(find() is None, reason="optpipe was built without a C++ compiler")

LENGTH = 64  # tokens of an answer that is preempted
CASES = {
    "float": ("paged", {}),
    "int16": ("quant,paged", {"activations": "int16"}),
    "int8": ("quant,paged", {"activations": "int8"}),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """→ the artifact of some passes, made once."""
    home = tmp_path_factory.mktemp("cpu")
    model = save_tiny("llama", home / "model")

    @functools.cache
    def make(passes):
        folder = home / passes
        optpipe.optimize(str(model), passes=passes, output=folder, verify=False)
        return folder

    return make


@pytest.fixture(scope="module", params=CASES)
def executor(request, artifacts, tmp_path_factory):
    passes, options = CASES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        loaded = optpipe.load(artifacts(passes), target="cpu", threads=2, **options)
    yield loaded
    loaded.close()


@pytest.fixture
def serve(executor):
    """→ (tokens, logprobs) of prompts under some settings, and the engine's figures.

    One engine at a time has the executor.
    """

    def serve(prompts, length=LENGTH, *, one_by_one=False, temperature=0.0, logprobs=2, **config):
        settings = EngineConfig(**{"num_blocks": 512, "max_num_batched_tokens": 512, **config})
        params = SamplingParams(
            temperature=temperature, seed=7, max_tokens=length, logprobs=logprobs, ignore_eos=True
        )
        with Engine.over(executor, config=settings) as engine:
            groups = [[it] for it in prompts] if one_by_one else [prompts]
            outputs = [it for group in groups for it in engine.generate(group, params)]
            stats = engine.stats()
        return [(it.completions[0].token_ids, it.completions[0].logprobs) for it in outputs], stats

    return serve


def prompts(count, longest=100):
    """Half of each says itself again, so that there is something to copy; a third begins alike."""
    random_ = random.Random(1)
    common = [random_.randrange(3, 250) for _ in range(40)]
    found = []
    for i in range(count):
        half = [random_.randrange(3, 250) for _ in range(random_.randint(2, longest // 2))]
        found.append([*common, *half] if i % 3 == 0 and longest > 40 else half + half)
    return found


def always_drafting(monkeypatch, proposer):
    speculator = Speculator(proposer, FixedController(max_drafts=4))
    monkeypatch.setattr(parts, "make_speculator", lambda *args, **options: speculator)


CONFIGS = {
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "chunks of 64": {"max_num_batched_tokens": 64, "prefix_caching": False},
    "chunks of 512": {"max_num_batched_tokens": 512},
    "preempted for want of blocks": {"num_blocks": 60, "watermark": 0.0},
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_of_32(serve, temperature):
    asked = prompts(32)
    alone, _ = serve(asked, 16, one_by_one=True, prefix_caching=False, temperature=temperature)
    for name, config in CONFIGS.items():
        found, stats = serve(asked, 16, temperature=temperature, **config)
        assert found == alone, name
        assert (stats.preemptions > 0) == name.startswith("preempted"), name
        assert (stats.prefix_hits > 0) == config.get("prefix_caching", True), name


def test_tokens_that_the_target_chooses_itself(serve):
    """Without log-probabilities greedy requests never see logits: the target gives the likeliest ids."""
    asked = prompts(32)
    expected = [tokens for tokens, _ in serve(asked, 16, one_by_one=True)[0]]
    for name, config in CONFIGS.items():
        found, _ = serve(asked, 16, logprobs=None, **config)
        assert found == [(tokens, None) for tokens in expected], name


@pytest.mark.parametrize(("temperature", "logprobs"), [(0.0, None), (0.0, 2), (0.8, 2)])
def test_speculated(serve, monkeypatch, temperature, logprobs):
    asked = prompts(16)
    options = {"temperature": temperature, "logprobs": logprobs}
    alone, _ = serve(asked, 24, one_by_one=True, prefix_caching=False, **options)
    texts = [[*prompt, *tokens] for prompt, (tokens, _) in zip(asked, alone, strict=True)]
    proposers = [ScriptedProposer("mixed", texts_known(texts))]
    if not temperature:  # what is drawn hardly ever repeats itself
        proposers += [NgramProposer(), SuffixProposer()]
    for proposer in proposers:
        always_drafting(monkeypatch, proposer)
        found, stats = serve(asked, 24, max_num_batched_tokens=64, max_num_seqs=8, **options)
        assert found == alone, proposer.name
        proposed, accepted = sum(stats.draft_tokens), sum(stats.accepted_tokens)
        assert 0 < accepted < proposed, (proposer.name, proposed, accepted)


def test_preempted_at_every_step(serve, monkeypatch):
    asked = prompts(2, longest=30)
    expected, _ = serve(asked, one_by_one=True, prefix_caching=False)
    assert [len(tokens) for tokens, _ in expected] == [LENGTH] * 2
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
        assert serve(asked)[0] == expected, step
    assert reached == LENGTH

"""The reference and the onnx target, on a real artifact: the same token wherever the choice is not noise."""

import random
import re
from pathlib import Path

import pytest

import optpipe
import optpipe_runtime.engine.parts as parts
from optpipe.errors import CapacityError
from optpipe.testing import save_tiny
from optpipe_runtime.core import Scheduler
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.speculation import FixedController, Speculator

from ..speculation.scripted import ScriptedProposer, texts_known

# The same rows in other batches differ by this much in a logit at most: torch sums in another order.
NOISE = 1e-3
LENGTH = 64


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    home = tmp_path_factory.mktemp("reference")
    optpipe.optimize(str(save_tiny("llama", home / "model")), output=home / "artifact", verify=False)
    return home / "artifact"


@pytest.fixture(scope="module")
def reference(artifact):
    return optpipe.load(artifact, target="reference")


@pytest.fixture(scope="module", params=["reference", "onnx"])
def executor(request, artifact, reference, tmp_path_factory):
    if request.param == "reference":
        return reference
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return optpipe.load(artifact, target="onnx", threads=1, slot_tokens=256)


def by_slots(executor):
    """Whether a sequence has one block to itself: then none are shared, and none is ever wanting."""
    return executor.cache_spec.sequence_blocks == 1


@pytest.fixture
def serve(executor):
    """→ the completions of prompts under some settings; one engine at a time has the executor."""

    def serve(prompts, length=LENGTH, *, one_by_one=False, **config):
        if by_slots(executor):
            config["num_blocks"] = max(1, config.get("num_blocks", 512) // 16)
        settings = EngineConfig(**{"num_blocks": 512, "max_num_batched_tokens": 512, **config})
        params = SamplingParams(temperature=0, max_tokens=length, logprobs=2)
        with Engine.over(executor, config=settings) as engine:
            groups = [[it] for it in prompts] if one_by_one else [prompts]
            found = [it.completions[0] for group in groups for it in engine.generate(group, params)]
            return found, engine.stats()

    return serve


def prompts(count, longest=100):
    """Every third begins like the first."""
    random_ = random.Random(1)
    common = [random_.randrange(3, 250) for _ in range(40)]
    found = [[random_.randrange(3, 250) for _ in range(random_.randint(2, longest))] for _ in range(count)]
    return [[*common, *it] if i % 3 == 0 and longest > 40 else it for i, it in enumerate(found)]


def assert_same(found, expected):
    """Token by token until a choice was within the noise; then the texts may go apart."""
    compared = 0
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one.logprobs, other.logprobs, strict=True):
            margin = b.top[0][1] - b.top[1][1]
            if margin <= 2 * NOISE:
                break
            assert a.token == b.token
            assert a.logprob == pytest.approx(b.logprob, abs=NOISE)
            compared += 1
    assert compared > 0.5 * sum(len(it.token_ids) for it in expected), "the texts went apart too early"


@pytest.fixture(scope="module")
def alone(reference):
    """→ what the reference answers to each prompt by itself, worked out once."""
    known = {}

    def alone(asked, length):
        key = (len(asked), length)
        if key not in known:
            config = EngineConfig(num_blocks=64, prefix_caching=False)
            params = SamplingParams(temperature=0, max_tokens=length, logprobs=2)
            with Engine.over(reference, config=config) as engine:
                known[key] = [engine.generate([it], params)[0].completions[0] for it in asked]
        return known[key]

    return alone


@pytest.mark.parametrize(
    "config",
    [
        {"max_num_batched_tokens": 16, "max_num_seqs": 16},
        {"max_num_batched_tokens": 64, "prefix_caching": False},
        {"max_num_batched_tokens": 512},
        {"num_blocks": 60, "watermark": 0.0},
    ],
    ids=["chunks of 16", "chunks of 64", "chunks of 512", "preempted for want of blocks"],
)
def test_a_batch_of_32(serve, executor, alone, config):
    asked = prompts(32)
    found, stats = serve(asked, 16, **config)
    assert_same(found, alone(asked, 16))
    shared = not by_slots(executor)
    assert (stats.prefix_hits > 0) == (shared and config.get("prefix_caching", True))
    assert (stats.preemptions > 0) == (shared and "num_blocks" in config)


def test_speculated(serve, alone, monkeypatch):
    """With drafts of which some are right and some are wrong."""
    asked = prompts(32)
    expected = alone(asked, 16)
    texts = [[*prompt, *it.token_ids] for prompt, it in zip(asked, expected, strict=True)]
    proposer = ScriptedProposer("mixed", texts_known(texts))
    speculator = Speculator(proposer, FixedController(max_drafts=4))
    monkeypatch.setattr(parts, "make_speculator", lambda *arguments, **options: speculator)
    found, stats = serve(asked, 16)
    assert_same(found, expected)
    assert 0 < sum(stats.accepted_tokens) < sum(stats.draft_tokens)


@pytest.mark.parametrize("distance", [1, 7])
def test_preempted_at_every_step(serve, alone, monkeypatch, distance):
    """Before each step, so that every token is computed from the prompt on; and before each seventh."""

    class Preempting(Scheduler):
        count = 0

        def plan(self, *arguments):
            self.count += 1
            if self.count % distance == 0:
                self.reset()
            return super().plan(*arguments)

    asked = prompts(3, longest=30)
    expected = alone(asked, LENGTH)
    assert {len(it.token_ids) for it in expected} == {LENGTH}
    monkeypatch.setattr(parts, "Scheduler", Preempting)
    found, stats = serve(asked)
    assert_same(found, expected)
    assert stats.preemptions >= 3 * (LENGTH // distance - 1)


def test_scores_of_prompts_in_chunks(executor):
    asked = prompts(1)[0]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    found = []
    for budget in (512, 7):
        config = EngineConfig(num_blocks=64, max_num_batched_tokens=budget, max_num_seqs=4)
        with Engine.over(executor, config=config) as engine:
            found.append([it.logprob for it in engine.generate([asked], params)[0].prompt_logprobs[1:]])
    assert found[0] == pytest.approx(found[1], abs=NOISE)
    assert len(found[0]) == len(asked) - 1


def test_the_page_about_embedding_runs(artifact, capsys):
    page = (Path(__file__).parents[3] / "docs" / "embedding.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 4
    program = "\n".join(blocks).replace("build/smollm2", str(artifact))
    exec(compile(program, "docs/embedding.md", "exec"), {"__name__": "embedding"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("memory: weights")
    assert "length" in printed[1]
    assert printed[-2].startswith("True ")


def test_what_the_executor_says_of_its_memory(reference):
    executor = reference
    spec = executor.cache_spec
    assert executor.kv_dtypes == ("f32",)
    assert executor.block_bytes() == executor.block_bytes("f32") == spec.block_bytes(4)
    small, large = executor.memory(tokens=16, rows=1), executor.memory(tokens=16, rows=100)
    assert small.weights == large.weights > 0
    assert large.workspace - small.workspace >= 99 * executor.vocab_size * 4
    with pytest.raises(CapacityError, match="cannot keep its cache as 'bf16'") as caught:
        executor.allocate(4, kv_dtype="bf16")
    assert "f32" in caught.value.hint
    with pytest.raises(CapacityError, match="cannot keep its cache as 'bf16'"):
        Engine.over(executor, config=EngineConfig(kv_dtype="bf16"))

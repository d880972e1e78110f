"""A more strongly quantized copy of a model drafts for it: artifacts, the reference target, the engine."""

import json
import random

import pytest

import optpipe
from optpipe.errors import RequestError
from optpipe.testing import save_tiny
from optpipe.testing.tokenizer import save_tokenizer
from optpipe_runtime.engine import Engine, EngineConfig, drafting
from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.speculation import FixedController
from optpipe_runtime.tokenizer import load_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=2)
NOISE = 1e-3  # of a logit: rows in other batches are summed in another order


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("draft")
    model = save_tiny("llama", home / "model")
    for name, passes in (("full", "paged"), ("int8", "quant{bits=8},paged")):
        optpipe.optimize(str(model), passes=passes, output=home / name, verify=False)
    return home


def config(folder, **more):
    return EngineConfig(num_blocks=64, speculation="draft", draft_model=str(folder), **more)


def prompts():
    random_ = random.Random(2)
    return [[random_.randrange(3, 250) for _ in range(length)] for length in (3, 17, 30)]


def test_the_text_is_the_model_s_own(folders):
    with Engine(folders / "full", "reference", config=EngineConfig(num_blocks=64)) as engine:
        plain = engine.generate(prompts(), GREEDY)
    with Engine(folders / "full", "reference", config=config(folders / "int8", max_draft_tokens=3)) as engine:
        engine._loop._speculator.controller = FixedController(max_drafts=3)
        found = engine.generate(prompts(), GREEDY)
        stats, memory = engine.stats(), engine.memory
    compared = 0
    for one, other in zip(found, plain, strict=True):
        for a, b in zip(one.completions[0].logprobs, other.completions[0].logprobs, strict=True):
            if b.top[0][1] - b.top[1][1] <= 2 * NOISE:
                break  # from here on the texts may go apart
            assert a.token == b.token
            compared += 1
    assert compared > 36
    assert sum(stats.accepted_tokens) > 0.3 * sum(stats.draft_tokens) > 0
    assert stats.blocks_used == 0
    assert memory.draft.num_blocks == 64 // 4, "both caches have blocks of one size here"
    assert memory.draft.weights > 0
    assert f", {memory.draft}, of " in str(memory)


def test_settings_that_do_not_go_together(folders):
    def start(**settings):
        Engine(folders / "full", "reference", config=EngineConfig(num_blocks=64, **settings))

    with pytest.raises(RequestError, match="does not go with"):
        start(speculation="draft")
    with pytest.raises(RequestError, match="does not go with"):
        start(speculation="ngram", draft_model=str(folders / "int8"))
    with pytest.raises(RequestError, match="no proposer named 'sufix'") as error:
        start(speculation="sufix")
    assert "suffix" in error.value.hint


def test_another_vocabulary_is_refused(folders, tmp_path, monkeypatch):
    save_tokenizer(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    name = list(vocabulary)[-1]
    vocabulary[name + name] = vocabulary.pop(name)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = load_tokenizer(tmp_path)
    monkeypatch.setattr(drafting, "load_tokenizer", lambda folder: other)
    with pytest.raises(RequestError, match=r"vocabulary \(\d+ tokens\) is not that of the model"):
        Engine(folders / "full", "reference", config=config(folders / "int8"))

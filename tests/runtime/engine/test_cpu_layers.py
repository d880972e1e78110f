"""The cpu target drafting for itself with its first layers: bit for bit the text that it gives without."""

from __future__ import annotations

import random

import pytest
import torch

import optpipe
import optpipe_runtime.engine.parts as parts
from optpipe.testing import tiny_config
from optpipe.testing.tiny import model_of
from optpipe.testing.tokenizer import save_tokenizer
from optpipe_kernels.cpu.library import find
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams, StructuredOutput
from optpipe_runtime.speculation import FixedController, LayersProposer, Speculator
from optpipe_runtime.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(find() is None, reason="optpipe was built without a C++ compiler")

LENGTH = 32
LAYERS, DRAFTING = 4, 2
FAINT = 0.15  # what the layers behind those that draft add, so that leaving before them often agrees


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A llama whose last two layers change little."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config("llama")
    config.num_hidden_layers = LAYERS
    made = model_of(config)
    with torch.no_grad():
        for layer in made.model.layers[DRAFTING:]:
            layer.self_attn.o_proj.weight *= FAINT
            layer.mlp.down_proj.weight *= FAINT
    made.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["paged", "quant,paged"], ids=["float", "int4"])
def served(request, model, tmp_path_factory):
    """→ the executor of the model and its tokenizer."""
    folder = tmp_path_factory.mktemp("artifact") / "it"
    optpipe.optimize(str(model), passes=request.param, output=folder, verify=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        executor = optpipe.load(folder, target="cpu", threads=2)
    yield executor, load_tokenizer(folder)
    executor.close()


@pytest.fixture
def serve(served, monkeypatch):
    """→ (tokens, logprobs) of prompts, and the engine's figures; ``drafts`` of them a step."""
    executor, tokenizer = served

    def speculator(drafts):
        def make(*_, executor, lender, **__):
            proposer = LayersProposer(executor, lender, layers=DRAFTING)
            return Speculator(proposer, FixedController(max_drafts=drafts)) if drafts else None

        return make

    def serve(prompts, params, *, drafts=0, one_by_one=False, **config):
        monkeypatch.setattr(parts, "make_speculator", speculator(drafts))
        settings = EngineConfig(**{"num_blocks": 512, "max_num_batched_tokens": 512, **config})
        with Engine.over(executor, tokenizer, config=settings) as engine:
            groups = [[it] for it in prompts] if one_by_one else [prompts]
            outputs = [it for group in groups for it in engine.generate(group, params)]
            stats = engine.stats()
        assert stats.blocks_used == 0
        return [(it.completions[0].token_ids, it.completions[0].logprobs) for it in outputs], stats

    return serve


def prompts(count, longest=60):
    random_ = random.Random(3)
    return [[random_.randrange(3, 250) for _ in range(random_.randint(1, longest))] for _ in range(count)]


def kept(stats):
    return sum(stats.accepted_tokens), sum(stats.draft_tokens)


CONFIGS = {
    "together": {"max_num_seqs": 8},
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "preempted for want of blocks": {"num_blocks": 20, "watermark": 0.0},
    "int8 cache": {"kv_dtype": "i8"},
}


@pytest.mark.parametrize(("temperature", "logprobs"), [(0.0, None), (0.0, 2), (0.7, 2)])
def test_the_text_is_that_of_plain_decoding(serve, temperature, logprobs):
    asked = prompts(10)
    params = SamplingParams(
        temperature=temperature, seed=7, max_tokens=LENGTH, logprobs=logprobs, ignore_eos=True
    )
    expected = {}
    for name, config in CONFIGS.items():
        dtype = config.get("kv_dtype")
        if dtype not in expected:
            expected[dtype], _ = serve(asked, params, one_by_one=True, prefix_caching=False, kv_dtype=dtype)
        found, stats = serve(asked, params, drafts=4, **config)
        assert found == expected[dtype], name
        accepted, proposed = kept(stats)
        share = 0.0 if temperature else 0.2  # what is drawn is seldom the likeliest
        assert share * proposed < accepted < proposed, (name, accepted, proposed)
        assert (stats.preemptions > 0) == name.startswith("preempted"), name


def test_what_the_cache_holds_after_rejected_drafts(serve):
    """Every answer is a later prompt's beginning, found in the cache: as if it had been computed anew."""
    asked = prompts(5)
    params = SamplingParams(temperature=0, max_tokens=LENGTH, logprobs=2, ignore_eos=True)
    first, _ = serve(asked, params)
    longer = [[*prompt, *tokens] for prompt, (tokens, _) in zip(asked, first, strict=True)]
    expected, _ = serve(longer, params, prefix_caching=False)
    found, stats = serve([*asked, *longer], params, drafts=6, one_by_one=True)
    assert found == [*first, *expected]
    assert stats.prefix_hits > 5 * LENGTH / 2
    accepted, proposed = kept(stats)
    assert 0 < accepted < proposed


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_under_a_grammar(serve, temperature):
    asked = prompts(4)
    options = {"temperature": temperature, "seed": 3, "max_tokens": LENGTH}
    words = SamplingParams(structured=StructuredOutput(regex="[a-z]{2,9}( [a-z]{2,9}){5}"), **options)
    params = [words, SamplingParams(**options), words, SamplingParams(**options)]
    expected, _ = serve(asked, params)
    found, stats = serve(asked, params, drafts=4)
    assert found == expected
    assert 0 < kept(stats)[0] < kept(stats)[1]

"""Speculation never changes the text: through the whole engine, for every way that drafts can be bad."""

import random

import pytest

from optpipe.testing.tokenizer import save_tokenizer
from optpipe_runtime.sampling import SamplingParams, StructuredOutput
from optpipe_runtime.speculation import (
    DraftProposer,
    FixedController,
    NgramProposer,
    Speculator,
    SuffixProposer,
)
from optpipe_runtime.tokenizer import load_tokenizer

from ..tape import TapeExecutor
from .scripted import KINDS, ScriptedProposer, texts_known

GREEDY = SamplingParams(temperature=0, max_tokens=48, logprobs=2)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=48, presence_penalty=0.4, logprobs=1)
PENALIZED = SamplingParams(temperature=1.0, top_k=9, repetition_penalty=1.3, seed=6, max_tokens=30)


def prompts(count, shortest=1, longest=40):
    random_ = random.Random(8)
    return [[random_.randrange(64) for _ in range(random_.randint(shortest, longest))] for _ in range(count)]


def answers(outputs):
    return [[(it.token_ids, it.logprobs, it.finish_reason) for it in out.completions] for out in outputs]


def texts(asked, outputs):
    return [[*prompt, *out.token_ids] for prompt, out in zip(asked, outputs, strict=True)]


def speculated(make_engine, proposer, executor=None, *, drafts=4, eos=(), **config):
    speculator = Speculator(proposer, FixedController(max_drafts=drafts), end_tokens=eos)
    return make_engine(executor, speculator, eos=eos, **config)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_right_wrong_mixed_empty_and_past_max_tokens(make_engine, kind, params):
    asked = prompts(5)
    plain = make_engine().generate(asked, params)
    executor = TapeExecutor()
    proposer = ScriptedProposer(kind, texts_known(texts(asked, plain)))
    engine = speculated(make_engine, proposer, executor, max_num_batched_tokens=64)
    assert answers(engine.generate(asked, params)) == answers(plain)
    stats = engine.stats()
    assert stats.blocks_used == 0
    assert proposer.asked == set()
    proposed, accepted = sum(stats.draft_tokens), sum(stats.accepted_tokens)
    assert (proposed > 0) == (kind != "empty")
    if kind in ("right", "too many"):
        assert proposed == accepted
        assert len(executor.steps) < 5 + 48 / 3
    if kind == "wrong":
        assert accepted == 0
    if kind == "mixed":
        assert 0 < accepted < proposed


@pytest.mark.parametrize("told", [True, False], ids=["cut at the end token", "drafted past it"])
def test_drafts_past_the_end_token(make_engine, told):
    asked = prompts(6)
    plain = make_engine().generate(asked, SamplingParams(temperature=0, max_tokens=48))
    end = plain[0].token_ids[9]  # it ends some texts early, in the middle of a draft
    ended = make_engine(eos=[end]).generate(asked, GREEDY)
    assert {it.completions[0].finish_reason for it in ended} == {"stop", "length"}
    proposer = ScriptedProposer("right", texts_known(texts(asked, plain)))
    speculator = Speculator(proposer, FixedController(max_drafts=7), end_tokens=[end] if told else [])
    engine = make_engine(None, speculator, eos=[end])
    assert answers(engine.generate(asked, GREEDY)) == answers(ended)
    assert engine.stats().blocks_used == 0


def test_stop_strings_and_min_tokens_in_the_middle_of_a_draft(make_engine, tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    size = tokenizer.backend.get_vocab_size()
    asked = [[it + 100 for it in prompt] for prompt in prompts(4, shortest=3)]

    def run(params, speculator=None):
        engine = make_engine(TapeExecutor(size), speculator, tokenizer=tokenizer)
        return engine.generate(asked, params)

    plain = run(SamplingParams(temperature=0, max_tokens=40))
    stop = plain[0].text[10:12]
    params = SamplingParams(temperature=0, max_tokens=40, min_tokens=6, stop=(stop,))
    expected = run(params)
    proposer = ScriptedProposer("right", texts_known(texts(asked, plain)), size)
    found = run(params, Speculator(proposer, FixedController(max_drafts=8)))
    assert answers(found) == answers(expected)
    assert [it.text for it in found] == [it.text for it in expected]
    assert "stop" in {it.completions[0].finish_reason for it in found}


def test_what_the_cache_holds_after_rejected_drafts(make_engine):
    """A prompt that goes on behind an earlier answer finds its blocks, and they hold that answer."""
    asked = prompts(3, shortest=10)
    executor = TapeExecutor()
    plain = make_engine().generate(asked, GREEDY)
    proposer = ScriptedProposer("mixed", texts_known(texts(asked, plain)))
    engine = speculated(make_engine, proposer, executor, drafts=6)
    first = engine.generate(asked, GREEDY)
    longer = texts(asked, first)
    hits = engine.stats().prefix_hits
    second = engine.generate(longer, GREEDY)
    assert engine.stats().prefix_hits - hits >= sum(len(it) // 4 * 4 - 4 for it in longer)
    assert [list(it.token_ids) for it in second] == [executor.continued(it, 48) for it in longer]


@pytest.mark.parametrize("budget", [16, 512])
@pytest.mark.parametrize("blocks", [72, 512], ids=["preempted", "roomy"])
def test_mixed_batches(make_engine, budget, blocks):
    """Greedy, seeded, penalized and n > 1 in one batch, with chunks of prompts between and too few blocks."""
    asked = prompts(16, longest=60)
    several = SamplingParams(temperature=1.0, n=2, seed=9, max_tokens=20)
    params = [(GREEDY, SEEDED, PENALIZED, several)[i % 4] for i in range(16)]
    plain = make_engine().generate(asked, params)
    proposer = ScriptedProposer("mixed", texts_known(texts(asked, plain)))
    engine = speculated(
        make_engine, proposer, max_num_batched_tokens=budget, max_num_seqs=8, num_blocks=blocks
    )
    assert answers(engine.generate(asked, params)) == answers(plain)
    stats = engine.stats()
    assert stats.blocks_used == 0
    assert sum(stats.accepted_tokens) > 0
    assert stats.preemptions > 0 or blocks == 512


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("make", [NgramProposer, SuffixProposer])
def test_copied_drafts(make_engine, make, params):
    """A model that remembers one token soon repeats itself: real proposers, and many are kept."""
    asked = prompts(6)
    plain = make_engine(TapeExecutor(24, memory=1)).generate(asked_in(asked, 24), params)
    engine = speculated(make_engine, make(), TapeExecutor(24, memory=1))
    assert answers(engine.generate(asked_in(asked, 24), params)) == answers(plain)
    assert sum(engine.stats().accepted_tokens) > (50 if params is GREEDY else 5)


def asked_in(asked, vocab_size):
    return [[it % vocab_size for it in prompt] for prompt in asked]


@pytest.mark.parametrize("name", ["ngram", "suffix"])
def test_by_name_with_the_adaptive_controller(make_engine, name):
    asked = asked_in(prompts(6), 24)
    plain = make_engine(TapeExecutor(24, memory=1)).generate(asked, GREEDY)
    engine = make_engine(TapeExecutor(24, memory=1, cost=lambda step: 1e-3), speculation=name)
    assert answers(engine.generate(asked, GREEDY)) == answers(plain)
    stats = engine.stats()
    assert len(stats.draft_tokens) == 8
    assert 20 < sum(stats.accepted_tokens) <= sum(stats.draft_tokens)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("blocks", [12, 400])
def test_drafted_by_another_model(make_engine, blocks, params):
    """The draft model is right for as long as it remembers as much; its cache may be far too small."""
    asked = prompts(6)
    plain = make_engine().generate(asked, params)
    proposer = DraftProposer(TapeExecutor(), vocab_size=64, num_blocks=blocks, max_tokens=32)
    engine = speculated(make_engine, proposer)
    assert answers(engine.generate(asked, params)) == answers(plain)
    assert proposer.free_blocks == blocks
    stats = engine.stats()
    if params is GREEDY:
        assert 0 < sum(stats.draft_tokens) == sum(stats.accepted_tokens)
    else:
        assert 0 < sum(stats.accepted_tokens) < sum(stats.draft_tokens)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_grammar_that_refuses_drafts(make_engine, tmp_path, temperature):
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    size = tokenizer.backend.get_vocab_size()
    eos = [tokenizer.id_of(tokenizer.special["eos_token"])]
    params = SamplingParams(
        temperature=temperature,
        seed=3,
        max_tokens=40,
        structured=StructuredOutput(regex="(ab|ba|[0-9]{2}){20}"),
    )
    free = SamplingParams(temperature=temperature, seed=4, max_tokens=40)
    asked = [[it + 100 for it in prompt] for prompt in prompts(4, shortest=3)]

    def run(speculator=None):
        engine = make_engine(TapeExecutor(size), speculator, tokenizer=tokenizer, eos=eos)
        outputs = engine.generate(asked, [params, free, params, free])
        return outputs, engine.stats()

    plain, _ = run()
    for kind in ("right", "wrong", "mixed"):
        proposer = ScriptedProposer(kind, texts_known(texts(asked, plain)), size)
        found, stats = run(Speculator(proposer, FixedController(max_drafts=5)))
        assert answers(found) == answers(plain)
        assert (sum(stats.accepted_tokens) > 0) == (kind != "wrong")
        assert stats.blocks_used == 0

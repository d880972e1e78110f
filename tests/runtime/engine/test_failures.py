"""What goes wrong hurts exactly those whom it concerns."""

import asyncio
import math
import random
import threading
import time

import numpy as np
import pytest

import optpipe_runtime.engine.parts as parts
from optpipe.errors import EngineError, KernelError, RequestError
from optpipe_runtime.core import Scheduler
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams, StructuredOutput, sampler

from ..tape import TapeExecutor

SHORT = SamplingParams(temperature=0, max_tokens=6)
LONG = SamplingParams(temperature=0, max_tokens=40)


class Failing(TapeExecutor):
    """Raises in the steps that have one of some tokens."""

    def __init__(self, *tokens, error=None):
        super().__init__(before_step=self._look)
        self.tokens = tokens
        self.error = error or RuntimeError("the device fell off the bus\nand more")

    def _look(self, step):
        if np.isin(step.token_ids, self.tokens).any():
            raise self.error


def reasons(output):
    return [it.finish_reason for it in output.completions]


def test_a_step_that_raises_fails_its_requests_and_nobody_else(make_engine):
    executor = Failing(63)
    engine = make_engine(executor, max_num_seqs=2)
    good = [i for i in range(60) if 63 not in executor.continued([i], 40)][:3]
    alongside, bad, waiting = (engine.submit([it], LONG) for it in (good[0], 63, good[1]))
    failed = bad.result()
    assert reasons(failed) == ["error"]
    error = failed.completions[0].error
    assert isinstance(error, EngineError)
    assert (
        error.message
        == "The step that this request was part of failed: RuntimeError: the device fell off the bus."
    )
    assert reasons(alongside.result()) in (["error"], ["length"])  # whether it was in that step is a race
    assert waiting.result().token_ids == tuple(executor.continued([good[1]], 40))
    assert engine.stats().blocks_used == 0
    assert engine.stats().failed_steps == 1
    assert engine.generate([[good[2]]], LONG)[0].token_ids == tuple(executor.continued([good[2]], 40))
    assert engine.health().ok


def test_all_requests_of_the_step_fail(make_engine):
    gate = threading.Event()
    executor = Failing(63)
    inner = executor.before_step
    executor.before_step = lambda step: (gate.wait(), inner(step))
    engine = make_engine(executor)
    first = engine.submit([1], LONG)  # holds the engine until the others are there
    others = [engine.submit([it], SamplingParams(temperature=0, max_tokens=40, n=2)) for it in (63, 2, 3)]
    gate.set()
    assert [reasons(it.result()) for it in others] == [["error", "error"]] * 3
    assert reasons(first.result()) == ["error"]
    assert engine.stats().blocks_used == engine.stats().running == engine.stats().waiting == 0


def test_repeated_failures_are_unhealthy_until_a_step_works(make_engine):
    engine = make_engine(Failing(63), max_failures=3)
    for count in range(3):
        assert engine.health().ok, count
        engine.submit([63], SHORT).result()
    health = engine.health()
    assert not health.ok
    assert "the last 3 steps failed: RuntimeError: the device fell off the bus" in health.reason
    assert reasons(engine.submit([1], SHORT).result()) == ["length"]
    assert engine.health().ok


def test_the_errors_of_optpipe_keep_their_sentence(make_engine):
    engine = make_engine(Failing(63, error=KernelError("The kernel has no such shape.")))
    error = engine.submit([63], SHORT).result().completions[0].error
    assert error.message == "The step that this request was part of failed: The kernel has no such shape."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_fail_their_row_only(make_engine, value):
    class Poisoned(TapeExecutor):
        def row(self, tokens):
            values = super().row(tokens)
            if tokens[0] == 63:
                values[5] = value
            return values

    executor = Poisoned()
    engine = make_engine(executor)
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=0)
    bad, good = engine.generate([[63, 1], [1, 2]], params)
    assert reasons(bad) == ["error"]
    assert isinstance(bad.completions[0].error, KernelError)
    assert good.token_ids == tuple(executor.continued([1, 2], 6))
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("budget", [4, 512], ids=["in chunks", "at once"])
@pytest.mark.parametrize("place", [2, 9], ids=["early", "at its end"])
def test_a_prompt_that_cannot_be_scored_fails_its_own_request_only(make_engine, budget, place):
    class Poisoned(TapeExecutor):
        def row(self, tokens):
            values = super().row(tokens)
            if tokens[0] == 63 and len(tokens) == place:
                values[5] = math.nan
            return values

    executor = Poisoned()
    engine = make_engine(executor, max_num_batched_tokens=budget, max_num_seqs=4)
    scored = SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=1, n=2)
    bad, alongside = engine.generate([[63] * 10, [1] * 10], [scored, scored])
    assert reasons(bad) == ["error", "error"]
    assert isinstance(bad.completions[0].error, KernelError)
    assert bad.token_ids == ()
    assert alongside.token_ids == tuple(executor.continued([1] * 10, 6))
    assert len(alongside.prompt_logprobs) == 10
    stats = engine.stats()
    assert stats.failed_steps == stats.blocks_used == stats.running == stats.waiting == 0
    assert engine.health().ok


RULES = {
    "temperature": [0.0, 0.9],
    "top_k": [0, 1],
    "top_p": [1.0, 0.3],
    "min_p": [0.0, 0.5],
    "repetition_penalty": [1.0, 1.7],
    "logit_bias": [None, {64: -100.0, 65: 100.0}],
    "allowed_token_ids": [None, (5,), (64, 65, 257)],
    "bad_words": [(), ("a",), ("b", "ab")],
    "stop_token_ids": [(), (64, 65)],
    "ignore_eos": [False, True],
    "min_tokens": [0, 3],
    "logprobs": [None, 2],
    "prompt_logprobs": [None, 1],
    "structured": [None, StructuredOutput(regex="a"), StructuredOutput(regex="[ab]*")],
}


def test_no_combination_of_rules_fails_a_step(make_engine, byte_tokenizer):
    """Rules that leave no token are an error of the request that has them; each neighbour goes on."""
    pytest.importorskip("llguidance")
    size = byte_tokenizer.backend.get_vocab_size()
    executor = TapeExecutor(size)
    engine = make_engine(executor, byte_tokenizer, eos=[byte_tokenizer.id_of("</s>")])
    chance = random.Random(3)
    asked = [{name: chance.choice(values) for name, values in RULES.items()} for _ in range(150)]
    asked.append({"structured": StructuredOutput(regex="a"), "allowed_token_ids": (5,)})
    asked = [SamplingParams(max_tokens=6, seed=1, **it) for it in asked]
    plain = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    expected = executor.continued([7], 300)
    with engine.submit([7], plain) as neighbour:
        outputs = engine.generate(["abc"] * len(asked), asked)
        assert list(neighbour.result().token_ids) == expected
    assert engine.stats().failed_steps == 0
    errors = [it.completions[0].error for it in outputs if reasons(it) == ["error"]]
    assert len(errors) > 5
    assert {type(it) for it in errors} == {RequestError}
    assert errors[-1].message == "No token may come next: the rules of the request exclude all."


def test_a_defect_while_choosing_ends_its_own_row_only(make_engine, monkeypatch):
    good = TapeExecutor().continued([1, 2], 6)

    def broken(row, token, top, scratch):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(sampler, "token_logprobs", broken)
    engine = make_engine()
    outputs = engine.generate([[63], [1, 2]], [SamplingParams(max_tokens=6, logprobs=1), SHORT])
    assert reasons(outputs[0]) == ["error"]
    assert outputs[0].completions[0].error.message == "No token could be chosen: ZeroDivisionError."
    assert list(outputs[1].token_ids) == good
    assert engine.stats().failed_steps == 0


def test_an_executor_that_gives_the_wrong_number_of_rows(make_engine):
    class Short(TapeExecutor):
        def _rows(self, step):
            return super()._rows(step)[:-1]

    engine = make_engine(Short())
    error = engine.submit([1], SHORT).result().completions[0].error
    assert "asked for 1" in error.message


def test_a_step_that_hangs_is_unhealthy_and_close_does_not_wait_for_ever(monkeypatch):
    gate = threading.Event()
    executor = TapeExecutor(before_step=lambda step: gate.wait())
    engine = Engine.over(executor, config=EngineConfig(num_blocks=8, stall_timeout=0.05))
    assert engine.health().ok
    submission = engine.submit([1], SHORT)
    time.sleep(0.15)
    health = engine.health()
    assert not health.ok
    assert health.stalled > 0.05
    assert "no step has ended" in health.reason
    monkeypatch.setattr(parts, "STOP_SECONDS", 0.05)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        submission.result(timeout=5)
    gate.set()


def test_nobody_waits_for_an_engine_that_is_left_behind_in_a_step(monkeypatch):
    gate, inside = threading.Event(), threading.Event()
    executor = TapeExecutor(before_step=lambda step: (inside.set(), gate.wait()))
    engine = Engine.over(executor, config=EngineConfig(num_blocks=8))
    submissions = [engine.submit([1], SHORT)]
    assert inside.wait(5)
    submissions.append(engine.submit([2], SHORT))  # the thread has not looked at it
    drained = []
    drain = threading.Thread(target=lambda: drained.append(engine.drain(None)), daemon=True)
    drain.start()
    monkeypatch.setattr(parts, "STOP_SECONDS", 0.05)
    engine.close()
    drain.join(5)
    assert drained == [True]
    for submission in submissions:
        with pytest.raises(EngineError, match="closed"):
            submission.result(timeout=5)
    gate.set()


def test_a_defect_of_the_engine_fails_what_is_open_and_the_engine_goes_on(make_engine, monkeypatch):
    class Broken(Scheduler):
        broken = True

        def commit(self, plan, outcomes):
            if self.broken:
                raise ZeroDivisionError("oops")
            super().commit(plan, outcomes)

    monkeypatch.setattr(parts, "Scheduler", Broken)
    engine = make_engine()
    completion = engine.submit([1], SHORT).result().completions[0]
    assert completion.finish_reason == "error"
    assert completion.error.message == "The engine failed: ZeroDivisionError: oops."
    assert not engine.health().ok
    Broken.broken = False
    assert reasons(engine.submit([1], SHORT).result()) == ["length"]
    assert engine.health().ok
    assert engine.stats().blocks_used == 0


def test_an_engine_that_cannot_go_on_says_so_and_nobody_hangs(make_engine, monkeypatch):
    class Broken(Scheduler):
        def commit(self, plan, outcomes):
            raise ZeroDivisionError("oops")

        def rollback(self, plan):
            raise ZeroDivisionError("oops again")

    monkeypatch.setattr(parts, "Scheduler", Broken)
    engine = make_engine()
    submission = engine.submit([1], SHORT)
    with pytest.raises(EngineError, match="The engine failed"):
        submission.result(timeout=5)
    assert not engine.health().ok
    with pytest.raises(EngineError, match="The engine failed"):
        engine.submit([1], SHORT)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], SHORT, "empty"),
        ([-1], SHORT, r"in \[0, 64\), got -1"),
        ([1, 64], SHORT, r"in \[0, 64\), got 64"),
        ([1.5], SHORT, "no integer"),
        ([True], SHORT, "no integer"),
        (b"abc", SHORT, "bytes"),
        (None, SHORT, "NoneType"),
        ("text", SHORT, "no tokenizer"),
        ([1] * 32, SHORT, "32 tokens; there is room for 32"),
        ([1], SamplingParams(max_tokens=33), "max_tokens"),
        ([1], SamplingParams(stop_token_ids=(64,)), "stop_token_ids"),
        ([1], SamplingParams(logit_bias={64: 1.0}), "logit_bias"),
        ([1], SamplingParams(allowed_token_ids=(99,)), "allowed_token_ids"),
        ([1], SamplingParams(bad_words=("x",)), "no tokenizer"),
    ],
)
@pytest.mark.parametrize("in_loop", [False, True])
def test_impossible_requests_are_refused_and_neighbours_undisturbed(
    make_engine, prompt, params, message, in_loop
):
    executor = TapeExecutor()
    engine = make_engine(executor, max_context=32)
    neighbour = engine.submit([7], SamplingParams(temperature=0, max_tokens=25))

    async def ask():
        await engine.submit(prompt, params).ready()

    with pytest.raises(RequestError, match=message):
        asyncio.run(ask()) if in_loop else engine.submit(prompt, params)
    assert neighbour.result().token_ids == tuple(executor.continued([7], 25))
    assert engine.stats().blocks_used == engine.stats().waiting == 0
    assert engine.generate([[8]], SHORT)[0].token_ids == tuple(executor.continued([8], 6))


def test_a_cache_smaller_than_the_context_bounds_it(make_engine):
    engine = make_engine(num_blocks=8)  # of 4 tokens
    with pytest.raises(RequestError, match="there is room for 32"):
        engine.submit([1] * 32, SHORT)
    output = engine.submit([1] * 20, SamplingParams(temperature=0)).result()
    assert output.token_ids == tuple(TapeExecutor().continued([1] * 20, 12))
    assert reasons(output) == ["length"]
    both = engine.generate([[1] * 15, [2] * 15], SamplingParams(temperature=0, max_tokens=16))
    assert [list(it.token_ids) for it in both] == [TapeExecutor().continued([it] * 15, 16) for it in (1, 2)]


def test_generate_with_an_impossible_prompt_gives_the_others_up(make_engine):
    engine = make_engine(TapeExecutor(cost=lambda step: 0.002))
    with pytest.raises(RequestError, match="got 999"):
        engine.generate([[1], [2], [999], [3]], SamplingParams(temperature=0))
    assert engine.drain(timeout=5)
    assert dict(engine.stats().requests) == {"abort": 2}
    with pytest.raises(RequestError, match="2 prompts and 1 parameters"):
        engine.generate([[1], [2]], [SHORT])


def test_max_tokens_beyond_the_context_ends_with_it(make_engine):
    engine = make_engine(max_context=16)
    output = engine.submit([1] * 10, SamplingParams(temperature=0, max_tokens=16)).result()
    assert output.usage.completion_tokens == 6
    assert reasons(output) == ["length"]
    assert engine.submit([1] * 10, SamplingParams(temperature=0)).result().usage.completion_tokens == 6

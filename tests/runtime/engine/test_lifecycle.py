"""Requests come, wait, are given up, run out of time; engines drain, close, are forgotten, sleep."""

import asyncio
import gc
import threading
import time

import pytest

from optpipe.errors import CapacityError, EngineError, RequestError, TimeLimitError
from optpipe_runtime.engine import Delta, Engine, EngineConfig
from optpipe_runtime.engine.request import Choice, Request
from optpipe_runtime.sampling import SamplingParams, StructuredOutput
from optpipe_runtime.sampling.grammar import GrammarCompiler

from ..tape import TapeExecutor

FOREVER = SamplingParams(temperature=0)
SHORT = SamplingParams(temperature=0, max_tokens=5)


def slow(seconds=0.002):
    return TapeExecutor(cost=lambda step: seconds)


def engine_threads():
    return [it for it in threading.enumerate() if it.name == "optpipe-engine"]


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


def test_deltas_join_to_the_answer(make_engine):
    executor = TapeExecutor()
    engine = make_engine(executor)
    deltas = list(engine.submit([1, 2], SHORT))
    assert [token for it in deltas for token in it.token_ids] == executor.continued([1, 2], 5)
    assert [it.finish_reason for it in deltas][-1] == "length"
    last = deltas[-1]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 5)
    assert last.timing.arrived <= last.timing.scheduled <= last.timing.first_token <= last.timing.finished


def test_an_event_loop_reads_many(make_engine):
    executor = TapeExecutor()
    engine = make_engine(executor)

    async def read(prompt):
        return [token async for delta in engine.submit(prompt, SHORT) for token in delta.token_ids]

    async def all_of_them():
        return await asyncio.gather(*(read([i, 1]) for i in range(40)))

    assert asyncio.run(all_of_them()) == [executor.continued([i, 1], 5) for i in range(40)]


def test_abort_frees_blocks_within_a_step(make_engine):
    executor = slow()
    engine = make_engine(executor)
    submission = engine.submit([1, 2, 3], FOREVER)
    next(iter(submission))
    assert engine.stats().blocks_used > 0
    steps = len(executor.steps)
    assert submission.abort()
    rest = list(submission)
    assert rest[-1].finish_reason == "abort"
    assert len(executor.steps) - steps <= 2
    assert engine.stats().blocks_used == 0
    assert not submission.abort()
    assert not engine.abort("no such request")
    assert engine.generate([[1, 2]], SHORT)[0].token_ids == tuple(executor.continued([1, 2], 5))


@pytest.mark.parametrize("phase", ["waiting", "in its prompt", "decoding"])
def test_abort_at_every_phase(make_engine, phase):
    engine = make_engine(slow(), max_num_seqs=1, max_num_batched_tokens=4)
    other = (
        engine.submit([9] * 8, SamplingParams(temperature=0, max_tokens=30)) if phase == "waiting" else None
    )
    submission = engine.submit([1] * 200, FOREVER)
    if phase == "in its prompt":
        until(lambda: engine.stats().running == 1)
    elif phase == "decoding":
        next(iter(submission))
    assert submission.abort()
    assert submission.result().completions[0].finish_reason == "abort"
    if other is not None:
        assert other.result().token_ids == tuple(TapeExecutor().continued([9] * 8, 30))
    until(lambda: engine.stats().blocks_used == 0 and engine.stats().waiting == 0)


def test_leaving_the_block_gives_the_request_up(make_engine):
    engine = make_engine(slow())
    with engine.submit([1], FOREVER) as submission:
        next(iter(submission))
    assert submission.result().completions[0].finish_reason == "abort"


def test_the_queue_has_a_limit_and_room_again(make_engine):
    engine = make_engine(slow(), max_num_seqs=1, max_waiting=2)
    running = engine.submit([1], FOREVER)
    next(iter(running))
    waiting = [engine.submit([2], SHORT), engine.submit([3], SHORT)]
    with pytest.raises(CapacityError, match="queue is full"):
        engine.submit([4], SHORT)
    assert engine.stats().waiting == 2
    running.abort()
    assert [it.result().usage.completion_tokens for it in waiting] == [5, 5]
    assert engine.submit([4], SHORT).result().usage.completion_tokens == 5


def test_without_a_queue_there_is_room_to_run(make_engine):
    engine = make_engine(max_num_seqs=2, max_waiting=0)
    assert engine.submit([1], SamplingParams(n=2, max_tokens=3)).result().usage.completion_tokens == 6
    with pytest.raises(RequestError, match="n is 3"):
        engine.submit([1], SamplingParams(n=3, max_tokens=3))


def test_generate_feeds_more_than_the_queue_holds(make_engine):
    engine = make_engine(max_num_seqs=2, max_waiting=3)
    outputs = engine.generate([[i] for i in range(30)], SHORT)
    assert [it.prompt_token_ids for it in outputs] == [(i,) for i in range(30)]


def test_a_name_is_used_once_at_a_time(make_engine):
    engine = make_engine(slow())
    first = engine.submit([1], FOREVER, request_id="a")
    with pytest.raises(RequestError, match="'a' is in use"):
        engine.submit([1], SHORT, request_id="a")
    first.abort()
    first.result()
    assert engine.submit([1], SHORT, request_id="a").result().request_id == "a"


def test_an_abort_that_comes_late_does_not_touch_the_next_of_that_name(make_engine, monkeypatch):
    engine = make_engine(slow())
    first = engine.submit([1], SamplingParams(temperature=0, max_tokens=20), request_id="a")
    next(iter(first))
    tell, told = engine._loop.give_up, []
    monkeypatch.setattr(engine._loop, "give_up", told.append)
    assert engine.abort("a")
    assert first.result().completions[0].finish_reason == "length"  # the engine has not heard of it
    monkeypatch.undo()
    second = engine.submit([2], SamplingParams(temperature=0, max_tokens=20), request_id="a")
    next(iter(second))
    tell(*told)
    assert second.result().completions[0].finish_reason == "length"


def test_leaving_an_async_for_gives_the_request_up(make_engine):
    engine = make_engine(slow())

    async def read():
        submission = engine.submit([1], FOREVER)
        async for _ in submission:
            break
        while not submission._mailbox.finished:  # it is held all the time
            await asyncio.sleep(0.001)
        return submission.result().completions[0].finish_reason

    assert asyncio.run(asyncio.wait_for(read(), 5)) == "abort"
    assert engine.stats().blocks_used == 0


def test_a_submission_that_nobody_holds_is_given_up(make_engine):
    engine = make_engine(slow())
    submission = engine.submit([1], FOREVER)
    next(iter(submission))
    del submission
    assert engine.drain(timeout=5)
    assert dict(engine.stats().requests) == {"abort": 1}


def test_time_limits(make_engine):
    engine = make_engine(slow(), max_num_seqs=1, request_timeout=0.05)
    started, waiting = engine.submit([1], FOREVER), engine.submit([2], FOREVER, timeout=0.1)
    for submission, limit in ((started, "0.05"), (waiting, "0.1")):
        completion = submission.result().completions[0]
        assert completion.finish_reason == "error"
        assert isinstance(completion.error, TimeLimitError)
        assert f"{limit} s" in completion.error.message
    assert engine.stats().blocks_used == 0


def test_waiting_has_a_limit_of_its_own(make_engine):
    engine = make_engine(slow())
    submission = engine.submit([1], FOREVER)
    with pytest.raises(TimeLimitError, match="longer than its caller waits"):
        submission.result(timeout=0.02)


def test_priority(make_engine):
    engine = make_engine(slow(), max_num_seqs=1, policy="priority")
    first = engine.submit([1], SamplingParams(temperature=0, max_tokens=20))
    next(iter(first))
    late, urgent = engine.submit([2], SHORT, priority=5), engine.submit([3], SHORT, priority=1)
    ends = [it.result().completions[0].timing.finished for it in (urgent, late)]
    assert ends == sorted(ends)


def test_drain_lets_the_running_end_and_nobody_in(make_engine):
    engine = make_engine(slow())
    submission = engine.submit([1], SamplingParams(temperature=0, max_tokens=20))
    assert not engine.drain(timeout=0.001)
    with pytest.raises(EngineError, match="shutting down"):
        engine.submit([2], SHORT)
    assert engine.drain(timeout=5)
    assert submission.result().usage.completion_tokens == 20


def test_close_aborts_what_runs(make_engine):
    engine = make_engine(slow(), max_num_seqs=1)
    submissions = [engine.submit([i], FOREVER) for i in range(3)]
    next(iter(submissions[0]))
    engine.close()
    assert {it.result().completions[0].finish_reason for it in submissions} == {"abort"}
    with pytest.raises(EngineError, match="closed"):
        engine.submit([1], SHORT)
    engine.close()
    assert not engine.health().ok


def test_the_context_manager_ends_the_thread():
    before = len(engine_threads())
    with Engine.over(TapeExecutor(), config=EngineConfig(num_blocks=8)) as engine:
        assert len(engine_threads()) == before + 1
        engine.generate([[1]], SHORT)
    assert len(engine_threads()) == before


def test_an_engine_that_was_forgotten_ends():
    before = len(engine_threads())
    engine = Engine.over(TapeExecutor(), config=EngineConfig(num_blocks=8))
    engine.generate([[1]], SHORT)
    del engine
    gc.collect()
    assert len(engine_threads()) == before


def test_an_idle_engine_takes_no_processor_time(make_engine):
    engine = make_engine()
    engine.generate([[1]], SHORT)
    clocks = [time.pthread_getcpuclockid(it.ident) for it in engine_threads()]
    before = [time.clock_gettime(it) for it in clocks]
    time.sleep(0.5)
    assert all(time.clock_gettime(it) - was < 0.005 for it, was in zip(clocks, before, strict=True))
    assert engine.health().ok


def test_abort_before_the_prompt_is_tokens(make_engine, byte_tokenizer, monkeypatch):
    engine = make_engine(TapeExecutor(vocab_size=259), byte_tokenizer)
    gate = threading.Event()
    encode = type(byte_tokenizer).encode
    monkeypatch.setattr(
        type(byte_tokenizer), "encode", lambda *args, **kw: (gate.wait(), encode(*args, **kw))[1]
    )

    async def ask():
        submission = engine.submit("abc", FOREVER)
        assert submission.abort()
        gate.set()
        return await submission.aresult()

    output = asyncio.run(ask())
    assert output.completions[0].finish_reason == "abort"
    assert output.token_ids == ()
    assert engine.stats().steps == engine.stats().waiting == 0
    assert engine.drain(timeout=1)


def test_prompts_are_made_tokens_off_the_event_loop(make_engine, byte_tokenizer, monkeypatch):
    engine = make_engine(TapeExecutor(vocab_size=259), byte_tokenizer)
    seen = []
    encode = type(byte_tokenizer).encode

    def watched(self, text, **options):
        seen.append(threading.current_thread().name)
        return encode(self, text, **options)

    monkeypatch.setattr(type(byte_tokenizer), "encode", watched)

    async def ask():
        submission = engine.submit("abc", SHORT)
        await submission.ready()
        return submission.prompt_token_ids, await submission.aresult()

    ids, output = asyncio.run(ask())
    assert ids == output.prompt_token_ids == tuple(encode(byte_tokenizer, "abc"))
    assert seen[0].startswith("optpipe-intake")
    engine.submit("abc", SHORT).result()
    assert seen[1] == threading.current_thread().name


def test_grammars_that_take_long_hold_up_nobody_else(make_engine, byte_tokenizer, monkeypatch):
    pytest.importorskip("llguidance")
    engine = make_engine(TapeExecutor(vocab_size=259), byte_tokenizer, intake_threads=2)
    known = SamplingParams(max_tokens=3, structured=StructuredOutput(regex="a*"))
    engine.submit("abc", known).result()
    gate, compiled = threading.Event(), GrammarCompiler._compiled
    monkeypatch.setattr(GrammarCompiler, "_compiled", lambda self, it: gate.wait(10) and compiled(self, it))

    async def ask():
        slow_ones = [
            engine.submit("abc", SamplingParams(max_tokens=3, structured=StructuredOutput(regex=f"b{i}*")))
            for i in range(4)
        ]
        for params in (SHORT, known):
            await asyncio.wait_for(engine.submit("abc", params).aresult(), 5)
        gate.set()
        return [await it.aresult() for it in slow_ones]

    assert {it.completions[0].error for it in asyncio.run(ask())} == {None}


def test_what_has_ended_is_freed_at_once(make_engine):
    """Without the garbage collector, whose pauses would come between tokens."""
    engine = make_engine()
    params = SamplingParams(n=3, max_tokens=5, logprobs=1)
    gc.collect()
    gc.disable()
    try:
        engine.submit([1] * 50, params).result()
        with engine.submit([2] * 50, params):
            pass  # given up
        assert engine.drain(timeout=5)
        until(lambda: not any(issubclass(type(it), Choice | Request | Delta) for it in gc.get_objects()))
    finally:
        gc.enable()

"""Runs over an executor whose steps have a stated cost: the metrics are those costs."""

import asyncio
import time

import pytest

from optpipe_runtime.bench.arrivals import Arrivals
from optpipe_runtime.bench.engine_client import EngineClient
from optpipe_runtime.bench.lengths import Fixed
from optpipe_runtime.bench.load import Load
from optpipe_runtime.bench.prompts import RandomIds
from optpipe_runtime.bench.record import Record
from optpipe_runtime.bench.runs import Batches, run_batches, run_requests
from optpipe_runtime.bench.slo import Slo
from optpipe_runtime.bench.statistics import measure
from optpipe_runtime.bench.workload import Request, Shape, Workload
from optpipe_runtime.engine import Engine, EngineConfig

from ..tape import TapeExecutor

PROMPT, STEP = 0.040, 0.010  # seconds of a step with a prompt, and of one without
# What the measurement adds: the engine's bookkeeping, under a millisecond a step when idle, and the waking of
# its thread and of the event loop, many milliseconds on a busy machine. A sleep is never too short, so that
# bounds downwards are exact.
NOISE = 0.25
INPUT, OUTPUT = 12, 21


class Clocked(TapeExecutor):
    """A tape that knows when each step began and ended."""

    def __init__(self, **options):
        super().__init__(cost=lambda step: PROMPT if len(step.token_ids) >= INPUT else STEP, **options)
        self.times = []

    def submit(self, step, *, logits=True):
        begin = time.perf_counter()
        found = super().submit(step, logits=logits)
        self.times.append((begin, time.perf_counter()))
        return found


@pytest.fixture
def engine():
    config = EngineConfig(num_blocks=512, sampler_threads=1, prefix_caching=False, max_num_seqs=4)
    with Engine.over(Clocked(), config=config, context_length=64) as made:
        yield made


def workload(inputs=INPUT, outputs=OUTPUT):
    return Workload(RandomIds(64), Shape(inputs=Fixed(inputs), outputs=Fixed(outputs)))


def test_one_request_has_the_costs_of_its_steps(engine):
    requests = workload().requests(1, Arrivals())
    load = asyncio.run(run_requests(EngineClient(engine), requests, [], concurrency=None, timeout=60))
    record, steps = load.records[0], engine.executor.times
    assert len(steps) == OUTPUT
    assert (record.prompt_tokens, record.output_tokens, record.counted_by) == (INPUT, OUTPUT, "engine")
    assert PROMPT <= record.ttft < steps[0][1] - record.arrival + NOISE
    # First and last are each noticed late by NOISE at most; between them are OUTPUT - 1 steps.
    true = (steps[-1][1] - steps[0][1]) / (OUTPUT - 1)
    assert true >= STEP
    assert record.tpot == pytest.approx(true, abs=NOISE / (OUTPUT - 1))
    assert PROMPT + (OUTPUT - 1) * STEP <= record.e2e < steps[-1][1] - record.arrival + NOISE
    assert sum(record.gaps) == pytest.approx(record.chunks[-1] - record.chunks[0])


def test_requests_behind_others_wait_for_them(engine):
    """Eight requests, four at a time: the later ones have the earlier ones' time in their TTFT."""
    requests = workload().requests(8, Arrivals())
    load = asyncio.run(run_requests(EngineClient(engine), requests, [], concurrency=None, timeout=60))
    firsts = sorted(it.ttft for it in load.records)
    assert firsts[4] >= PROMPT + (OUTPUT - 1) * STEP
    found = measure(load.records, load.seconds, Slo(ttft=1000 * (PROMPT + (OUTPUT - 1) * STEP)))
    assert found["goodput_rps"] <= 4 / load.seconds
    assert found["output_tokens_per_s"] == pytest.approx(8 * OUTPUT / load.seconds)
    assert found["prompt_tokens_per_s"] == pytest.approx(8 * INPUT / load.seconds)


def test_batches_give_prefill_and_decode_rates(engine):
    batches = asyncio.run(run_batches(EngineClient(engine), workload(), size=2, repeats=3, warmup=1))
    assert len(batches.load.records) == 6, "the warm-up is left out"
    assert len(batches.prompt_rates) == len(batches.decode_rates) == 3
    assert max(batches.prompt_rates) <= 2 * INPUT / PROMPT, "both prompts in one step, or in two"
    assert batches.load.seconds >= 3 * (PROMPT + (OUTPUT - 1) * STEP)


def test_rates_of_a_batch_are_those_of_its_phases():
    """All have a first token at 2 s: 30 prompt tokens till then, 1 + 4 tokens in the 4 s behind."""
    batches = Batches()
    one = Record(0.0, chunks=[1.0, 2.0, 3.0], prompt_tokens=10, output_tokens=3)
    two = Record(0.0, chunks=[2.0, 4.0, 6.0], prompt_tokens=20, output_tokens=5)
    batches.add(Load([one, two], 6.0, 0.0))
    assert batches.to_json() == {"prefill_tokens_per_s": 15, "decode_tokens_per_s": 5 / 4}


def test_answers_that_came_in_one_piece_are_timed_by_the_engine():
    """The reader looked at 9 s. The engine had first tokens at 1 s and 2 s, the last at 3 s and 6 s."""
    batches = Batches()
    one = Record(0.0, chunks=[9.0], prompt_tokens=10, output_tokens=3, made=(1.0, 3.0))
    two = Record(0.0, chunks=[9.0], prompt_tokens=20, output_tokens=5, made=(2.0, 6.0))
    batches.add(Load([one, two], 9.0, 0.0))
    assert batches.to_json() == {"prefill_tokens_per_s": 15, "decode_tokens_per_s": 5 / 4}


def test_a_reader_that_is_late_has_rates_all_the_same(engine):
    """The event loop is held up until all is over, as on a machine with other work."""
    client = EngineClient(engine)
    prepare = client.prepare

    def prepared(request):
        asyncio.get_running_loop().call_later(0.001, time.sleep, PROMPT + OUTPUT * STEP + 0.5)
        return prepare(request)

    client.prepare = prepared
    found = asyncio.run(run_batches(client, workload(), size=1, repeats=1, warmup=0))
    assert [len(it.chunks) for it in found.load.records] == [1]
    assert found.load.records[0].arrival < found.load.records[0].made[0] < found.load.records[0].chunks[0]
    assert 0 < found.to_json()["decode_tokens_per_s"] <= 1 / STEP
    assert 0 < found.to_json()["prefill_tokens_per_s"] <= INPUT / PROMPT


def test_a_batch_with_a_failure_has_no_rates():
    batches = Batches()
    batches.add(Load([Record(0.0, error="no")], 1.0, 0.0))
    assert batches.to_json() == {"prefill_tokens_per_s": None, "decode_tokens_per_s": None}
    assert len(batches.load.records) == 1


def test_batches_do_not_repeat_prompts(engine):
    seen = []
    client = EngineClient(engine)
    prepare = client.prepare
    client.prepare = lambda request: (seen.append(tuple(request.prompt)), prepare(request))[1]
    asyncio.run(run_batches(client, workload(outputs=1), size=2, repeats=2, warmup=1))
    assert len(set(seen)) == 6


def test_what_warms_up_comes_before_and_does_not_count(engine):
    one = workload(outputs=2)
    warm = one.requests(5, Arrivals(rate=None, concurrency=1), name="warm-up")
    ended = []
    load = asyncio.run(
        run_requests(
            EngineClient(engine), one.requests(2, Arrivals()), warm, concurrency=None, timeout=60,
            on_end=lambda done, total: ended.append((done, total)),
        )
    )  # fmt: skip
    assert len(load.records) == 2
    assert ended == [(i, 7) for i in range(1, 8)]
    assert engine.stats().generated_tokens == 14


def test_impossible_requests_are_failures_with_their_reason(engine):
    requests = [Request([1] * 100, 4, 0.0), Request([1] * INPUT, 4, 0.0)]
    load = asyncio.run(run_requests(EngineClient(engine), requests, [], concurrency=None, timeout=60))
    assert [it.ok for it in load.records] == [False, True]
    assert "64" in load.records[0].error


def test_a_step_that_raises_fails_its_requests():
    def broken(step):
        raise RuntimeError("no")

    executor = TapeExecutor(before_step=broken)
    with Engine.over(executor, config=EngineConfig(num_blocks=64, max_failures=1)) as engine:
        requests = workload().requests(1, Arrivals())
        load = asyncio.run(run_requests(EngineClient(engine), requests, [], concurrency=None, timeout=60))
    assert not load.records[0].ok
    assert measure(load.records, load.seconds, Slo())["requests"]["failed"] == 1

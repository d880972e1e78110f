"""Deltas on their way to readers: nothing lost, nothing hoarded, one wake-up a loop and step."""

import asyncio
import threading
import time

import pytest

from optpipe_runtime.engine.delivery import Mailbox, Outbox
from optpipe_runtime.engine.outputs import Timing, Usage
from optpipe_runtime.sampling import SamplingParams, TokenLogprobs

from ..tape import TapeExecutor
from .test_lifecycle import until

USAGE, TIMING = Usage(1, 2), Timing(0.0, 0.0, 0.0, 1.0)


def test_what_a_lagging_reader_missed_is_one_delta():
    mailbox, outbox = Mailbox("a", 2, stream=True), Outbox()
    entries = [TokenLogprobs(i, -1.0, ()) for i in range(3)]
    for i in range(3):
        mailbox.put(0, f"t{i}", (i,), (entries[i],), outbox)
    mailbox.put(1, "other", (9,), None, outbox)
    mailbox.finish(0, "stop", USAGE, TIMING, outbox, stop_reason="!")
    first, second = mailbox.take(), mailbox.take()
    assert (first.index, first.text, first.token_ids, first.logprobs) == (
        0,
        "t0t1t2",
        (0, 1, 2),
        tuple(entries),
    )
    assert (first.finish_reason, first.stop_reason, first.usage) == ("stop", "!", USAGE)
    assert (second.index, second.text, second.finish_reason) == (1, "other", None)
    assert mailbox.take() is None
    assert not mailbox.finished
    mailbox.put(1, "more", (10,), None, outbox)
    assert mailbox.take().token_ids == (10,)


def test_without_streaming_a_choice_comes_whole():
    mailbox, outbox = Mailbox("a", 1, stream=False), Outbox()
    mailbox.put(0, "x", (1,), None, outbox)
    assert mailbox.take() is None
    mailbox.finish(0, "length", USAGE, TIMING, outbox)
    assert mailbox.take().text == "x"
    assert mailbox.finished


def test_a_slow_reader_gets_everything_and_nothing_piles_up(make_engine):
    executor = TapeExecutor()
    engine = make_engine(executor)
    submission = engine.submit([1], SamplingParams(temperature=0, max_tokens=500, logprobs=0))
    until(lambda: engine.stats().generated_tokens == 500)
    deltas = list(submission)
    assert len(deltas) == 1
    assert list(deltas[0].token_ids) == executor.continued([1], 500)
    assert [it.token for it in deltas[0].logprobs] == list(deltas[0].token_ids)


def test_a_blocked_event_loop_gets_everything_in_one_wake_up(make_engine):
    executor = TapeExecutor()
    engine = make_engine(executor)

    async def main():
        loop = asyncio.get_running_loop()
        calls, inner = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: (calls.append(arguments), inner(*arguments))
        submission = engine.submit([1], SamplingParams(temperature=0, max_tokens=300))
        reader = asyncio.ensure_future(submission.aresult())
        await asyncio.sleep(0)
        while engine.stats().generated_tokens < 300:
            time.sleep(0.001)  # the loop does nothing else
        output = await reader
        return output, len(calls)

    output, calls = asyncio.run(main())
    assert list(output.token_ids) == executor.continued([1], 300)
    assert calls <= 3


def test_one_wake_up_a_step_for_all_the_readers_of_a_loop(make_engine):
    gate = threading.Semaphore(0)
    engine = make_engine(TapeExecutor(before_step=lambda step: gate.acquire()), max_num_seqs=32)

    async def main():
        loop = asyncio.get_running_loop()
        calls, inner = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: (calls.append(arguments), inner(*arguments))
        params = SamplingParams(temperature=0, max_tokens=10)
        readers = [asyncio.ensure_future(engine.submit([i], params).aresult()) for i in range(16)]
        steps = 0
        while not all(it.done() for it in readers):
            gate.release()
            steps += 1
            await asyncio.sleep(0.005)
        return steps, len(calls)

    steps, calls = asyncio.run(main())
    assert calls <= steps + 1


def test_loops_of_several_threads_read_at_once(make_engine):
    executor = TapeExecutor()
    engine = make_engine(executor)
    found = {}

    def run(number):
        async def read():
            params = SamplingParams(temperature=0, max_tokens=30)
            return await asyncio.gather(*(engine.submit([number, i], params).aresult() for i in range(4)))

        found[number] = [list(it.token_ids) for it in asyncio.run(read())]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [executor.continued([n, i], 30) for i in range(4)] for n in range(4)}


def test_requests_of_a_loop_that_was_closed_are_given_up(make_engine):
    engine = make_engine(TapeExecutor(cost=lambda step: 0.002), request_timeout=None)
    loop = asyncio.new_event_loop()

    async def begin():
        submission = engine.submit([1], SamplingParams(temperature=0))
        reader = submission.__aiter__()
        await reader.__anext__()
        loop.call_soon(loop.stop)
        await reader.__anext__()

    task = loop.create_task(begin())
    loop.run_forever()
    loop.close()
    until(lambda: engine.stats().running == 0)
    assert dict(engine.stats().requests) == {"abort": 1}
    assert not task.done()
    task._log_destroy_pending = False


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_reader_leaves_nothing_behind(make_engine, stream):
    engine = make_engine(TapeExecutor(cost=lambda step: 0.002))

    async def main():
        async def read():
            async with engine.submit([1], SamplingParams(temperature=0), stream=stream) as submission:
                await submission.aresult()

        task = asyncio.ensure_future(read())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(main())
    until(lambda: engine.stats().blocks_used == 0)

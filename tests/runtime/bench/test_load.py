"""The generator sends at the planned times, whatever the server does, and fails only what failed."""

import asyncio
import time

import pytest

from optpipe.errors import RequestError
from optpipe_runtime.bench.load import ClientError, run_load
from optpipe_runtime.bench.workload import Request

# The event loop wakes within about a millisecond; on a machine with other work it may be many. Bounds upwards
# allow this much; bounds downwards are exact, for nothing is sent or measured early.
NOISE = 0.25


class Sleeper:
    """Answers after so many seconds with one chunk, and counts who is inside."""

    def __init__(self, *seconds, fail=None):
        self.seconds, self.fail, self.inside, self.most, self.settled = seconds, fail, 0, 0, 0

    def prepare(self, request):
        return request

    async def send(self, request, record):
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(self.seconds[request.output_len % len(self.seconds)])
            if self.fail is not None and request.output_len == 1:
                raise self.fail
            received = time.perf_counter()
        finally:
            self.inside -= 1

        def settle():
            record.chunks.append(received)
            record.output_tokens = 1
            self.settled += 1

        return settle


def requests(*arrivals):
    return [Request([1], i, arrival) for i, arrival in enumerate(arrivals)]


def load(client, *arrivals, **options):
    return asyncio.run(run_load(client, requests(*arrivals), **options))


def test_requests_are_sent_when_planned_and_not_when_others_end():
    found = load(Sleeper(0.2, 0.0), 0.0, 0.05, 0.1)
    begin = found.records[0].arrival
    for record, planned in zip(found.records, (0.0, 0.05, 0.1), strict=True):
        assert record.arrival == pytest.approx(begin + planned)
        assert 0 <= record.sent - record.arrival < NOISE
    assert found.records[1].end < found.records[0].end
    assert found.seconds == pytest.approx(found.records[2].end - begin, abs=1e-3)


def test_waiting_for_a_place_counts_from_the_planned_arrival():
    """Three at once, one place, 50 ms each: the third has waited for two."""
    client = Sleeper(0.05)
    found = load(client, 0.0, 0.0, 0.0, concurrency=1)
    assert client.most == 1
    for place, record in enumerate(found.records, 1):
        assert 0.05 * place <= record.ttft < 0.05 * place + NOISE
    assert found.records[2].sent - found.records[2].arrival >= 0.1


def test_in_a_closed_loop_a_request_comes_when_another_ends():
    client = Sleeper(0.03)
    found = load(client, *[None] * 6, concurrency=2)
    assert client.most == 2
    assert all(it.sent - it.arrival < NOISE for it in found.records)
    assert 0.09 <= found.seconds < 0.09 + NOISE


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ClientError("HTTP 429: full"), "HTTP 429: full"),
        (RequestError("The prompt is too long."), "The prompt is too long."),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: Connection refused"),
    ],
)
def test_a_failure_is_one_requests_own(error, said):
    client = Sleeper(0.0, fail=error)
    found = load(client, 0.0, 0.0, 0.0)
    assert [it.error for it in found.records] == [None, said, None]
    assert client.settled == 2


def test_what_does_not_end_has_failed():
    found = load(Sleeper(5.0, 0.0), 0.0, 0.0, timeout=0.05)
    assert [it.error for it in found.records] == ["no end within 0.05 s", None]
    assert found.seconds < 5


def test_a_bug_in_a_client_is_not_hidden():
    with pytest.raises(ExceptionGroup, match="unhandled"):
        load(Sleeper(0.0, fail=AssertionError()), 0.0, 0.0)


def test_nothing_to_send_is_an_empty_run():
    assert load(Sleeper(0.0)).records == []


def test_progress_is_told():
    ended = []
    load(Sleeper(0.0), 0.0, 0.0, on_end=ended.append)
    assert ended == [1, 2]

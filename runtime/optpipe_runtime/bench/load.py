"""The load generator: sends each request at its planned time and notes what comes back.

While the load runs nothing is parsed or printed: clients keep what they received, and read it afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from optpipe.errors import OptpipeError

from .record import Record
from .workload import Request

Settle = Callable[[], None]
"""Reads what was received into its record, after the run."""


class ClientError(Exception):
    """A request failed; the text says how, in the same words each time, so that failures can be counted."""


class Client(Protocol):
    """Who sends requests."""

    def prepare(self, request: Request) -> Any:
        """What ``send`` takes: whatever can be done before the run."""
        ...

    async def send(self, prepared: Any, record: Record) -> Settle | None:
        """Send a request and receive its answer to the end.

        Raises:
            ClientError, OptpipeError, OSError: it failed.
        """
        ...


@dataclass(frozen=True)
class Load:
    """What came of a run.

    Attributes:
        records: one a request, in the order of the requests.
        seconds: from the beginning to the end of the last request.
        processor_seconds: that this process took meanwhile.
    """

    records: list[Record]
    seconds: float
    processor_seconds: float

    def __add__(self, other: Load) -> Load:
        """Two runs, one after the other."""
        return Load(
            self.records + other.records,
            self.seconds + other.seconds,
            self.processor_seconds + other.processor_seconds,
        )


async def run_load(
    client: Client,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    timeout: float = 600.0,
    on_end: Callable[[int], None] = lambda ended: None,
) -> Load:
    """Send requests, each at its time, and wait for all answers.

    Args:
        concurrency: requests at a time, at most; those without a time of arrival come as others end.
        timeout: seconds from sending after which a request has failed.
        on_end: told how many have ended.
    """
    run = _Run(client, [client.prepare(it) for it in requests], requests, timeout, on_end)
    begin_processor, begin = time.process_time(), time.perf_counter()
    if requests and requests[0].arrival is None:
        await run.closed(concurrency or 1)
    else:
        await run.open(begin, concurrency)
    load = Load(
        [it for it in run.records if it is not None],
        max((it.end for it in run.records if it is not None), default=begin) - begin,
        time.process_time() - begin_processor,
    )
    run.settle()
    return load


@dataclass
class _Run:
    client: Client
    prepared: list[Any]
    requests: Sequence[Request]
    timeout: float
    on_end: Callable[[int], None]

    def __post_init__(self) -> None:
        self.records: list[Record | None] = [None] * len(self.requests)
        self._received: list[tuple[Record, Settle]] = []
        self._ended = 0

    async def open(self, begin: float, concurrency: int | None) -> None:
        """Each at its planned time, whatever has become of those before."""
        gate = nullcontext() if concurrency is None else asyncio.Semaphore(concurrency)
        async with asyncio.TaskGroup() as group:
            for i in sorted(range(len(self.requests)), key=lambda i: self.requests[i].arrival or 0.0):
                arrival = begin + (self.requests[i].arrival or 0.0)
                if (wait := arrival - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._one(i, arrival, gate))

    async def closed(self, concurrency: int) -> None:
        """As many at a time; the next when one has ended."""
        numbers = iter(range(len(self.requests)))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(self.requests))):
                group.create_task(self._worker(numbers))

    async def _worker(self, numbers: Iterator[int]) -> None:
        for i in numbers:
            await self._one(i, time.perf_counter(), nullcontext())

    async def _one(self, i: int, arrival: float, gate: AbstractAsyncContextManager[Any]) -> None:
        record = self.records[i] = Record(arrival, asked=self.requests[i].output_len)
        async with gate:
            record.sent = time.perf_counter()
            try:
                async with asyncio.timeout(self.timeout):
                    settle = await self.client.send(self.prepared[i], record)
                if settle is not None:
                    self._received.append((record, settle))
            except TimeoutError:
                record.error = f"no end within {self.timeout:g} s"
            except ClientError as error:
                record.error = str(error)
            except OptpipeError as error:
                record.error = error.message
            except OSError as error:
                record.error = f"{type(error).__name__}: {error.strerror or error}"
            record.end = time.perf_counter()
        self._ended += 1
        self.on_end(self._ended)

    def settle(self) -> None:
        """Read what was received."""
        for record, settle in self._received:
            try:
                settle()
            except ClientError as error:
                record.error = str(error)

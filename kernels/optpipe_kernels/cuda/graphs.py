"""Capture and replay: a step whose kernels are launched by the GPU itself.

A graph is captured when a shape first runs. All share one pool of memory: a graph's results are copied out,
in the order of the stream, before another graph runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch

Result = TypeVar("Result")
Body = Callable[[], Result]


class Recorder(Protocol):
    """Turns a body into something that repeats it."""

    def record(self, body: Body[Result]) -> Body[Result]:
        """What repeats ``body`` on the memory that it read and wrote, and gives what it gave.

        The body has run at least once, and must not mind.
        """
        ...

    def forget(self) -> None:
        """All that was recorded has been let go: what comes next shares no memory with it."""
        ...


class CudaRecorder:
    """CUDA graphs of one device, in one pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, body: Body[Result]) -> Body[Result]:
        """See ``Recorder``. The first run compiles kernels and makes the libraries' workspaces."""
        with self._aside():
            body()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on using the GPU, to pin memory for example: they are not of this capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            made = body()

        def replay() -> Result:
            graph.replay()
            return made

        return replay

    def forget(self) -> None:
        """See ``Recorder``. A pool whose last graph is gone takes no other: the allocator asserts that."""
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


class Graphs(Generic[Result]):
    """Graphs by key.

    Args:
        recorder: makes them.
        limit: how many are kept; the one that was used longest ago goes first.
    """

    def __init__(self, recorder: Recorder, limit: int = 96) -> None:
        self._recorder, self._limit = recorder, limit
        self._made: dict[Hashable, Body[Result]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._made

    def __len__(self) -> int:
        return len(self._made)

    def record(self, key: Hashable, body: Body[Result]) -> None:
        """Capture ``body`` under a key."""
        if len(self._made) >= self._limit:
            del self._made[next(iter(self._made))]
        self._made[key] = self._recorder.record(body)

    def replay(self, key: Hashable) -> Result:
        """Run what was captured under a key."""
        replay = self._made[key] = self._made.pop(key)  # now the one used last
        return replay()

    def clear(self) -> None:
        """Let all go: what they read is gone."""
        self._made.clear()
        self._recorder.forget()


def why_not_graphs(device: torch.device) -> str | None:
    """Why steps on a device cannot be captured, or None when they can."""
    return None if device.type == "cuda" else f"there are no graphs on {device.type}"


def recorder_of(device: torch.device, wanted: bool) -> Any:
    """The recorder of a device; None when there is none, or it is not wanted."""
    return CudaRecorder(device) if wanted and why_not_graphs(device) is None else None

"""What a step gave, and its way to the host: into pinned memory, which the next step does not wait for."""

from __future__ import annotations

from typing import NamedTuple

import torch

from optpipe.targets.protocol import Logprobs, StepResult


class Given(NamedTuple):
    """What a step of the model gave, on the device.

    Attributes:
        ids: [R] int64, each row's most likely token, or the one that was drawn.
        logits: [R, V] float32, where they were wanted.
        logprobs: the tensors of ``Logprobs``, where they were wanted.
    """

    ids: torch.Tensor
    logits: torch.Tensor | None
    logprobs: tuple[torch.Tensor, ...] = ()


class Pending:
    """A step under way: its results are on their way to the host."""

    def __init__(self, given: Given, rows: int) -> None:
        self._ids = _to_host(given.ids[:rows])
        self._logits = None if given.logits is None else _to_host(given.logits[:rows])
        self._logprobs = [_to_host(each[:rows]) for each in given.logprobs]
        self._done: torch.cuda.Event | None = None
        if given.ids.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(given.ids.device))

    def result(self) -> StepResult:
        """Wait for the step."""
        if self._done is not None:
            self._done.synchronize()
        logits = None if self._logits is None else self._logits.numpy()
        told = Logprobs(*(each.numpy() for each in self._logprobs)) if self._logprobs else None
        return StepResult(self._ids.numpy(), logits, told)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host that may still be under way."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)

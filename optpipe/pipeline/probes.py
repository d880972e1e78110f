"""What contracts are measured on: text, the source model's logits on it, and the source model's own noise.

The source is run once. Its logits lie in files and are read back a slab at a time, so that a vocabulary of
262,144 costs no more memory than one of 256. The files have no names: a process that is killed leaves none.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch

from ..evaluate import WINDOW, calibration_text, evaluation_text, windows
from .memory import give_back

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids [N, T], rows [R]) → logits [N, R, V]; the same rows of every sequence."""

ROW_BYTES = 96 << 20  # logits of one probe at once
TEXT_WINDOWS = 4
LOSSLESS_TOKENS = 128
LOSSLESS_ROWS = 64
FAR_TOKENS = 16  # of the probe at the end of the context
SLAB_ROWS = 64
ULPS = 8  # of the largest logit: a measurement of noise on few rows can come out at nothing


@dataclass(frozen=True)
class Probe:
    """A piece of text and the rows whose logits are held.

    Attributes:
        ids: [T] token ids.
        rows: [R] rows, ascending.
        begin: the position of the first token.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    begin: int = 0


class Stored:
    """Logits [R, V] in a file of float32."""

    def __init__(self, file: BinaryIO, logits: torch.Tensor) -> None:
        self._file = file
        self.rows, self._width = logits.shape
        logits.float().numpy().tofile(file)

    def chunks(self, step: int = SLAB_ROWS) -> Iterator[torch.Tensor]:
        """Consecutive rows, ``step`` at a time."""
        for begin in range(0, self.rows, step):
            block = np.empty((min(step, self.rows - begin), self._width), np.float32)
            read = os.preadv(self._file.fileno(), [block.data], begin * self._width * block.itemsize)
            assert read == block.nbytes, f"{read = } must be {block.nbytes = }"
            yield torch.from_numpy(block)

    def difference(self, logits: torch.Tensor) -> float:
        """Largest absolute difference from [R, V]; infinite when a logit is not a number."""
        assert len(logits) == self.rows, f"{len(logits)} rows of logits must be {self.rows = }"
        return self.head_difference(logits)

    def head_difference(self, logits: torch.Tensor) -> float:
        """The same over the first rows, as many as are given."""
        at, worst = 0, 0.0
        for mine in self.chunks():
            mine = mine[: len(logits) - at]
            if len(mine) == 0:
                break
            delta = (logits[at : at + len(mine)].float() - mine).abs().max().item()
            worst = max(worst, delta if delta == delta else float("inf"))
            at += len(mine)
        return worst

    def largest(self) -> float:
        """Largest absolute logit."""
        return max(block.abs().max().item() for block in self.chunks())


class Probes:
    """Probes of one model, for the length of one pipeline.

    Args:
        vocabulary: V.
        encode: text → ids; None for a model without a tokenizer, which is probed with random ids.
        span: the longest window or chunk of the model's attention; probes are longer.
        context: the most tokens the model takes, or None.
        positions: how many positions the model can be told to begin from; 0 when it counts tokens itself.
        calibration: text for calibrated algorithms; the standard library's documentation when None.
        together: bytes of logits that may be in memory at once; more probes run side by side with more.

    Attributes:
        exact: probes for lossless contracts: few rows, longer than every window.
        far: a short one at the model's last positions, where a table that is cut or a rounded angle shows;
            none when ``exact`` reaches them, or the model takes no positions.
        text: probes for lossy contracts: windows of 512 tokens that calibration does not see.
        sequences: three of unlike lengths, to be packed together.
    """

    def __init__(
        self,
        vocabulary: int,
        encode: Callable[[str], Sequence[int]] | None,
        *,
        span: int = 0,
        context: int | None = None,
        positions: int = 0,
        calibration: str | None = None,
        together: int = ROW_BYTES,
    ) -> None:
        self._files = contextlib.ExitStack()
        self._close = weakref.finalize(self, self._files.close)
        self._vocabulary = vocabulary
        limit = context or 1 << 30
        length = min(max(LOSSLESS_TOKENS, span + LOSSLESS_TOKENS // 2), limit)
        self._fits = max(ROW_BYTES // (4 * vocabulary), 8)
        exact = self._windows(encode, evaluation_text, 2, length, seed=1)
        self.exact = [Probe(ids, self._rows(len(ids), LOSSLESS_ROWS)) for ids in exact]
        self.far = self._at_the_end(exact[-1][-FAR_TOKENS:], positions) if positions > length else []
        held = sum(len(probe.rows) for probe in (*self.exact[-1:], *self.far))
        self._together = max(together, held * vocabulary * 4)  # the far probe costs no reading of weights
        text = self._windows(encode, evaluation_text, TEXT_WINDOWS, min(WINDOW, limit), seed=2)
        self.text = [Probe(ids, self._rows(len(ids), self._fits)) for ids in text]
        self.sequences = self._unlike(exact)
        self._encode, self._calibration, self._limit = encode, calibration, limit

    @property
    def lossless(self) -> list[Probe]:
        """``exact`` and ``far``."""
        return [*self.exact, *self.far]

    def calibration(self, count: int) -> list[torch.Tensor]:
        """``count`` windows [T] of text for calibrated algorithms; none of them is a probe."""
        text = calibration_text if self._calibration is None else lambda: str(self._calibration)
        return self._windows(self._encode, text, count, min(WINDOW, self._limit), seed=3)

    def groups(self, probes: Sequence[Probe]) -> Iterator[list[Probe]]:
        """Consecutive probes that may run side by side, one at least."""
        group: list[Probe] = []
        for probe in probes:
            rows = sum(len(other.rows) for other in group) + len(probe.rows)
            if group and rows * self._vocabulary * 4 > self._together:
                yield group
                group = []
            group.append(probe)
        yield group

    def keep(self, logits: torch.Tensor) -> Stored:
        """Put logits into a file that lives as long as the probes."""
        give_back()  # a run of the model has ended
        return Stored(self._files.enter_context(tempfile.TemporaryFile()), logits)

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._close()

    def _windows(
        self,
        encode: Callable[[str], Sequence[int]] | None,
        text: Callable[[], str],
        count: int,
        length: int,
        seed: int,
    ) -> list[torch.Tensor]:
        if encode is not None:
            return windows(encode, text(), count=count, length=length)
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(self._vocabulary, (length,), generator=generator) for _ in range(count)]

    def _unlike(self, exact: list[torch.Tensor]) -> list[Probe]:
        first, second = exact[0], exact[-1]
        parts = (first, second[len(second) // 2 :], first[5 : 5 + max(len(first) // 3, 2)])
        return [Probe(ids, self._rows(len(ids), self._fits // 3)) for ids in parts]

    def _at_the_end(self, ids: torch.Tensor, positions: int) -> list[Probe]:
        return [Probe(ids, self._rows(len(ids), self._fits // 8), positions - len(ids))]

    def _rows(self, tokens: int, wanted: int) -> torch.Tensor:
        count = min(wanted, self._fits, tokens)
        rows: torch.Tensor = torch.linspace(0, tokens - 1, count).round().long().unique()
        return rows


@dataclass(frozen=True)
class Noise:
    """How far the source model is from itself in float32, as the largest difference in a logit.

    Attributes:
        lengths: the same rows in a longer and in a shorter sequence.
        kernels: eager against other code, fused attention or float64; None when there is none.
        floor: what rounding alone does to the largest logit.
    """

    lengths: float
    kernels: float | None
    floor: float

    @property
    def value(self) -> float:
        """The largest of the three."""
        return max(self.lengths, self.kernels or 0.0, self.floor)


def measure_noise(probes: list[Probe], stored: list[Stored], source: Logits, other: Logits | None) -> Noise:
    """The source's noise on probes of one length.

    Args:
        stored: the source's logits on the probes.
        source: the source model.
        other: the source model with another implementation of attention, or in float64, or None.
    """
    lengths = 0.0
    ids, rows = torch.stack([probe.ids for probe in probes]), probes[0].rows
    for tokens in {ids.shape[1] // 2, ids.shape[1] - 3}:
        wanted = rows[rows < tokens]
        if tokens < 2 or len(wanted) == 0:
            continue
        again = source(ids[:, :tokens], wanted)
        lengths = max(lengths, *(s.head_difference(logits) for s, logits in zip(stored, again, strict=True)))
    kernels = None
    if other is not None:
        kernels = max(s.difference(logits) for s, logits in zip(stored, other(ids, rows), strict=True))
    return Noise(lengths, kernels, ULPS * torch.finfo(torch.float32).eps * max(s.largest() for s in stored))

"""A native plan: made once from a lowering, run once a step."""

from __future__ import annotations

import ctypes
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import abi
from .library import Library, Pool
from .lowering.emit import Emitted
from .lowering.instruction import Segment, Step
from .lowering.view import External

RunSegment = Callable[[Segment, list[NDArray[Any]], Mapping[str, int]], None]
"""Runs a segment over arrays of its operands, reads and then writes, at the sizes of a step."""

_NUMPY = tuple(map(np.dtype, ("f4", "u2", "f2", "i8", "i4", "i1", "u1", "?")))  # by optpipe_dtype
_SYMBOLS = ("T", "R", "B", "M", "P")  # of a step's counts


class Plan:
    """Instructions in the native library, and the pointers that a step binds."""

    def __init__(self, library: Library, emitted: Emitted) -> None:
        for instruction, kernel in zip(emitted.instructions, emitted.kernels, strict=True):
            instruction.kernel = library.number(kernel)
        self.emitted = emitted
        self._library = library
        self._pointers = (ctypes.c_void_p * max(1, len(emitted.externals)))()
        self._numbers = {external: k for k, external in enumerate(emitted.externals)}
        self._kept: dict[int, NDArray[Any]] = {}
        self._counts = (ctypes.c_int64 * abi.UNITS)(1)
        self._handle: int | None = library.native.optpipe_cpu_plan_new(
            (abi.Instruction * max(1, len(emitted.instructions)))(*emitted.instructions),
            len(emitted.instructions),
            (abi.Operand * max(1, len(emitted.operands)))(*emitted.operands),
            len(emitted.operands),
            (ctypes.c_int64 * max(1, len(emitted.ints)))(*emitted.ints),
            len(emitted.ints),
            (ctypes.c_double * max(1, len(emitted.floats)))(*emitted.floats),
            len(emitted.floats),
            len(emitted.externals),
            (ctypes.c_int64 * abi.ARENAS)(*emitted.arena_bytes),
        )
        library.check(self._handle is not None)
        self.nanoseconds = np.zeros(len(emitted.instructions), dtype=np.int64)
        self.segment_nanoseconds: Counter[int] = Counter()

    def bind(self, arrays: Mapping[External, NDArray[Any]]) -> None:
        """Point externals at arrays, kept alive until bound anew; externals the plan lacks are ignored."""
        for external, array in arrays.items():
            number = self._numbers.get(external)
            if number is not None:
                self._kept[number] = array
                self._pointers[number] = array.ctypes.data

    def number(self, external: External) -> int | None:
        """The place of an external in a step, for ``point``; None for one that the plan lacks."""
        return self._numbers.get(external)

    def point(self, number: int, array: NDArray[Any]) -> None:
        """``bind`` for one external, by its number: what every step does."""
        self._kept[number] = array
        self._pointers[number] = array.__array_interface__["data"][0]

    def run(
        self,
        pool: Pool,
        counts: Sequence[int],
        *,
        segment: RunSegment | None = None,
        profile: bool = False,
    ) -> None:
        """Run a step.

        Args:
            counts: T, R, B, M, P.
            segment: runs what torch has to run.
            profile: add each instruction's time to ``nanoseconds``.

        Raises:
            KernelError: a kernel refuses its operands.
        """
        self._counts[1:] = list(counts)
        for part in self.emitted.parts:
            if not isinstance(part, Segment):
                self._run_part(pool, *part, profile)
                continue
            assert segment is not None, f"the plan has a segment for torch, {part.node.op}, and no torch"
            self._run_part(pool, 0, 0, profile)  # gives the operands their places at these counts
            begun = time.perf_counter_ns()
            sizes = dict(zip(_SYMBOLS, counts, strict=True))
            segment(part, [self.array(operand) for operand in self.emitted.places[id(part)]], sizes)
            if profile:
                self.segment_nanoseconds[id(part)] += time.perf_counter_ns() - begun

    def _run_part(self, pool: Pool, begin: int, end: int, profile: bool) -> None:
        times = self.nanoseconds.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)) if profile else None
        failed = self._library.native.optpipe_cpu_run(
            self._handle, pool.handle, self._pointers, self._counts, begin, end, times
        )
        self._library.check(failed == 0)

    def step_times(self, steps: Sequence[Step]) -> NDArray[np.int64]:
        """Nanoseconds of each of the lowering's steps, over every run with ``profile``."""
        native = iter(self.nanoseconds.tolist())
        segments = self.segment_nanoseconds
        return np.array(
            [segments[id(it)] if isinstance(it, Segment) else next(native) for it in steps], np.int64
        )

    def output(self) -> NDArray[Any]:
        """The result of the last step, copied out of the arena."""
        found = self._locate(self.emitted.output)
        size, dtype = found.size[: found.rank], _NUMPY[found.dtype]
        if found.stride[: found.rank] != _contiguous(size):
            return self.array(self.emitted.output).copy()
        copy = np.empty(size, dtype)
        ctypes.memmove(copy.__array_interface__["data"][0], found.data, copy.nbytes)
        return copy

    def array(self, operand: int) -> NDArray[Any]:
        """An operand of the last step as an array over its memory. bfloat16 comes as uint16."""
        found = self._locate(operand)
        size, stride = tuple(found.size[: found.rank]), tuple(found.stride[: found.rank])
        dtype = _NUMPY[found.dtype]
        if not all(size):
            return np.empty(size, dtype)
        reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        raw = (ctypes.c_char * (reach * dtype.itemsize)).from_address(found.data)
        return np.lib.stride_tricks.as_strided(
            np.frombuffer(raw, dtype), size, tuple(step * dtype.itemsize for step in stride)
        )

    def _locate(self, operand: int) -> abi.Tensor:
        found = abi.Tensor()
        failed = self._library.native.optpipe_cpu_locate(self._handle, operand, ctypes.byref(found))
        self._library.check(failed == 0)
        return found

    def close(self) -> None:
        """Free it."""
        if self._handle is not None:
            self._library.native.optpipe_cpu_plan_free(self._handle)
            self._handle = None


def _contiguous(size: Sequence[int]) -> list[int]:
    """Strides, in elements, of an array without gaps."""
    return [math.prod(size[d + 1 :]) for d in range(len(size))]

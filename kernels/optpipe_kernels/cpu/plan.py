"""A native plan: made once from a lowering, run once a step."""

from __future__ import annotations

import ctypes
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

_NUMPY = ("float32", "uint16", "float16", "int64", "int32", "int8", "uint8", "bool")  # by optpipe_dtype
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
        self._kept: dict[External, NDArray[Any]] = {}
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
                self._kept[external] = array
                self._pointers[number] = array.ctypes.data

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
        """The result of the last step, over the arena: copy it before the next."""
        return self.array(self.emitted.output)

    def array(self, operand: int) -> NDArray[Any]:
        """An operand of the last step as an array over its memory. bfloat16 comes as uint16."""
        found = abi.Tensor()
        failed = self._library.native.optpipe_cpu_locate(self._handle, operand, ctypes.byref(found))
        self._library.check(failed == 0)
        size, stride = tuple(found.size[: found.rank]), tuple(found.stride[: found.rank])
        dtype = np.dtype(_NUMPY[found.dtype])
        if not all(size):
            return np.empty(size, dtype)
        reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        raw = (ctypes.c_char * (reach * dtype.itemsize)).from_address(found.data)
        return np.lib.stride_tricks.as_strided(
            np.frombuffer(raw, dtype), size, tuple(step * dtype.itemsize for step in stride)
        )

    def close(self) -> None:
        """Free it."""
        if self._handle is not None:
            self._library.native.optpipe_cpu_plan_free(self._handle)
            self._handle = None

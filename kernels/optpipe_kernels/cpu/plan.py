"""A native plan: made once from a lowering, run once a step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError

from . import abi
from .library import Library, Pool
from .lowering.emit import Emitted
from .lowering.instruction import Segment
from .lowering.view import External

RunSegment = Callable[[Segment, list[NDArray[Any]]], None]
_NUMPY = ("float32", "uint16", "float16", "int64", "int32", "int8", "uint8", "bool")  # by optpipe_dtype


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
            segment: runs what torch has to run, given arrays over its operands: reads, then writes.
            profile: add each instruction's time to ``nanoseconds``.

        Raises:
            KernelError: a kernel refuses its operands.
        """
        self._counts[1:] = counts
        times = self.nanoseconds.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)) if profile else None
        for part in self.emitted.parts:
            if isinstance(part, Segment):
                if segment is None:
                    raise KernelError(f"the plan has a segment for torch, {part.node.op}, and no torch")
                segment(part, [self.array(operand) for operand in self.emitted.places[id(part)]])
                continue
            failed = self._library.native.optpipe_cpu_run(
                self._handle, pool.handle, self._pointers, self._counts, *part, times
            )
            self._library.check(failed == 0)

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

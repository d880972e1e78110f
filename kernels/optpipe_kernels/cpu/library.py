"""The native library: found, loaded with ctypes, its ABI checked, its failures raised as ``KernelError``.

It is beside this package in a wheel and in site-packages in an editable install, which
``importlib.resources`` knows. Two environment variables matter, both read once, when the library is loaded:

    OPTPIPE_CPU_ISA      avx512bf16, avx512vnni, avxvnni, avx2 or scalar, not the widest that there is
    OPTPIPE_CPU_LIBRARY  the path of another build of the library, for those who work on it

Imports numpy and no torch.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError, nearest

from .abi import ABI, DTYPES, MAX_RANK, Tensor, declare

NAME = "liboptpipe_cpu.so"
Array = NDArray[Any]


@dataclass(frozen=True)
class Bf16:
    """A bfloat16 array, which numpy does not have: its bits as uint16."""

    bits: NDArray[np.uint16]


Operand = Array | Bf16 | None


class Library:
    """The loaded library at one instruction set."""

    def __init__(self, path: Path) -> None:
        try:
            self.native = declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            raise KernelError(f"the CPU kernels in {path} cannot be loaded: {error}") from None
        found = self.native.optpipe_cpu_abi()
        if found != ABI:
            raise KernelError(
                f"the CPU kernels in {path} have ABI {found}, and this version of optpipe wants {ABI}",
                hint="install optpipe again, so that both come from one build",
            )
        self.path = path
        self._numbers = {name: k for k, name in enumerate(self.kernels)}

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self.native.optpipe_cpu_isa().decode())

    @property
    def isas(self) -> tuple[str, ...]:
        """Every instruction set that this machine runs, widest first."""
        return tuple(self.native.optpipe_cpu_isas().decode().split(","))

    @property
    def kernels(self) -> tuple[str, ...]:
        """Every kernel's name, by number."""
        return tuple(self.native.optpipe_cpu_kernels().decode().split(","))

    def use_isa(self, name: str) -> None:
        """Choose an instruction set for later calls and plans; a plan keeps the one it was made for.

        Raises:
            KernelError: the library or the processor does not have it.
        """
        self.check(self.native.optpipe_cpu_use_isa(name.encode()) == 0)

    def number(self, kernel: str) -> int:
        """The number of a kernel.

        Raises:
            KernelError: there is none of that name.
        """
        if kernel not in self._numbers:
            raise KernelError(f"there is no CPU kernel '{kernel}'", hint=nearest(kernel, self._numbers))
        return self._numbers[kernel]

    def check(self, fine: bool) -> None:
        """Raise what the library says went wrong, unless it is fine."""
        if not fine:
            raise KernelError(self.native.optpipe_cpu_error().decode(errors="replace"))

    def call(
        self,
        kernel: str,
        operands: Sequence[Operand],
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        *,
        pool: Pool | None = None,
    ) -> None:
        """Run one kernel over numpy arrays, in place; ``None`` is an absent operand.

        Raises:
            KernelError: there is no such kernel, or it cannot take these operands.
        """
        tensors = (Tensor * max(1, len(operands)))(*(tensor(it) for it in operands))
        failed = self.native.optpipe_cpu_call(
            None if pool is None else pool.handle,
            self.number(kernel),
            tensors,
            len(operands),
            (ctypes.c_int64 * max(1, len(ints)))(*ints),
            len(ints),
            (ctypes.c_double * max(1, len(floats)))(*floats),
            len(floats),
        )
        self.check(failed == 0)


class Pool:
    """Threads that live until ``close``.

    Args:
        library: the native library.
        threads: how many, the one that calls included.
        cpus: a processor for each to be pinned to; the first is the caller's, which is left where it is.

    Raises:
        KernelError: the system gives no more threads, or the pins do not match them.
    """

    def __init__(self, library: Library, threads: int, cpus: Sequence[int] | None = None) -> None:
        if cpus is not None and len(cpus) != threads:
            raise KernelError(f"a pool of {threads} threads was given {len(cpus)} processors to pin them to")
        pins = None if cpus is None else (ctypes.c_int * threads)(*cpus)
        self._library = library
        self.handle: int | None = library.native.optpipe_cpu_pool_new(threads, pins)
        self.threads = threads
        library.check(self.handle is not None)

    def close(self) -> None:
        """End the threads."""
        if self.handle is not None:
            self._library.native.optpipe_cpu_pool_free(self.handle)
            self.handle = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tensor(operand: Operand) -> Tensor:
    """How the library sees an operand. The array must outlive its use.

    Raises:
        KernelError: no kernel takes its dtype, rank or strides.
    """
    if operand is None:
        return Tensor(rank=-1)
    array = operand.bits if isinstance(operand, Bf16) else operand
    if array.size == 0:  # numpy gives an empty array strides of 0
        like = np.empty([max(1, it) for it in array.shape], array.dtype)
        array = np.lib.stride_tricks.as_strided(array, strides=like.strides)
    name = "bf16" if isinstance(operand, Bf16) else array.dtype.name
    if name not in DTYPES or array.ndim > MAX_RANK:
        raise KernelError(f"the CPU kernels take no array of {array.dtype} and rank {array.ndim}")
    if any(it % array.itemsize for it in array.strides):
        raise KernelError("the CPU kernels take no array whose strides are no multiples of its items")
    strides = (it // array.itemsize for it in array.strides)
    return Tensor(array.ctypes.data, DTYPES[name], array.ndim, array.shape, tuple(strides))


def find() -> Path | None:
    """Where the library is; None when optpipe was built without a compiler.

    Raises:
        KernelError: OPTPIPE_CPU_LIBRARY names no file.
    """
    if named := os.environ.get("OPTPIPE_CPU_LIBRARY"):
        if not Path(named).is_file():
            raise KernelError(f"OPTPIPE_CPU_LIBRARY names '{named}', where there is no file")
        return Path(named)
    with importlib.resources.as_file(importlib.resources.files(__package__).joinpath(NAME)) as path:
        return path if path.is_file() else None


@functools.cache
def library() -> Library:
    """The library of this process, loaded once, at the level that OPTPIPE_CPU_ISA names or the widest.

    Raises:
        KernelError: there is none, it does not fit, or the level is unknown or not this processor's.
    """
    path = find()
    if path is None:
        raise KernelError(
            "optpipe was installed without its CPU kernels",
            hint="install it again where a C++ compiler is found, or use the reference target",
        )
    loaded = Library(path)
    if isa := os.environ.get("OPTPIPE_CPU_ISA"):
        try:
            loaded.use_isa(isa)
        except KernelError as error:
            raise KernelError(f"OPTPIPE_CPU_ISA is '{isa}': {error.message}") from None
    return loaded

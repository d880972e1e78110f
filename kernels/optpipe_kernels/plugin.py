"""What this room provides to optpipe: kernels for the CPU and for GPUs, and the targets that run on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from optpipe.plugins import hookimpl

if TYPE_CHECKING:
    from optpipe.plugins.hookspecs import KernelEntry, TargetEntry


@hookimpl
def optpipe_kernels() -> Iterable[KernelEntry]:
    """Provide the kernel families of this package."""
    from .cpu.target import CpuKernels
    from .cuda.target import TritonKernels

    return [CpuKernels(), TritonKernels()]


@hookimpl
def optpipe_targets() -> Iterable[TargetEntry]:
    """Provide the cpu and the cuda target."""
    from .cpu.target import CpuTarget
    from .cuda.target import CudaTarget

    return [CpuTarget(), CudaTarget()]

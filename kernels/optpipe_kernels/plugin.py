"""What this room provides to optpipe: the CPU kernels and the target that runs plans of them."""

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

    return [CpuKernels()]


@hookimpl
def optpipe_targets() -> Iterable[TargetEntry]:
    """Provide the cpu target."""
    from .cpu.target import CpuTarget

    return [CpuTarget()]

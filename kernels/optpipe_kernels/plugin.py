"""What this room provides to optpipe: kernels for the CPU and for GPUs, targets, and the export to ONNX."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from optpipe.plugins import hookimpl

if TYPE_CHECKING:
    from optpipe.plugins.hookspecs import ExportEntry, KernelEntry, TargetEntry


@hookimpl
def optpipe_kernels() -> Iterable[KernelEntry]:
    """Provide the kernel families of this package."""
    from .cpu.target import CpuKernels
    from .cuda.target import TritonKernels

    return [CpuKernels(), TritonKernels()]


@hookimpl
def optpipe_targets() -> Iterable[TargetEntry]:
    """Provide the cpu, cuda and onnx targets."""
    from .cpu.target import CpuTarget
    from .cuda.target import CudaTarget
    from .onnx.target import OnnxTarget

    return [CpuTarget(), CudaTarget(), OnnxTarget()]


@hookimpl
def optpipe_exporters() -> Iterable[ExportEntry]:
    """Provide the ONNX model."""
    from .onnx.format import OnnxFormat

    return [OnnxFormat()]

"""The ``cuda`` target: an artifact, its steps and its weights on a GPU become an executor."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from optpipe.errors import KernelError, RequestError
from optpipe.program.program import Program

if TYPE_CHECKING:
    import torch

    from optpipe.artifact import Artifact
    from optpipe.weights.store import LazyWeight, Weights

    from .executor import CudaExecutor

log = logging.getLogger("optpipe.cuda")
DTYPES = ("auto", "bf16", "f16", "f32")
KERNELS = ("triton", "bodies")


class TritonKernels:
    """What ``optpipe doctor`` lists."""

    name = "triton"
    device = "cuda"
    ops: tuple[str, ...] = (
        "add_rms_norm",
        "gated_act",
        "gather_rows",
        "kv_write",
        "layer_norm",
        "moe",
        "paged_attention",
        "quant_embedding",
        "quant_linear",
        "quant_moe",
        "rms_norm",
        "rope",
    )

    def why_not(self) -> str | None:
        """Why the kernels cannot run on this machine, or None when they can."""
        if find_spec("triton") is None:
            return "the package 'triton' is not installed"
        return None if gpus() else "there is no NVIDIA GPU, or no driver for it"

    def details(self) -> dict[str, Any]:
        """What they would run with: Triton's version, and how many GPUs there are."""
        if find_spec("triton") is None:
            return {}
        from importlib import metadata

        return {"triton": metadata.version("triton"), "gpus": gpus()}


class CudaTarget:
    """``--target cuda``."""

    name = "cuda"
    rank = 20  # above the cpu target, which has 10
    devices: tuple[str, ...] = ("cuda",)

    def why_not(self) -> str | None:
        """Why it cannot run here, or None when it can. Imports no torch."""
        return TritonKernels().why_not()

    def load_artifact(self, artifact: Artifact, **options: Any) -> CudaExecutor:
        """An executor of an artifact; its weights are read straight to the device.

        Options:
            device: "cuda", "cuda:1", …; "cpu" interprets the kernels, which is for tests.
            dtype: "bf16", "f16", "f32", or "auto": bf16 where the GPU has it (f32 on the CPU).
            batch_invariant: a row's bits do not depend on what else is in the step; without it, each step
                takes the fastest way for its size.
            cuda_graphs: replay decode steps from CUDA graphs.
            kernels: "triton", or "bodies" to run every operation on its reference body instead.
            compile: leave what has no kernel to Inductor where that pays.

        Raises:
            ArtifactError: it is not paged, or names an operation that torch does not have.
            CapacityError: there is no such device, or the weights do not fit on it.
            KernelError: Triton is not installed.
            RequestError: an option has a value that it cannot have.
        """
        artifact.check_operations()
        return self._load(artifact.program, artifact.weights, **options)

    def load(self, program: Program, weights: Weights, **options: Any) -> CudaExecutor:
        """An executor of a program and its weights; options as for an artifact."""
        return self._load(program, weights, **options)

    def _load(
        self,
        program: Program,
        weights: Mapping[str, LazyWeight],
        *,
        device: str | torch.device = "cuda",
        dtype: str | torch.dtype = "auto",
        batch_invariant: bool = True,
        cuda_graphs: bool = True,
        kernels: str = "triton",
        compile: bool = True,  # noqa: A002 - what it is called everywhere
        recorder: Any = None,
    ) -> CudaExecutor:
        import torch

        from optpipe.targets.reference import usable_device

        from .calls import Calls
        from .executor import CudaExecutor
        from .fusion import lower
        from .graphs import recorder_of
        from .leftovers import Compiler
        from .operations import Operations
        from .row_wise import check_device
        from .weights import load_weights, recipes_of

        if kernels not in KERNELS:
            raise RequestError(f"The cuda target runs on {' or '.join(KERNELS)}, not on '{kernels}'.")
        if kernels == "triton" and find_spec("triton") is None:
            raise KernelError("The cuda target needs the package 'triton', which is not installed.")
        place = usable_device(device)
        if str(place) == "cuda":
            place = torch.device("cuda", torch.cuda.current_device())
        operations = Operations(
            compute_dtype(dtype, place), batch_invariant=batch_invariant, triton=kernels == "triton"
        )
        lowered = lower(program)
        check_device(recipes_of(lowered), place)
        loaded = load_weights(recipes_of(lowered), weights, place, operations)
        compiler = Compiler(place) if compile and place.type == "cuda" else None
        calls = Calls(lowered, loaded, operations, place, compiler)
        if operations.triton and operations.on_bodies:
            names = ", ".join(sorted(operations.on_bodies))
            log.warning(
                "No kernel here takes %s in %s: they run on their reference bodies, slowly.",
                names, str(operations.dtype).removeprefix("torch."),
            )  # fmt: skip
        if recorder is None:
            recorder = recorder_of(place, cuda_graphs)
        return CudaExecutor(lowered, loaded, calls, operations, place, recorder)


def compute_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a graph's float32 is computed in.

    Raises:
        RequestError: there is none of that name.
    """
    import torch

    named = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    if isinstance(name, torch.dtype) and name in named.values():
        return name
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if name not in named:
        raise RequestError(f"The cuda target computes in {', '.join(named)}, not in '{name}'.")
    return named[str(name)]


@functools.cache
def gpus() -> int:
    """How many GPUs NVIDIA's driver has; 0 without one. Asks the driver itself, which takes no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

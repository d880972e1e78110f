"""The ``cpu`` target: an artifact, its plan, its packed weights and a pool of threads become an executor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import ArtifactError, RequestError
from optpipe.program.program import Program

from .cores import usable_cores
from .executor import CpuExecutor
from .library import Pool, find, library
from .lowerings import Lowerings
from .row_wise import as_packed, rows_of, words
from .tensors import map_tensors
from .weights import cached_weights, pack_weights

if TYPE_CHECKING:
    from optpipe.artifact import Artifact
    from optpipe.weights.store import Weights


ACTIVATIONS = {"int8": 1, "int16": 2}
"""How quantized layers round their inputs, and how many planes of 8 bits that takes."""


class CpuKernels:
    """What ``optpipe doctor`` lists."""

    name = "cpu"
    device = "cpu"
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
        return None if find() is not None else "optpipe was installed without its CPU kernels"

    def details(self) -> dict[str, Any]:
        """What they would run with: the instruction set, those that this machine has, and threads."""
        if find() is None:
            return {}
        loaded = library()
        return {"isa": loaded.isa, "isas": list(loaded.isas), "threads": usable_cores()}


class CpuTarget:
    """``--target cpu``."""

    name = "cpu"
    rank = 10  # above the reference, which has 0

    def why_not(self) -> str | None:
        """Why it cannot run here, or None when it can."""
        return CpuKernels().why_not()

    def load_artifact(self, artifact: Artifact, *, activations: str = "int16", **options: Any) -> CpuExecutor:
        """An executor of an artifact, without torch; its packed weights come from the cache folder.

        Options:
            threads: of the pool, the caller's included; by default one a physical core that may be used.
            cpus: processors to pin them to, one a thread.
            activations: "int16" or "int8", what the inputs of quantized layers are rounded to. With int16 the
                logits are the reference's within float32's own rounding: what was verified is what is served.
                int8 costs SmolLM2 0.004 nats, and takes two thirds of the time for a prompt or a batch of 16.

        Raises:
            ArtifactError: it is not paged, or a weight is missing.
            KernelError: the library is missing, or does not fit.
            RequestError: an option has a value that it cannot have.
        """
        lowerings, pool = _lowered(artifact.program, activations), _pool(**options)
        names = (it for it in artifact.manifest.files if it.endswith(".safetensors"))
        files = [map_tensors(artifact.path / name) for name in names]
        tensors = {name: tensor for file in files for name, tensor in file.items()}
        rows = rows_of(artifact.program)

        def read(name: str) -> NDArray[Any]:
            if name not in tensors:
                raise ArtifactError(f"The artifact '{artifact.path}' lacks the weight '{name}' of its graph.")
            return words(tensors[name]) if name in rows else tensors[name]

        def forget() -> None:
            for file in files:
                file.forget()

        with _closed_on_error(pool):
            content = _content(artifact)
            weights = cached_weights(lowerings.weights, read, content, cache_folder(), pool, forget)
            return CpuExecutor(lowerings, weights, library(), pool)

    def report_plan(
        self,
        artifact: Artifact,
        *,
        profile: bool = False,
        tokens: int = 1,
        context: int = 128,
        activations: str = "int16",
        **options: Any,
    ) -> dict[str, Any]:
        """What ``optpipe inspect --plan`` prints: every instruction of one sequence's step.

        Args:
            artifact: a paged one.
            profile: also run it, and say how long each instruction takes; options are then those of loading.
            tokens: new tokens of the step.
            context: tokens of the sequence with the new ones.
            activations: as for loading.
        """
        from .report import describe, profiled

        program, step = as_packed(artifact.program), {"tokens": tokens, "context": context}
        step["planes"] = _planes(activations)
        if not profile:
            return describe(program, **step)
        executor = self.load_artifact(artifact, activations=activations, **options)
        try:
            return profiled(program, executor, **step)
        finally:
            executor.close()

    def load(
        self, program: Program, weights: Weights, *, activations: str = "int16", **options: Any
    ) -> CpuExecutor:
        """An executor of a program and its weights, packed in memory; options as for an artifact."""
        lowerings, pool = _lowered(program, activations), _pool(**options)
        rows = rows_of(program)

        def read(name: str) -> NDArray[Any]:
            stored = _numpy(weights[name].load())
            return words(stored) if name in rows else stored

        with _closed_on_error(pool):
            packed = pack_weights(lowerings.weights, read, pool)
            return CpuExecutor(lowerings, packed, library(), pool)


def _lowered(program: Program, activations: str) -> Lowerings:
    return Lowerings(as_packed(program), _planes(activations))


def _planes(activations: str) -> int:
    if activations not in ACTIVATIONS:
        raise RequestError(f"The cpu target rounds activations to int8 or int16, not to '{activations}'.")
    return ACTIVATIONS[activations]


@contextmanager
def _closed_on_error(pool: Pool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.close()
        raise


def _content(artifact: Artifact) -> str:
    """What tells this artifact from every other: the hashes of its files."""
    return "\n".join(f"{name} {entry.sha256}" for name, entry in sorted(artifact.manifest.files.items()))


def _pool(*, threads: int | None = None, cpus: Sequence[int] | None = None) -> Pool:
    if threads is not None and threads < 1:
        raise RequestError(f"The cpu target needs at least one thread, got {threads}.")
    return Pool(library(), threads or (len(cpus) if cpus else usable_cores()), cpus)


def cache_folder() -> Path:
    """Where packed weights are kept: OPTPIPE_CACHE, else optpipe's folder in the user's cache."""
    named = os.environ.get("OPTPIPE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optpipe"


def _numpy(tensor: Any) -> NDArray[Any]:
    """A torch tensor as an array; bfloat16 as its bits."""
    import torch

    whole = tensor.contiguous()
    if whole.dtype == torch.bfloat16:
        return np.asarray(whole.view(torch.int16).numpy().view(np.uint16))
    return np.asarray(whole.numpy())

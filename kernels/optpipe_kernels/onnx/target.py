"""The ``onnx`` target: an artifact through ONNX Runtime."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optpipe.errors import ArtifactError, KernelError, RequestError

from ..cpu.cores import usable_cores
from ..cpu.target import cache_folder
from .install import IDLE_ROWS, INNER_NORMS, ROUTED_EXPERTS, missing, needed, runtime

if TYPE_CHECKING:
    from optpipe.artifact import Artifact

    from .converter import ExportOptions
    from .executor import OnnxExecutor

LAYOUT = 5  # of the files that are kept: a new number makes old ones of no use
_POSITIONS = 4096  # of a slot at most, unless more are asked for


class OnnxTarget:
    """``--target onnx``. Without a rank: auto never takes it, as cpu and cuda run the same artifacts."""

    name = "onnx"
    devices = ("cpu", "cuda")

    def why_not(self) -> str | None:
        """Why it cannot run here, or None when it can."""
        name = missing()
        return None if name is None else f"the package '{name}' is not installed: pip install 'optpipe[onnx]'"

    def details(self) -> dict[str, Any]:
        """What it would run with: ONNX Runtime's version and its providers here."""
        if missing() is not None:
            return {}
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "providers": [str(it) for it in onnxruntime.get_available_providers()],
        }

    def load_artifact(
        self,
        artifact: Artifact,
        *,
        device: str = "cpu",
        threads: int | None = None,
        activations: str = "float32",
        slot_tokens: int | None = None,
    ) -> OnnxExecutor:
        """An executor of an artifact. The exported model is kept in the user's cache folder.

        Options:
            device: "cpu" or "cuda", ONNX Runtime's provider.
            threads: of the CPU provider; by default one a physical core that may be used.
            activations: "float32" or "int8", what quantized layers compute with.
            slot_tokens: positions of one sequence's cache; by default the model's, 4096 at most.

        Raises:
            KernelError: a package is missing, or ONNX Runtime cannot load what was written.
            RequestError: ONNX Runtime has no such provider here, an option has a value that it cannot have,
                or an operation has no mapping.
        """
        needed()
        from .converter import ExportOptions
        from .executor import OnnxExecutor
        from .export import DATA, context_of
        from .session import Settings

        if device not in self.devices:
            raise RequestError(f"The onnx target runs on cpu or cuda, not on '{device}'.")
        if activations not in ("float32", "int8"):
            raise RequestError(f"The onnx target computes with float32 or int8, not with '{activations}'.")
        context = context_of(artifact, slot_tokens)
        positions = min(context, _POSITIONS) if slot_tokens is None else slot_tokens
        # By ONNX Runtime's list of kernels, CUDA's attention is 16 bits wide, and its QMoE takes no weights
        # of a router; by the schema, rows sit out on both providers, and norms are inside on CUDA's alone.
        options = ExportOptions(
            accuracy_level=4 if activations == "int8" else 0,
            context=max(positions, 1),
            rows="chosen",
            argmax=device == "cuda",  # a CPU's logits are here already
            idle=runtime() >= IDLE_ROWS,
            experts=device == "cpu" and runtime() >= ROUTED_EXPERTS,
            half=device == "cuda",
            norms=device == "cuda" and runtime() >= INNER_NORMS,
        )
        settings = Settings(device, threads or usable_cores(), positions)

        def opened() -> OnnxExecutor:
            model = exported(artifact, options)
            return OnnxExecutor(model, _layers(artifact), (model.parent / DATA).stat().st_size, settings)

        try:
            return opened()
        except (KernelError, OSError):  # what was kept is broken: written anew, once
            shutil.rmtree(exported(artifact, options).parent)
            return opened()

    def load(self, program: Any, weights: Any, **options: Any) -> OnnxExecutor:
        """Not from parts: the export reads an artifact's files.

        Raises:
            ArtifactError: always.
        """
        raise ArtifactError("The onnx target loads artifacts from their folders only.")


def exported(artifact: Artifact, options: ExportOptions) -> Path:
    """The model file of an artifact, written on first use.

    Raises:
        RequestError: an operation has no mapping.
    """
    from optpipe.artifact.folder import written_whole

    from .export import MODEL, write_model

    said = [str(LAYOUT), str(sorted(asdict(options).items()))]
    said += [f"{name} {entry.sha256}" for name, entry in sorted(artifact.manifest.files.items())]
    key = hashlib.sha256("\n".join(said).encode()).hexdigest()[:32]
    folder = cache_folder() / "onnx" / key
    if not (folder / MODEL).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with written_whole(folder, replaceable=False) as fresh:
                write_model(artifact, fresh, options)
        except ArtifactError:
            if not (folder / MODEL).exists():
                raise  # else another process was quicker
    return folder / MODEL


def _layers(artifact: Artifact) -> tuple[tuple[int, int, int], ...]:
    """Heads and widths of every cache."""
    shapes = {it.value.name: it.value.type.shape for it in artifact.program.inputs if it.kind == "cache"}
    found = []
    for name, shape in shapes.items():
        kind, _, layer = name.partition(".")
        if kind == "k_cache":
            found.append((int(shape[2]), int(shape[3]), int(shapes[f"v_cache.{layer}"][3])))
    return tuple(found)

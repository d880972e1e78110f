"""``optpipe export --format onnx``. Imports neither onnx nor ONNX Runtime before it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .install import needed

if TYPE_CHECKING:
    from optpipe.artifact import Artifact


class OnnxFormat:
    """``--format onnx``."""

    name = "onnx"
    summary = "an ONNX model with its weights beside it, and what onnxruntime-genai needs to generate from it"
    options = ("ops", "activations", "logits", "context")

    def export(
        self,
        artifact: Artifact,
        output: Path,
        *,
        ops: str = "microsoft",
        activations: str = "float32",
        logits: str = "last",
        context: int | None = None,
    ) -> None:
        """See :func:`optpipe_kernels.onnx.export.export_onnx`."""
        needed()
        from .converter import ExportOptions
        from .export import context_of, export_onnx

        options = ExportOptions(
            microsoft=ops == "microsoft",
            accuracy_level=4 if activations == "int8" else 0,
            context=context_of(artifact, context),
            rows=logits,
        )
        export_onnx(artifact, output, options)

"""``optpipe export --format onnx``. Imports neither onnx nor ONNX Runtime before it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optpipe.errors import RequestError

from .install import needed

if TYPE_CHECKING:
    from optpipe.artifact import Artifact


class OnnxFormat:
    """``--format onnx``."""

    name = "onnx"
    summary = "an ONNX model with its weights beside it, and what onnxruntime-genai needs to generate from it"
    options = ("dtype", "ops", "activations", "logits", "context")

    def export(
        self,
        artifact: Artifact,
        output: Path,
        *,
        dtype: str = "float32",
        ops: str = "microsoft",
        activations: str = "float32",
        logits: str = "last",
        context: int | None = None,
    ) -> None:
        """See :func:`optpipe_kernels.onnx.export.export_onnx`.

        Raises:
            RequestError: there is no such form, or what ``export_onnx`` says.
        """
        needed()
        if dtype not in ("float32", "float16"):
            raise RequestError(f"An ONNX model's attention is float32 or float16, not {dtype}.")
        if dtype == "float16" and ops == "standard":
            raise RequestError("The standard operators are written in float32 only.")
        from .converter import ExportOptions
        from .export import context_of, export_onnx

        options = ExportOptions(
            microsoft=ops == "microsoft",
            accuracy_level=4 if activations == "int8" else 0,
            context=context_of(artifact, context),
            rows=logits,
            half=dtype == "float16",
            experts=dtype != "float16",  # the CUDA provider's operator takes no weights of a router
        )
        export_onnx(artifact, output, options)

"""The formats that the core exports artifacts to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .load import Artifact


class HfFormat:
    """``--format hf``."""

    name = "hf"
    summary = "a Hugging Face model folder with dequantized weights, which any consumer of such models takes"
    options = ("dtype",)

    def export(self, artifact: Artifact, output: Path, *, dtype: str = "float32") -> None:
        """See :func:`optpipe.artifact.export.export_hf`."""
        from .export import export_hf

        export_hf(artifact, output, dtype=dtype)

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


class Pt2Format:
    """``--format pt2``."""

    name = "pt2"
    summary = "one dense graph of ATen operations for other compilers: torch.export.load runs it alone"
    options = ()

    def export(self, artifact: Artifact, output: Path) -> None:
        """See :func:`optpipe.artifact.pt2.export_pt2`."""
        from .pt2 import export_pt2

        export_pt2(artifact, output)

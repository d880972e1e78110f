"""What is kept when a pass fails: the graph before it, what was still to run, and how it failed.

before.opt      the Program, as text
pipeline.txt    the failing pass and those after it
config.json     the model's config
error.txt       the traceback
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import fx

from ..errors import ArtifactError
from ..program import from_fx, print_program
from .base import Pass
from .text import print_pipeline


def write_reproducer(
    gm: fx.GraphModule,
    config: dict[str, Any],
    left: Sequence[Pass],
    error: BaseException,
    home: Path | None = None,
) -> Path:
    """Write the folder and return where it is. Of the weights it has names and types, in the text.

    Args:
        home: where to make it; the system's folder for temporary files when None, which systems empty.
    """
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"optpipe-{left[0].name}-", dir=home))
    try:
        text = print_program(from_fx(gm))
    except ArtifactError as unprintable:
        text = f"# the graph has no text: {unprintable.message}\n{gm.graph}"
    (folder / "before.opt").write_text(text)
    (folder / "pipeline.txt").write_text(print_pipeline(left) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    return folder

"""What the core itself provides: kinds of model sources, the reference target, Hugging Face folders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import hookimpl

if TYPE_CHECKING:
    from ..sources.source import SourceKind
    from .hookspecs import ExportEntry, TargetEntry


@hookimpl
def optpipe_model_sources() -> Iterable[SourceKind]:
    """Provide folder, gguf, pypi and hub."""
    from ..sources import BUILT_IN

    return BUILT_IN


@hookimpl
def optpipe_targets() -> Iterable[TargetEntry]:
    """Provide the reference target."""
    from ..targets.reference_target import ReferenceTarget

    return [ReferenceTarget()]


@hookimpl
def optpipe_exporters() -> Iterable[ExportEntry]:
    """Provide the Hugging Face folder and the exported program."""
    from ..artifact.formats import HfFormat, Pt2Format

    return [HfFormat(), Pt2Format()]

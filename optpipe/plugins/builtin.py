"""What the core itself provides: the kinds of model sources, and the reference target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import hookimpl

if TYPE_CHECKING:
    from ..sources.source import SourceKind
    from .hookspecs import TargetEntry


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

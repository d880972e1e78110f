"""``optpipe.load``: an artifact as an executor, inside anybody's serving system."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .artifact import Artifact, load_artifact
from .errors import OptpipeError, PluginError, nearest
from .plugins import installed_plugins

if TYPE_CHECKING:
    from .targets.protocol import Executor


def load(
    artifact: str | os.PathLike[str] | Artifact, *, target: str = "reference", **options: Any
) -> Executor:
    """Make an executor of an artifact.

    Args:
        artifact: the folder, or one that was opened with ``load_artifact``.
        target: the name of a target, see ``optpipe doctor``.
        options: the target's own, such as ``device`` for the reference.

    Raises:
        ArtifactError: the folder is missing, damaged, hostile or too new.
        PluginError: there is no such target.
    """
    targets = installed_plugins().targets()
    if target not in targets:
        raise PluginError(
            f"There is no target named '{target}'.",
            hint=nearest(target, targets) or f"known: {', '.join(targets)}",
        )
    opened = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    try:
        executor: Executor = targets[target].value.load(opened.program, opened.weights, **options)
    except TypeError as error:
        raise OptpipeError(f"The target '{target}' refuses its options: {error}.") from error
    return executor

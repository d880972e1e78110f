"""``optpipe.load``: an artifact as an executor, inside anybody's serving system."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .artifact import Artifact, load_artifact
from .errors import OptpipeError, PluginError, nearest
from .plugins import installed_plugins

if TYPE_CHECKING:
    from .plugins.hookspecs import TargetEntry
    from .targets.protocol import Executor


AUTO = "auto"
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


def load(
    artifact: str | os.PathLike[str] | Artifact, *, target: str = "reference", **options: Any
) -> Executor:
    """Make an executor of an artifact.

    Args:
        artifact: the folder, or one that was opened with ``load_artifact``.
        target: the name of a target, see ``optpipe doctor``; "auto" takes the fastest that can run here.
        options: the target's own, such as ``device`` for the reference.

    Raises:
        ArtifactError: the folder is missing, damaged, hostile or too new.
        PluginError: there is no such target.
    """
    targets = {name: provided.value for name, provided in installed_plugins().targets().items()}
    opened = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    name = _fastest(targets, opened, options) if target == AUTO else target
    if name not in targets:
        raise PluginError(
            f"There is no target named '{name}'.",
            hint=nearest(name, targets) or f"known: {', '.join([AUTO, *targets])}",
        )
    entry = targets[name]
    try:
        if hasattr(entry, "load_artifact"):
            executor: Executor = entry.load_artifact(opened, **options)
        else:
            executor = entry.load(opened.program, opened.weights, **options)
    except TypeError as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is None or unknown[1] not in options:
            raise  # a defect, not an option
        raise OptpipeError(
            f"The target '{name}' has no option '{unknown[1]}'.", hint="another target may have it: --target"
        ) from error
    return executor


def _fastest(targets: Mapping[str, TargetEntry], artifact: Artifact, options: Mapping[str, Any]) -> str:
    """What "auto" means: only the reference takes an artifact that is not paged, or any device of torch's."""
    if all(it.value.name != "block_tables" for it in artifact.program.inputs):
        return "reference"
    if "device" not in options:
        return choose_target(targets)
    kind = str(options["device"]).partition(":")[0]
    fitting = {name: entry for name, entry in targets.items() if kind in getattr(entry, "devices", ())}
    return choose_target({**fitting, "reference": targets["reference"]})


def choose_target(targets: Mapping[str, TargetEntry]) -> str:
    """The fastest target that can run on this machine, by what the targets say of themselves.

    Targets without a rank are taken only by their name.
    """
    ranked = {name: entry for name, entry in targets.items() if getattr(entry, "rank", None) is not None}
    usable = [name for name, entry in ranked.items() if entry.why_not() is None]  # type: ignore[attr-defined]
    return max(usable, key=lambda name: ranked[name].rank)  # type: ignore[attr-defined]

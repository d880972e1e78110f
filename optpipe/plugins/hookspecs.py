"""Every hook optpipe calls, one function a hook. The docstring is the contract; ``docs/hooks.md`` shows it.

Hooks that provide things return an iterable, and each thing has a ``name`` of its own: two plugins that
claim one name are an error that names both distributions. A hook that raises makes its plugin broken:
it is named, left out, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from ..sources.source import SourceKind

hookspec = pluggy.HookspecMarker("optpipe")


class KernelEntry(Protocol):
    """What ``optpipe_kernels`` provides: a family of kernels for one kind of device.

    An entry may also have ``details() -> dict``: facts that ``optpipe doctor`` prints, such as threads.
    """

    name: str
    """As ``optpipe doctor`` lists it."""
    device: str
    """A torch device type: ``cpu``, ``cuda``."""
    ops: tuple[str, ...]
    """The dialect operations that it covers, without the ``optpipe.`` prefix."""

    def why_not(self) -> str | None:
        """Why the kernels cannot run on this machine, or None when they can."""
        ...


class TargetEntry(Protocol):
    """What ``optpipe_targets`` provides: a way to run a Program.

    An entry may also have:

    - ``rank: int`` and ``why_not() -> str | None``: then ``--target auto`` considers it, and takes the one of
      the highest rank that has no reason why it cannot run on this machine (the reference has rank 0);
    - ``devices: tuple[str, ...]``: torch devices that it takes as the option ``device``; where one of
      them is asked for, ``--target auto`` considers it beside the reference;
    - ``load_artifact(artifact, **options)``: called instead of ``load``, with the
      ``optpipe.artifact.Artifact``, by targets that read the weights themselves and so need no torch;
    - ``report_plan(artifact, *, profile, tokens, context) -> dict``: what ``optpipe inspect --plan`` prints,
      by targets that lower the graph to a plan of their own.
    """

    name: str
    """What ``--target`` takes."""

    def load(self, program: Any, weights: Any, **options: Any) -> Any:
        """Turn a Program and its weights into an executor (``optpipe.targets.protocol.Executor``)."""
        ...


class ExportEntry(Protocol):
    """What ``optpipe_exporters`` provides: a format that ``optpipe export`` writes."""

    name: str
    """What ``--format`` takes."""
    summary: str
    """One line for ``optpipe export --help``."""

    @property
    def options(self) -> tuple[str, ...]:
        """The options of ``optpipe export`` that it takes, as Python names."""
        ...

    def export(self, artifact: Any, output: Path, *args: Any, **options: Any) -> None:
        """Write an ``optpipe.artifact.Artifact`` to a new folder; only options that were given are passed."""
        ...


class OnnxMapping(Protocol):
    """What ``optpipe_onnx_mappings`` provides: how one operation is written as ONNX."""

    name: str
    """The operation, as a graph's text has it: ``acme.scale_rows``."""

    def write(self, converter: Any, node: Any) -> None:
        """Add nodes to an ``optpipe_kernels.onnx.converter.Converter`` and bind the node's results."""
        ...


@hookspec
def optpipe_passes() -> Iterable[type]:
    """Provide passes.

    Called once, the first time a pipeline is read or passes are listed.

    Returns:
        Classes derived from ``optpipe.pipeline.Pass``, each with its own ``name``.
    """
    raise NotImplementedError


@hookspec
def optpipe_model_sources() -> Iterable[SourceKind]:
    """Provide kinds of places that models come from.

    Called when a model is resolved. Kinds are asked in the order of their ``rank`` (built in: folder 10, gguf
    20, pypi 30, hub 90, which claims all); the first that claims the text opens it, and the command line says
    which it was.

    Returns:
        Objects with ``name``, ``rank``, ``claims(spec)`` and ``open(spec, options)``
        (``optpipe.sources.SourceKind``).
    """
    raise NotImplementedError


@hookspec
def optpipe_kernels() -> Iterable[KernelEntry]:
    """Provide kernels for operations of the dialect.

    Called when a target that uses kernels is loaded, and by ``optpipe doctor``.

    Returns:
        Kernel families (:class:`KernelEntry`).
    """
    raise NotImplementedError


@hookspec
def optpipe_targets() -> Iterable[TargetEntry]:
    """Provide targets, which turn a Program and its weights into an executor.

    Called when an artifact is loaded.

    Returns:
        Targets (:class:`TargetEntry`).
    """
    raise NotImplementedError


@hookspec
def optpipe_exporters() -> Iterable[ExportEntry]:
    """Provide formats that artifacts are exported to.

    Called by ``optpipe export``.

    Returns:
        Formats (:class:`ExportEntry`).
    """
    raise NotImplementedError


@hookspec
def optpipe_onnx_mappings() -> Iterable[OnnxMapping]:
    """Provide mappings of operations to ONNX, for operations that a plugin's passes put into graphs.

    Called when an artifact is exported to ONNX, or loaded by the ``onnx`` target. A mapping of an operation
    that optpipe maps itself is an error.

    Returns:
        Mappings (:class:`OnnxMapping`).
    """
    raise NotImplementedError


@hookspec
def optpipe_commands() -> Iterable[click.Command]:
    """Provide commands of the ``optpipe`` program.

    Implemented by a module of the entry-point group ``optpipe.commands``, not ``optpipe``: an entry point
    there has the name of one command and is imported when that command is used, so that ``optpipe --help``
    stays fast. A module may provide several commands; each has an entry point of its own.

    Returns:
        click commands.
    """
    raise NotImplementedError


@hookspec
def optpipe_before_pass(pass_: Any, graph: Any, cx: Any) -> None:
    """Watch a pass that is about to run. Whatever is raised here stops the pipeline and names the plugin.

    Args:
        pass_: the pass, an instance of ``optpipe.pipeline.Pass``.
        graph: the ``torch.fx.GraphModule`` that it will be given. Not to be changed.
        cx: its context.
    """


@hookspec
def optpipe_after_pass(pass_: Any, graph: Any, cx: Any) -> None:
    """Watch a pass that has run, been verified and kept its contract.

    Args:
        pass_: the pass, an instance of ``optpipe.pipeline.Pass``.
        graph: the ``torch.fx.GraphModule`` that it left. Not to be changed.
        cx: its context, which holds the rewrites and the remarks.
    """


def hook_names() -> tuple[str, ...]:
    """Every hook, in the order of this file."""
    return tuple(name for name in globals() if name.startswith("optpipe_"))

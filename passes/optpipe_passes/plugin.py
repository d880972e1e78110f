"""What this room provides to optpipe: every pass that a module of this package defines."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from optpipe.plugins import hookimpl


@hookimpl
def optpipe_passes() -> list[type]:
    """Provide the built-in passes."""
    return list(_passes())


def _passes() -> Iterator[type]:
    from optpipe.pipeline import Pass

    package = importlib.import_module(__package__)
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{__package__}.{found.name}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, Pass) and thing.__module__ == module.__name__:
                yield thing

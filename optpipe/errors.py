"""Everything optpipe raises on purpose.

    OptpipeError
    ├── ModelError      a model source cannot be found, read or trusted
    ├── TraceError      the model cannot be turned into a graph that means the same
    ├── PipelineError   the text of a pipeline or its options is wrong
    ├── PassError       a pass failed, or left a graph that does not hold together
    ├── ContractError   a rewrite changed the numbers more than its pass allows
    ├── ArtifactError   an artifact is missing, damaged, hostile or too new
    ├── PluginError     a plugin cannot be loaded, or two claim one name
    ├── KernelError     a kernel was called with operands it cannot take
    ├── RequestError    a request asks for something impossible
    ├── CapacityError   there is no room: memory, blocks, queue
    └── EngineError     serving failed: a step raised, or the engine is closed
        └── TimeLimitError  a request took longer than it may

A message is one whole sentence: who, where, got, expected. The hint stands apart, so that the command
line can print it on its own line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OptpipeError(Exception):
    """The root. ``hint`` says the way out, when there is one."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ModelError(OptpipeError):
    """A model source cannot be found, read or trusted."""


class TraceError(OptpipeError):
    """The model cannot be turned into a graph that means the same."""


class PipelineError(OptpipeError):
    """The text of a pipeline or its options is wrong."""


class PassError(OptpipeError):
    """A pass failed, or left a graph that does not hold together."""


class ContractError(OptpipeError):
    """A rewrite changed the numbers more than its pass allows."""


class ArtifactError(OptpipeError):
    """An artifact is missing, damaged, hostile or too new."""


class PluginError(OptpipeError):
    """A plugin cannot be loaded, or two claim one name."""


class KernelError(OptpipeError):
    """A kernel was called with operands it cannot take."""


class RequestError(OptpipeError):
    """A request asks for something impossible."""


class CapacityError(OptpipeError):
    """There is no room: memory, blocks, queue."""


class EngineError(OptpipeError):
    """Serving failed: a step raised, or the engine is closed."""


class TimeLimitError(EngineError):
    """A request took longer than it may."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The hint for a mistyped name: ``did you mean 'quant'?``, or None when nothing is near.

    >>> nearest("qaunt", ["paged", "quant"])
    "did you mean 'quant'?"
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{match[0]}'?" if match else None

"""What every kind of model source gives, and what a kind is."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from optpipe.weights import Weights

Progress = Callable[[str, int, int | None], None]
"""Told about slow steps: (what, done, total or None), in bytes where bytes are moved."""


Content = bytes | Path
"""A file's content, or the file that has it."""


@dataclass(frozen=True)
class OpenOptions:
    """How a source may be opened."""

    trust_remote_code: bool = False
    cache_dir: Path | None = None  # None: the user's cache folder
    progress: Progress | None = None

    def report(self, what: str, done: int, total: int | None = None) -> None:
        """Tell the callback, if there is one."""
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass
class ModelSource:
    """An opened model: everything known about it, and its weights, none of them read yet.

    Attributes:
        config: the content of its config.json, without ``quantization_config``: the weights know their grids.
        weights: named as the parameters and saved buffers of its AutoModelForCausalLM; tied names share
            one object.
        files: what else belongs to the model: tokenizer, chat template, generation config.
        description: one line for people: what it is and where it came from.
        identity: kind, where, and hashes: what one needs to find the same model again.
        bytes: size of the stored weights.
        dtype: how most are stored: "bf16", "f32", "int4 g32", …
        code: folder with the model's own Python code; None unless ``trust_remote_code`` was given.
    """

    config: dict[str, Any]
    weights: Weights
    files: Mapping[str, Content]
    description: str
    identity: dict[str, Any]
    bytes: int
    dtype: str
    code: Path | None = field(default=None)

    def read(self, name: str) -> builtins.bytes | None:
        """One of ``files`` as bytes, or None when the model has no such file."""
        content = self.files.get(name)
        return content.read_bytes() if isinstance(content, Path) else content


@runtime_checkable
class SourceKind(Protocol):
    """One way to name a model, such as ``pypi:NAME``. Plugins add theirs.

    ``rank`` orders the kinds; the first that claims a text opens it. Built in: folder 10, gguf 20, pypi 30,
    hub 90 (which claims anything that looks like ``owner/name``, so a plugin's rank is below that).
    """

    name: ClassVar[str]
    rank: ClassVar[int]

    def claims(self, spec: str) -> bool:
        """Whether the text names a model of this kind; cheap, and touches no network."""

    def open(self, spec: str, options: OpenOptions) -> ModelSource:
        """Open it.

        Raises:
            ModelError: it cannot be found, read or trusted.
        """

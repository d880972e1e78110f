"""A model where an artifact is expected: it is optimized first, once, into the user's cache folder.

The artifact's name is a hash over the model's identity (for files: names, sizes, times and the config), the
pipeline as it was asked for, and optpipe's version. Processes that want the same one wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optpipe
from optpipe.artifact.folder import check_files
from optpipe.artifact.manifest import NAME, read_manifest
from optpipe.cli.output import progress
from optpipe.errors import ArtifactError
from optpipe.sources.files import cache_folder
from optpipe.sources.source import OpenOptions

PASSES = "paged"  # loses nothing


def artifact_of(
    model: str | os.PathLike[str],
    *,
    passes: str | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
    cache: Path | None = None,
) -> Path:
    """The folder of the artifact that a text names, or that is made of the model that it names.

    Args:
        model: an artifact's folder, or what ``optpipe optimize`` takes.
        passes: the pipeline for a model; ``paged`` when None.
        trust_remote_code: whether Python code that comes with the model may run.
        say: told in a line what is done.
        cache: where artifacts are kept; in optpipe's cache folder when None.

    Raises:
        ArtifactError: it names neither, or is an artifact and ``passes`` were given.
        OptpipeError: whatever stops ``optimize``.
    """
    path = Path(model)
    if (path / NAME).is_file() or not _is_model(path):
        if passes is not None and path.is_dir():
            raise ArtifactError(
                f"'{path}' is an artifact already, so it takes no passes.", hint="name the model itself"
            )
        return path
    wanted = PASSES if passes is None else passes
    home = (cache_folder(OpenOptions()) if cache is None else cache) / "artifacts"
    folder = home / _name(path, str(model), wanted, trust_remote_code)
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / f".{folder.name}.lock", say):
        if _usable(folder):
            say(f"'{model}' was optimized before: {folder}")
            return folder
        say(f"'{model}' is a model: optimizing it first, with --passes {wanted}, into {folder}")
        with progress() as report:
            optpipe.optimize(
                str(model),
                passes=wanted,
                output=folder,
                trust_remote_code=trust_remote_code,
                progress=report,
            )
    return folder


def _is_model(path: Path) -> bool:
    """Whether a source of models would take it; a folder must be there and have a config.json."""
    if path.is_dir():
        return (path / "config.json").is_file()
    from optpipe.plugins import installed_plugins

    kinds = [it.value for it in installed_plugins().model_sources() if it.value.name != "folder"]
    return any(kind.claims(str(path)) for kind in kinds)


def _name(path: Path, spec: str, passes: str, trust_remote_code: bool) -> str:
    key = {
        "model": _identity(path, spec),
        "passes": "".join(passes.split()),
        "trust_remote_code": trust_remote_code,
        "optpipe": optpipe.__version__,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", path.name or spec).strip("-.")[:60] or "model"
    return f"{readable}-{digest[:16]}"


def _identity(path: Path, spec: str) -> Any:
    """What changes when the model does: of files all but their content, else the name that it goes by."""
    if not path.exists():
        return spec
    files = sorted(it for it in path.iterdir() if it.is_file()) if path.is_dir() else [path]
    sizes = [(it.name, it.stat().st_size, it.stat().st_mtime_ns) for it in files]
    config = path / "config.json"
    text = config.read_text(errors="replace") if config.is_file() else ""
    return [str(path.resolve()), sizes, text]


def _usable(folder: Path) -> bool:
    """Whether the artifact is there, with every file in its size."""
    try:
        check_files(folder, read_manifest(folder), hashes=False)
    except (ArtifactError, OSError):
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that ends with the process that holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is optimizing this model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

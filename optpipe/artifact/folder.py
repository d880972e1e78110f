"""The folder itself: written whole or not at all, and checked file by file. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import ArtifactError
from .manifest import NAME, FileEntry, Manifest

_PIECE = 4 << 20  # bytes read at once while hashing
_READERS = 4  # files hashed at once; hashing lets go of the interpreter lock


def check_target(target: Path, *, replaceable: bool = True) -> None:
    """Raise unless a folder may be written at ``target``. Worth asking before the work, not after.

    Args:
        target: may not exist, be empty, or be an artifact, which is then replaced.
        replaceable: whether an artifact may be replaced.

    Raises:
        ArtifactError: something else is there, or its parent is no folder.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ArtifactError(f"'{target}' exists and is not a folder.", hint="give another folder")
    if target.is_dir():
        names = {entry.name for entry in target.iterdir()}
        if NAME in names and not replaceable:
            raise ArtifactError(
                f"The folder '{target}' holds an optpipe artifact, which an export does not replace.",
                hint="give a new folder, or remove this one yourself",
            )
        if names and NAME not in names:
            raise ArtifactError(
                f"The folder '{target}' is not empty and not an optpipe artifact; it was left alone.",
                hint="give a new folder, or remove this one yourself",
            )
    for parent in target.absolute().parents:
        if parent.exists():
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise ArtifactError(f"No folder can be made at '{target}': '{parent}' does not allow it.")
            return


@contextlib.contextmanager
def written_whole(target: Path, *, replaceable: bool = True) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends without an error.

    Files are on the disk before the folder gets its name; after an error nothing is left behind.

    Raises:
        ArtifactError: see ``check_target``; or the disk refuses.
    """
    check_target(target, replaceable=replaceable)
    target = target.absolute()
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target, "partial")
        yield temporary
        for entry in temporary.iterdir():
            _to_disk(entry)
        _to_disk(temporary)
        check_target(target, replaceable=replaceable)  # again: minutes may have passed
        _take_place(temporary, target)
        _to_disk(target.parent)
    except OSError as error:
        raise ArtifactError(f"The folder '{target}' cannot be written: {error}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return FileEntry(size, digest.hexdigest())


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """Every file's entry, by name, sorted."""
    names = sorted(entry.name for entry in folder.iterdir())
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(folder / name), names), strict=True))


def check_files(folder: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Raise unless the folder holds exactly the manifest's files, unchanged.

    Args:
        hashes: read every byte; else only names, kinds and sizes are compared.

    Raises:
        ArtifactError: a file is missing, extra, a link, cut short, or changed. The first is named.
    """
    found = {entry.name: entry for entry in os.scandir(folder) if entry.name != NAME}
    for name, entry in sorted(found.items()):
        if entry.is_symlink():
            raise _broken(
                folder, name, f"is a link to '{Path(entry).readlink()}'; artifacts hold plain files"
            )
        if name not in manifest.files:
            raise ArtifactError(
                f"The artifact '{folder}' has an extra entry '{name}' that its manifest does not list.",
                hint="remove it if you put it there",
            )
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise _broken(folder, name, "is not a plain file")
    for name, expected in manifest.files.items():
        if name not in found:
            raise _broken(folder, name, "is missing")
        size = found[name].stat(follow_symlinks=False).st_size
        if size != expected.bytes:
            how = "is cut short" if size < expected.bytes else "is too long"
            raise _broken(folder, name, f"{how}: {size} bytes of {expected.bytes}")
    if hashes:
        _check_hashes(folder, manifest)


def _check_hashes(folder: Path, manifest: Manifest) -> None:
    with ThreadPoolExecutor(_READERS) as pool:
        entries = pool.map(lambda name: hash_file(folder / name), manifest.files)
        for (name, expected), entry in zip(manifest.files.items(), entries, strict=True):
            if entry != expected:
                raise _broken(folder, name, "was changed: its hash is not the one in the manifest")


def _take_place(temporary: Path, target: Path) -> None:
    """Rename over what may be replaced; an old artifact is moved aside first, for a rename needs room."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = _beside(target, "old")
    target.rename(aside / target.name)
    try:
        temporary.rename(target)
    except OSError:
        (aside / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(target: Path, suffix: str) -> Path:
    """A new folder on the same file system, hidden, with the permissions a new folder has."""
    path = target.parent / f".{target.name}.{secrets.token_hex(4)}.{suffix}"
    path.mkdir()
    return path


def _broken(folder: Path, name: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"'{name}' in the artifact '{folder}' {what}.", hint="make or copy the artifact again"
    )

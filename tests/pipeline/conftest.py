"""A tiny model, traced and measured once; every manager starts from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from optpipe.optimizer import plan
from optpipe.pipeline.manager import Manager
from optpipe.testing import save_tiny
from optpipe.tracing.check import check_trace, probes_for

NewManager = Callable[..., Manager]


def build(folder: str) -> Iterator[NewManager]:
    from optpipe.sources import resolve
    from optpipe.sources.model import empty_model
    from optpipe.tracing.trace import trace

    source = resolve(folder)
    model = empty_model(source.config)
    traced = trace(model, source.weights)
    with probes_for(model, source, traced) as probes:
        measured, _ = check_trace(model, source, traced, probes)

        def new(*, verify: bool = True, **bounds: float) -> Manager:
            against = dataclasses.replace(measured, **bounds) if verify else None
            return Manager(traced.gm, traced.weights, traced.constants, source.config, against)

        yield new


@pytest.fixture(scope="session")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewManager]:
    """→ a manager over a traced Llama of two layers; nothing has run yet."""
    yield from build(str(save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")))


@pytest.fixture(scope="session")
def paged(manager: NewManager) -> NewManager:
    """→ a manager over the same model after ``paged`` and everything before it."""
    done = manager()
    done.run(plan("paged"))

    def new(**bounds: float) -> Manager:
        begun = manager(**bounds)
        return Manager(done.gm, done.weights, done.constants, done.config, begun.measured)

    return new


@pytest.fixture(autouse=True)
def reproducers(tmp_path, monkeypatch):
    """Where failing pipelines leave their reproducers."""
    import tempfile

    folder = tmp_path / "reproducers"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder

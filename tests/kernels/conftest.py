"""Tiny artifacts, for every target's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(tiny model, passes, dtype) → its artifact's folder, made once; packed weights lie beside them."""
    import torch

    import optpipe
    from optpipe.sources.source import ModelSource
    from optpipe.testing import tiny_model, weights_of

    home, made = tmp_path_factory.mktemp("tiny"), {}

    def make(name, passes="paged", dtype="float32"):
        if (name, passes, dtype) not in made:
            model = tiny_model(name).to(getattr(torch, dtype))
            weights = weights_of(model)
            source = ModelSource(
                config=model.config.to_dict(),
                weights=weights,
                files={},
                description=name,
                identity={"kind": "tiny"},
                bytes=weights.nbytes,
                dtype={"float32": "f32", "bfloat16": "bf16"}[dtype],
            )
            folder = home / f"{name}-{len(made)}"
            optpipe.optimize(source, passes=passes, output=folder, verify=False)
            made[name, passes, dtype] = folder
        return made[name, passes, dtype]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTPIPE_CACHE", str(home / "cache"))
        yield make

"""Tiny artifacts, sequences in an executor's cache, and a recorder that needs no GPU."""

from __future__ import annotations

import numpy as np
import pytest

from optpipe.targets.protocol import StepInputs


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(tiny model, passes) → its artifact, opened; made once."""
    import optpipe
    from optpipe.artifact import load_artifact
    from optpipe.sources.source import ModelSource
    from optpipe.testing import tiny_model, weights_of

    home, made = tmp_path_factory.mktemp("tiny"), {}

    def make(name, passes="paged"):
        if (name, passes) not in made:
            model = tiny_model(name)
            weights = weights_of(model)
            source = ModelSource(
                config=model.config.to_dict(),
                weights=weights,
                files={},
                description=name,
                identity={"kind": "tiny"},
                bytes=weights.nbytes,
                dtype="f32",
            )
            folder = home / f"{name}-{len(made)}"
            optpipe.optimize(source, passes=passes, output=folder, verify=False)
            made[name, passes] = load_artifact(folder)
        return made[name, passes]

    return make


class Sequences:
    """Sequences in an executor's cache, each in blocks of its own, last block first, run in any pieces."""

    def __init__(self, executor, tokens, kv_dtype=None, length=None):
        self.executor, self.tokens = executor, [list(map(int, it)) for it in tokens]
        self.block = executor.cache_spec.block_size
        self.each = -(-(length or max(map(len, tokens))) // self.block)
        executor.allocate(self.each * len(tokens), kv_dtype=kv_dtype)

    def step(self, pieces, feed=None, rows=None):
        """A step of pieces (sequence, begin, end); ``feed``: row of the step before, by sequence."""
        which = [np.arange(begin, end) for _, begin, end in pieces]
        tables = [(np.arange(self.each) + b * self.each)[::-1] for b, _, _ in pieces]
        slots = [
            table[at // self.block] * self.block + at % self.block
            for table, at in zip(tables, which, strict=True)
        ]
        ids = [[-1 - feed[b]] if feed is not None else self.tokens[b][begin:end] for b, begin, end in pieces]
        count = sum(map(len, which))
        return StepInputs(
            token_ids=np.array([it for each in ids for it in each], np.int64),
            positions=np.concatenate(which),
            slot_mapping=np.concatenate(slots),
            query_start=np.cumsum([0, *map(len, which)]).astype(np.int32),
            context_lens=np.array([end for _, _, end in pieces], np.int32),
            block_tables=np.stack(tables).astype(np.int32),
            logit_rows=np.arange(count) if rows is None else np.asarray(rows),
        )

    def run(self, pieces, logits=True, **options):
        """Logits of all rows, or the most likely tokens."""
        result = self.executor.submit(self.step(pieces, **options), logits=logits).result()
        return result.logits if logits else result.token_ids


class FakeRecorder:
    """Records by keeping the body: what it reads must lie where it lay when it was recorded."""

    def __init__(self):
        self.recorded, self.replayed, self.forgot = 0, 0, 0

    def forget(self):
        self.forgot += 1

    def record(self, body):
        self.recorded += 1
        body()

        def replay():
            self.replayed += 1
            return body()

        return replay


@pytest.fixture
def sequences():
    return Sequences


@pytest.fixture
def recorder():
    return FakeRecorder()

"""Graphs by key: captured once, replayed in any order, the one used longest ago let go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optpipe_kernels.cuda.graphs import Graphs, recorder_of, why_not_graphs
from optpipe_kernels.cuda.target import CudaTarget

PASSES = (
    "paged",
    "quant{group=32 zero=float head=8},paged",
    "quant{scheme=w8a8},paged",
    "quant{scheme=fp8},paged",  # compute capability 8.9
)


def test_a_body_is_recorded_once_and_replayed_on_its_own_memory(recorder):
    graphs, memory = Graphs(recorder), np.zeros(2)
    graphs.record("a", lambda: memory[0] + 1)
    graphs.record("b", lambda: memory[1] + 2)
    memory[:] = 10, 20
    assert [graphs.replay(key) for key in "abab"] == [11, 22, 11, 22]
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_the_one_used_longest_ago_goes_first(recorder):
    graphs = Graphs(recorder, limit=2)
    for key in "ab":
        graphs.record(key, lambda key=key: key)
    graphs.replay("a")
    graphs.record("c", lambda: "c")
    assert ["a" in graphs, "b" in graphs, "c" in graphs] == [True, False, True]
    assert recorder.forgot == 0  # the others still share their pool
    graphs.clear()
    assert (len(graphs), recorder.forgot) == (0, 1)


def test_there_are_none_on_a_cpu():
    assert "cpu" in why_not_graphs(torch.device("cpu"))
    assert recorder_of(torch.device("cpu"), True) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("passes", PASSES)
def test_captured_steps_on_a_gpu_have_the_bits_of_uncaptured_ones(tiny, sequences, passes):
    artifact = tiny("llama", passes)
    tokens = [np.random.default_rng(b).integers(0, 250, 40) for b in range(3)]
    found = []
    for graphs in (True, False):
        executor = CudaTarget().load_artifact(artifact, device="cuda", cuda_graphs=graphs)
        steps = sequences(executor, tokens)
        steps.run([(b, 0, 30) for b in range(3)])
        rows = [
            steps.run([(b, at, at + 1) for b in range(at % 3 + 1)], logits=logits)
            for at in range(30, 40)
            for logits in (True, False)
        ]
        found.append(rows)
        assert executor.graphs == (6 if graphs else 0)
    for captured, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(captured, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("passes", PASSES)
def test_a_row_on_a_gpu_has_the_same_bits_in_any_step(tiny, sequences, passes):
    executor = CudaTarget().load_artifact(tiny("llama", passes), device="cuda")
    assert executor.batch_invariant
    tokens = [np.random.default_rng(b).integers(0, 250, 120) for b in range(20)]
    steps = sequences(executor, tokens)
    whole = steps.run([(0, 0, 120)])
    for pieces in ([(0, 0, 100)], [(0, 100, 103), *((b, 0, 9) for b in range(1, 20))]):
        rows = steps.run(pieces)
        begin, end = pieces[0][1:]
        np.testing.assert_array_equal(rows[: end - begin], whole[begin:end])
    for at in range(103, 120):
        rows = steps.run([(0, at, at + 1), *((b, at - 94, at - 93) for b in range(1, at - 100))])
        np.testing.assert_array_equal(rows[0], whole[at])

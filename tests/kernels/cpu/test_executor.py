"""The cpu target against the reference, on every tiny architecture and in every mixture of a step."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import ArtifactError, CapacityError, RequestError
from optpipe.targets.protocol import StepInputs
from optpipe.testing import tiny_names
from optpipe_kernels.cpu.lowering import lower
from optpipe_kernels.cpu.pack import quantized_bytes
from optpipe_kernels.cpu.target import CpuTarget
from optpipe_kernels.cpu.tensors import Tensors

TOKENS = np.random.default_rng(0).integers(0, 250, 70)  # past every window, and past a block
NOISE = 4  # times the reference's own error in float32 may be ours
FLOOR = 2e-6  # noise of a logit near 1 that happened to be rounded well


@pytest.mark.parametrize("name", tiny_names())
def test_every_architecture_runs_without_torch_and_equals_the_reference(tiny, name):
    check(load_artifact(tiny(name)))


@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "qwen3"])
def test_weights_in_bfloat16_stay_so_and_give_the_same(library, tiny, name):
    """Where pairs of bfloat16 are multiplied, nearer than the source model in bfloat16; else as in float32.

    0.45, 0.11 and 0.36 of its error measured; inputs that are cut instead of rounded would give twice that.
    """
    opened = load_artifact(tiny(name, dtype="bfloat16"))
    recipes = lower(opened.program, quantized_bytes).weights.values()
    assert {it.bits for it in recipes if hasattr(it, "bits")} == {16}
    if library.isa != "avx512bf16":
        check(opened)
        return
    exact, theirs = (optpipe.load(opened, dtype=it).logits(TOKENS) for it in (torch.float64, torch.bfloat16))
    assert rms(checked(opened) - exact) <= 0.6 * rms(theirs - exact)


def rms(x):
    return np.sqrt((x.astype(float) ** 2).mean())


def check(opened):
    """No segment, as near as float32 comes, and the same bits however a prompt is cut."""
    assert [str(it.reason) for it in lower(opened.program, quantized_bytes).lowered.segments] == []
    exact = optpipe.load(opened, dtype=torch.float64).logits(TOKENS)
    noise = np.abs(optpipe.load(opened).logits(TOKENS) - exact).max()
    assert np.abs(checked(opened) - exact).max() <= NOISE * max(noise, FLOOR)


def checked(opened):
    """Logits, after they had the same bits however a prompt is cut."""
    executor = CpuTarget().load_artifact(opened, threads=2)
    found = executor.logits(TOKENS)
    steps = Sequences(executor, [TOKENS[:40]])
    for begin, end in ((0, 9), (9, 10), (10, 40)):
        rows = steps.run([(0, begin, end)])
        np.testing.assert_array_equal(rows, found[begin:end])
    executor.close()
    return found


class Sequences:
    """Sequences in an executor's cache, each in blocks of its own, run in any pieces."""

    def __init__(self, executor, tokens, kv_dtype=None):
        self.executor, self.tokens = executor, tokens
        self.block = executor.cache_spec.block_size
        self.each = -(-max(map(len, tokens)) // self.block)
        executor.allocate(self.each * len(tokens), kv_dtype=kv_dtype)

    def run(self, pieces, logits=True, **options):
        """Pieces (sequence, begin, end) in one step → logits of all their rows, or the likeliest tokens."""
        which = [np.arange(begin, end) for _, begin, end in pieces]
        tables = [(np.arange(self.each) + b * self.each)[::-1] for b, _, _ in pieces]
        slots = [
            table[at // self.block] * self.block + at % self.block
            for table, at in zip(tables, which, strict=True)
        ]
        step = StepInputs(
            token_ids=np.concatenate(
                [self.tokens[b][at] for (b, _, _), at in zip(pieces, which, strict=True)]
            ),
            positions=np.concatenate(which),
            slot_mapping=np.concatenate(slots),
            query_start=np.cumsum([0, *map(len, which)]).astype(np.int32),
            context_lens=np.array([end for _, _, end in pieces], np.int32),
            block_tables=np.stack(tables).astype(np.int32),
            logit_rows=np.arange(sum(map(len, which))),
        )
        result = self.executor.submit(step, logits=logits, **options).result()
        return result.logits if logits else result.token_ids


PASSES = ["paged", "quant{group=32 zero=none},paged", "quant{group=32 zero=float},paged"]


@pytest.fixture(scope="module", params=PASSES, ids=["f32", "int4", "int4 with minimum"])
def artifact(request, tiny):
    return load_artifact(tiny("llama-tied", request.param))


@pytest.fixture(params=["int16", "int8"])
def activations(request, artifact):
    if request.param == "int8" and not any(
        node.op == "optpipe.quant_linear" for node in artifact.program.nodes
    ):
        pytest.skip("nothing is rounded")
    return request.param


@pytest.fixture
def executor(artifact, activations):
    made = CpuTarget().load_artifact(artifact, threads=2, activations=activations)
    yield made
    made.close()


def mixed(sequences):
    """Prompts, chunks of prompts and single tokens in one step: the pieces, and the logits of their rows."""
    pieces = [
        (0, 0, 33),
        (1, 16, 17),
        (2, 5, 20),
        (3, 39, 40),
        (4, 0, 1),
        (5, 12, 15),
        (6, 31, 32),
        (7, 0, 40),
    ]
    before = [(b, 0, begin) for b, begin, _ in pieces if begin]
    sequences.run(before)
    return pieces, sequences.run(pieces)


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "i8"])
def test_a_row_has_the_same_bits_whatever_else_is_in_the_step(artifact, executor, activations, rng, kv_dtype):
    tokens = rng.integers(0, 250, (8, 40))
    pieces, together = mixed(Sequences(executor, tokens, kv_dtype))
    alone = {b: Sequences(executor, tokens[b : b + 1], kv_dtype).run([(0, 0, 40)]) for b in range(8)}
    expected = np.concatenate([alone[b][begin:end] for b, begin, end in pieces])
    np.testing.assert_array_equal(together, expected)
    single = CpuTarget().load_artifact(artifact, threads=1, activations=activations)
    np.testing.assert_array_equal(mixed(Sequences(single, tokens, kv_dtype))[1], together)
    single.close()


def test_the_greedy_plan_gives_the_likeliest_of_the_logits(executor, rng):
    tokens = rng.integers(0, 250, (3, 40))
    sequences = Sequences(executor, tokens)
    pieces = [(0, 0, 40), (1, 0, 7), (2, 0, 20)]
    logits = sequences.run(pieces)
    np.testing.assert_array_equal(sequences.run(pieces, logits=False), logits.argmax(-1))


def divergence(expected, found):
    """Mean KL in nats."""
    p, q = (
        it - np.log(np.exp(it).sum(-1, keepdims=True)) for it in (expected.astype(float), found.astype(float))
    )
    return (np.exp(p) * (p - q)).sum(-1).mean()


# int16 is measured at 6e-8 on SmolLM2; random models are as sensitive or less.
LIMITS = {"int16": 1e-6, "int8": 0.005}


def test_quantized_logits_differ_by_the_rounding_of_activations_alone(artifact, executor, activations):
    assert divergence(optpipe.load(artifact).logits(TOKENS), executor.logits(TOKENS)) < LIMITS[activations]


@pytest.mark.parametrize(("name", "int8"), [("gemma3", 0.005), ("mixtral", 0.02)])  # a near tie flips
def test_other_architectures_quantized(tiny, name, int8):
    opened = load_artifact(tiny(name, "quant{group=32 zero=float},paged"))
    assert lower(opened.program, quantized_bytes).lowered.segments == []
    expected = optpipe.load(opened).logits(TOKENS)
    for activations, limit in {**LIMITS, "int8": int8}.items():
        made = CpuTarget().load_artifact(opened, threads=2, activations=activations)
        assert divergence(expected, made.logits(TOKENS)) < limit
        made.close()


def test_a_cache_of_fewer_bits_changes_little(executor):
    tokens = TOKENS[:40]
    exact = Sequences(executor, [tokens], "f32").run([(0, 0, 40)])
    sizes = {}
    for kv_dtype in ("bf16", "i8"):
        found = Sequences(executor, [tokens], kv_dtype).run([(0, 0, 40)])
        assert 0 < divergence(exact, found) < 0.005
        sizes[kv_dtype] = executor.block_bytes(kv_dtype)
    assert sizes["bf16"] * 2 == executor.block_bytes("f32")
    assert sizes["i8"] < sizes["bf16"]


def test_rows_that_are_asked_for(executor):
    np.testing.assert_array_equal(
        executor.logits(TOKENS, np.array([69, 3])), executor.logits(TOKENS)[[69, 3]]
    )


def test_times_of_a_profile_add_up(executor):
    executor.profile = True
    executor.logits(TOKENS)
    once = executor.step_times()
    executor.logits(TOKENS)
    assert (once > 0).all()
    assert (executor.step_times() > once).all()


def test_refuses_what_it_cannot_do(executor):
    with pytest.raises(CapacityError, match=r"no cache of f16; it has .*bf16"):
        executor.allocate(3, kv_dtype="f16")
    with pytest.raises(RequestError, match=r"Token ids must be in \[0, 264\)"):
        executor.logits(np.array([264]))


def test_a_cache_must_come_first(artifact):
    made = CpuTarget().load_artifact(artifact, threads=1)
    with pytest.raises(CapacityError, match="has no cache yet"):
        made.submit(None)


def test_threads_must_be_one_or_more(artifact):
    with pytest.raises(RequestError, match="at least one thread, got 0"):
        CpuTarget().load_artifact(artifact, threads=0)
    with pytest.raises(RequestError, match="int8 or int16, not to 'int4'"):
        CpuTarget().load_artifact(artifact, activations="int4")


def test_a_program_and_its_weights_run_as_the_artifact_does(artifact, executor, activations):
    packed = CpuTarget().load(artifact.program, artifact.weights, threads=2, activations=activations)
    np.testing.assert_array_equal(packed.logits(TOKENS), executor.logits(TOKENS))
    packed.close()


def test_threads_end_with_the_executor_or_when_loading_fails(artifact, monkeypatch):
    before = tasks()
    made = CpuTarget().load_artifact(artifact, threads=3)
    assert tasks() == before + 2
    made.close()
    assert tasks() == before
    monkeypatch.setattr("optpipe_kernels.cpu.target.map_tensors", lambda _: Tensors(mmap.mmap(-1, 1)))
    monkeypatch.setenv("OPTPIPE_CACHE", os.devnull)
    with pytest.raises(ArtifactError, match="lacks the weight"):
        CpuTarget().load_artifact(artifact, threads=3)
    assert tasks() == before


def tasks():
    """Threads of this process, those that Python does not know included."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_the_cache_is_as_exact_as_the_activations(executor, activations):
    assert executor.kv_dtypes[0] == {"int16": "f32", "int8": "bf16"}[activations]
    assert sorted(executor.kv_dtypes) == ["bf16", "f32", "i8"]

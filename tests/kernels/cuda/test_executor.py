"""The cuda target, its kernels interpreted, against the reference: every architecture, every mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import optpipe
from optpipe.errors import CapacityError, RequestError
from optpipe.testing import tiny_names
from optpipe_kernels.cuda.target import CudaTarget

TOKENS = np.random.default_rng(0).integers(0, 250, 70)  # past every window, and past a block
NOISE = 8  # times the reference's own error in float32 may be ours: tiles are summed in another order
FLOOR = 2e-6  # noise of a logit near 1 that happened to be rounded well
QUICK = ("llama", "gemma2", "bloom")


def load(artifact, **options):
    """Dense layers by torch where it does not matter: they take the interpreter long."""
    if options.get("kernels") != "bodies" and "recorder" in options:
        options.setdefault("batch_invariant", False)
    return CudaTarget().load_artifact(artifact, device="cpu", **options)


def check(artifact, **options):
    exact = optpipe.load(artifact, dtype=torch.float64).logits(TOKENS)
    noise = np.abs(optpipe.load(artifact).logits(TOKENS) - exact).max()
    executor = load(artifact, **options)
    assert np.abs(executor.logits(TOKENS) - exact).max() <= NOISE * max(noise, FLOOR)
    return executor


QUICKLY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in tiny_names()]


@pytest.mark.parametrize("name", QUICKLY)
def test_every_architecture_on_bodies_equals_the_reference(tiny, name):
    check(tiny(name), kernels="bodies")


@pytest.mark.parametrize("name", QUICKLY)
def test_every_architecture_on_kernels_equals_the_reference(tiny, name):
    executor = check(
        tiny(name), batch_invariant=False
    )  # dense layers by torch: they take the interpreter long
    assert not executor.operations.on_bodies
    assert not executor.batch_invariant


@pytest.mark.parametrize("name", ["gemma2", "cohere"])
def test_logits_that_a_model_scales_or_caps_are_not_rounded_on_the_way(tiny, sequences, recorder, name):
    executor = load(tiny(name), dtype="f16", batch_invariant=True, recorder=recorder)
    steps = sequences(executor, [TOKENS[:20]])
    steps.run([(0, 0, 18)])
    told, likeliest = steps.run([(0, 18, 19)]), steps.run([(0, 18, 19)], logits=False)
    assert likeliest.tolist() == told.argmax(-1).tolist()
    assert (told.astype(np.float16) == told).mean() < 0.1


def test_a_row_does_not_depend_on_the_step(tiny, sequences):
    """To float32's rounding: the interpreter's products are numpy's. test_graphs.py has the bits of GPUs."""
    executor = check(tiny("llama"))
    assert executor.batch_invariant
    assert not executor.operations.on_bodies
    steps = sequences(executor, [TOKENS[:20], TOKENS[20:40]])
    whole = steps.run([(0, 0, 20)])
    steps = sequences(executor, [TOKENS[:20], TOKENS[20:40]])
    parts = [steps.run([(1, 0, 7), (0, 0, 18)])[7:], steps.run([(0, 18, 19), (1, 7, 8)])[:1]]
    near(np.concatenate(parts), whole[:19])


@pytest.mark.parametrize(
    ("bits", "zero"),
    [(4, "float"), *(pytest.param(*it, marks=pytest.mark.slow) for it in ((4, "none"), (8, "none")))],
)
def test_quantized_weights_on_bodies_equal_the_reference(tiny, bits, zero):
    artifact = tiny("llama-tied", f"quant{{bits={bits} group=32 zero={zero} head=8}},paged")
    check(artifact, kernels="bodies")


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_quantized_weights_on_kernels_are_as_near_as_16_bits_come(tiny, bits):
    artifact = tiny("llama-tied", f"quant{{bits={bits} group=32 zero=float head=8}},paged")
    exact = optpipe.load(artifact).logits(TOKENS[:12])
    executor = load(artifact, dtype="f16")
    assert not executor.operations.on_bodies
    assert "quant_gate_up" in {step.kernel for step in executor.lowered.steps}
    found = executor.logits(TOKENS[:12])
    assert np.linalg.norm(found - exact) <= 4e-3 * np.linalg.norm(exact)  # 2^-11 a rounding, some of them


def test_what_has_no_kernel_in_a_dtype_is_said(tiny, caplog):
    artifact = tiny("llama-tied", "quant{bits=4 group=32 zero=float head=8},paged")
    caplog.clear()  # tracing, where it is made only now, has much to say
    executor = load(artifact, dtype="f32")  # the quantized kernels compute in 16 bits
    assert executor.operations.on_bodies == {"quant_linear"} and not executor.batch_invariant
    assert [it.getMessage() for it in caplog.records] == [
        "No kernel here takes quant_linear in float32: they run on their reference bodies, slowly."
    ]
    caplog.clear()
    load(artifact, kernels="bodies"), load(artifact, dtype="f16")
    assert not caplog.records


@pytest.mark.parametrize("name", ["mixtral", pytest.param("gpt-oss", marks=pytest.mark.slow)])
def test_experts_stored_in_float32_are_computed_in_the_compute_dtype(tiny, name):
    """gpt-oss stores them across, with gate and up interleaved."""
    artifact = tiny(name)
    exact = optpipe.load(artifact, dtype=torch.float64).logits(TOKENS[:9])
    found = load(artifact, dtype="f16", batch_invariant=False).logits(TOKENS[:9])
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.slow
def test_quantized_experts_are_repacked_once_and_as_near(tiny, monkeypatch):
    from optpipe_kernels.triton import expert_weights, experts

    packed, pack = [], expert_weights.pack
    monkeypatch.setattr(expert_weights, "pack", lambda *args, **how: packed.append(how) or pack(*args, **how))
    monkeypatch.setattr(experts, "quant_moe", None)  # packs at every call
    artifact = tiny("mixtral", "quant{bits=4 group=32 zero=float head=8},paged")
    exact = optpipe.load(artifact).logits(TOKENS[:12])
    executor = load(artifact, dtype="f16", batch_invariant=False)
    found = [executor.logits(TOKENS[:12]) for _ in range(2)]
    assert len(packed) == 2 * sum(step.kernel == "quant_moe" for step in executor.lowered.steps) > 0
    np.testing.assert_array_equal(*found)
    assert np.linalg.norm(found[0] - exact) <= 4e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(("kv_dtype", "error"), [("f8", 2**-4), ("i8", 1e-2)])
def test_an_eight_bit_cache_costs_little_and_what_its_body_says(tiny, sequences, kv_dtype, error):
    """Half a unit in the last place of e4m3 is 2^-4 of a number; of int8 2^-8 of the largest of a head."""
    found = []
    for kernels in ("triton", "bodies"):
        executor = load(tiny("llama"), batch_invariant=False, kernels=kernels)
        steps = sequences(executor, [TOKENS[:20]], kv_dtype=kv_dtype)
        steps.run([(0, 0, 19)])
        found.append(steps.run([(0, 19, 20)]))
    exact = executor.logits(TOKENS[:20])[-1:]
    cost, apart = (np.linalg.norm(found[0] - it) / np.linalg.norm(exact) for it in (exact, found[1]))
    assert 1e-5 < cost < error
    assert apart < 0.1 * cost  # noise turns a code over now and then
    wide = executor.cache_spec.block_bytes(1)
    assert wide < executor.block_bytes(kv_dtype) < executor.block_bytes()


@pytest.fixture(params=["bodies", "triton"])
def kernels(request):
    return request.param


@pytest.fixture
def whole(tiny):
    """Logits of three sequences, each as a whole, by the reference."""
    reference = optpipe.load(tiny("llama"))
    tokens = [TOKENS[:40], TOKENS[10:70], TOKENS[30:33]]
    return tokens, [reference.logits(it) for it in tokens]


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_chunks_decode_and_verification_equal_the_whole(tiny, sequences, whole, kernels):
    tokens, expected = whole
    steps = sequences(load(tiny("llama"), kernels=kernels, batch_invariant=False), tokens)
    near(steps.run([(0, 0, 9)]), expected[0][:9])
    near(steps.run([(0, 9, 10), (1, 0, 21)]), np.concatenate([expected[0][9:10], expected[1][:21]]))
    mixed = [(1, 21, 22), (0, 10, 14), (2, 0, 3)]  # decode, verification of three drafts, a prompt
    near(steps.run(mixed), np.concatenate([expected[1][21:22], expected[0][10:14], expected[2]]))
    near(steps.run([(0, 14, 40), (1, 22, 60)]), np.concatenate([expected[0][14:], expected[1][22:]]))


def test_only_wanted_rows_are_given(tiny, sequences, whole, kernels):
    tokens, expected = whole
    steps = sequences(load(tiny("llama"), kernels=kernels, batch_invariant=False), tokens)
    near(steps.run([(0, 0, 9), (2, 0, 3)], rows=[3, 11]), np.stack([expected[0][3], expected[2][2]]))


def test_greedy_steps_give_the_most_likely(tiny, sequences, whole, kernels):
    tokens, expected = whole
    steps = sequences(load(tiny("llama"), kernels=kernels, batch_invariant=False), tokens)
    np.testing.assert_array_equal(steps.run([(0, 0, 9)], logits=False), expected[0][:9].argmax(-1))


def decoded(steps, count, begin, *, feed):
    """Greedy decoding of three sequences for ``count`` steps: by the host's tokens, or the device's."""
    found = [steps.run([(b, 0, begin)], logits=False, rows=[begin - 1])[0] for b in range(3)]
    for b in range(3):
        steps.tokens[b] = [*steps.tokens[b][:begin], int(found[b])]
    rows = None
    out, order = [], [0, 1, 2]
    for at in range(begin, begin + count):
        order = order[1:] + order[:1]  # a sequence's row moves
        pieces = [(b, at, at + 1) for b in order]
        ids = steps.run(pieces, logits=False, feed=rows if feed else None)
        rows = {b: row for row, b in enumerate(order)}
        for b, token in zip(order, ids, strict=True):
            steps.tokens[b].append(int(token))
        out.append(ids[[rows[b] for b in range(3)]])
    return np.array(out)


@pytest.mark.parametrize("captured", [False, True], ids=["as it is", "captured"])
def test_tokens_stay_on_the_device_and_feed_the_next_step(tiny, sequences, recorder, captured):
    artifact = tiny("llama")
    tokens = [TOKENS[:5], TOKENS[20:25], TOKENS[40:45]]
    plain = decoded(sequences(load(artifact, kernels="bodies"), tokens, length=30), 12, 5, feed=False)
    executor = load(artifact, kernels="bodies", recorder=recorder if captured else None)
    assert executor.feeds_tokens
    steps = sequences(executor, tokens, length=30)
    np.testing.assert_array_equal(decoded(steps, 12, 5, feed=True), plain)
    assert len(np.unique(plain)) > 3
    assert executor.graphs == (1 if captured else 0)  # prompts run as they are


def test_a_step_may_not_take_a_row_that_the_one_before_lacks(tiny, sequences):
    steps = sequences(load(tiny("llama"), kernels="bodies"), [TOKENS[:5], TOKENS[5:10]])
    with pytest.raises(RequestError, match=r"\[0, "):
        steps.run([(0, 0, 1)], feed={0: 0})
    steps.run([(0, 0, 4)], rows=[3])
    with pytest.raises(RequestError, match="row 1"):
        steps.run([(0, 4, 5)], feed={0: 1})


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(it, marks=pytest.mark.slow) for it in ("gpt-oss", "bloom"))]
)
def test_captured_steps_give_what_uncaptured_ones_do(tiny, sequences, recorder, name):
    artifact = tiny(name)
    tokens = [TOKENS[begin : begin + 36] for begin in (0, 11, 25)]
    captured, plain = (sequences(load(artifact, recorder=it), tokens) for it in (recorder, None))
    for steps in (captured, plain):
        steps.run([(b, 0, 30) for b in range(3)])
    for at in (30, 31, 32, 33, 34, 35):
        pieces = [(b, at, at + 1) for b in range(at % 3 + 1)]
        near(captured.run(pieces), plain.run(pieces))  # the interpreter's sums depend on padding
    assert recorder.recorded == 3  # one, two and three sequences
    assert recorder.replayed == 6
    graphs = captured.executor
    assert graphs._told.shape == (4, graphs.vocab_size)  # all write their logits there: the largest bucket's
    needs = [it.executor.memory(tokens=64, rows=64).workspace for it in (captured, plain)]
    assert needs[0] > needs[1]  # the graphs' pool


def test_a_new_cache_is_not_read_by_old_graphs(tiny, sequences, recorder):
    executor = load(tiny("llama"), kernels="bodies", recorder=recorder)
    for _ in range(2):
        steps = sequences(executor, [TOKENS[:20]])
        steps.run([(0, 0, 19)])
        near(steps.run([(0, 19, 20)]), executor.logits(TOKENS[:20])[-1:])
    assert recorder.recorded == 2
    assert executor.graphs == 1


def test_says_what_it_needs_and_what_it_cannot_do(tiny, sequences):
    executor = load(tiny("llama"), kernels="bodies")
    with pytest.raises(CapacityError, match="allocate"):
        sequences.run(type("Steps", (), {"executor": executor, "step": lambda *_, **__: None})(), [])
    with pytest.raises(CapacityError, match="no cache of i4"):
        executor.allocate(4, kv_dtype="i4")
    spec = executor.cache_spec
    assert executor.block_bytes() == spec.block_bytes(4)
    small, large = (executor.memory(tokens=count, rows=1) for count in (16, 1024))
    assert small.weights == small.loaded > 0
    assert small.workspace < large.workspace

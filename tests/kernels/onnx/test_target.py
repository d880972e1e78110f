"""The onnx target against the reference: every tiny architecture, whole and in pieces, alone and together."""

from __future__ import annotations

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import CapacityError, KernelError, RequestError
from optpipe.targets.protocol import StepInputs
from optpipe.testing import tiny_names

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from optpipe_kernels.onnx import target  # noqa: E402
from optpipe_kernels.onnx.converter import ExportOptions  # noqa: E402
from optpipe_kernels.onnx.executor import OnnxExecutor  # noqa: E402
from optpipe_kernels.onnx.session import Settings  # noqa: E402
from optpipe_kernels.onnx.target import OnnxTarget  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 250, 40)  # past every window
BOUND = 2e-5  # of a logit near 1 to 10, both sides in float32
HALF_BOUND = 5e-3  # attention's inputs have 11 bits: 2⁻¹¹ of numbers near 1, through two layers


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTPIPE_CACHE", str(tmp_path / "cache"))


def loaded(path, **options):
    return OnnxTarget().load_artifact(load_artifact(path), threads=1, slot_tokens=64, **options)


def step_of(pieces, tokens, slot_tokens=64):
    """Pieces (slot, begin, end) of the same tokens as one step, with every row's logits."""
    spans = [np.arange(begin, end) for _, begin, end in pieces]
    at = np.concatenate(spans)
    return StepInputs(
        token_ids=tokens[at],
        positions=at,
        slot_mapping=np.concatenate(
            [slot * slot_tokens + span for (slot, _, _), span in zip(pieces, spans, strict=True)]
        ),
        query_start=np.cumsum([0, *map(len, spans)]).astype(np.int32),
        context_lens=np.array([end for _, _, end in pieces], np.int32),
        block_tables=np.array([[slot] for slot, _, _ in pieces], np.int32),
        logit_rows=np.arange(len(at)),
    )


@pytest.mark.parametrize("name", tiny_names())
def test_every_architecture_equals_the_reference_whole_and_in_pieces(tiny, name):
    path = tiny(name)
    wanted = optpipe.load(path).logits(TOKENS)
    executor = loaded(path)
    assert np.abs(executor.logits(TOKENS) - wanted).max() < BOUND
    executor.allocate(4)
    for begin, end in ((0, 13), (13, 14), (14, 40)):
        # Slot 2 runs the same tokens; slots 1 and 3 sit out in between.
        found = executor.submit(step_of([(0, begin, end), (2, begin, end)], TOKENS)).result()
        for rows in np.split(found.logits, 2):
            assert np.abs(rows - wanted[begin:end]).max() < BOUND
        np.testing.assert_array_equal(found.token_ids, found.logits.argmax(-1))


@pytest.mark.parametrize("passes", ["quant,paged", "quant{bits=8},paged", "quant{zero=float},paged"])
def test_quantized_layers_equal_the_reference(tiny, passes):
    path = tiny("llama", passes=passes)
    wanted = optpipe.load(path).logits(TOKENS)
    assert np.abs(loaded(path).logits(TOKENS) - wanted).max() < BOUND
    rounded = loaded(path, activations="int8").logits(TOKENS)
    assert BOUND < np.abs(rounded - wanted).max() < 0.3  # rounded indeed, and not to something else


def test_a_step_mixes_prompts_chunks_and_single_tokens(tiny):
    path = tiny("llama")
    wanted = optpipe.load(path).logits(TOKENS)
    executor = loaded(path)
    executor.allocate(6)
    executor.submit(step_of([(5, 0, 20), (1, 0, 7), (3, 0, 20)], TOKENS)).result()
    pieces = [(0, 0, 9), (1, 7, 8), (3, 20, 24), (5, 20, 24)]
    found = executor.submit(step_of(pieces, TOKENS)).result().logits
    expected = np.concatenate([wanted[begin:end] for _, begin, end in pieces])
    assert np.abs(found - expected).max() < BOUND


def test_slots_that_are_full_beside_one_that_sits_out(tiny):
    """A prompt as long as a slot leaves an idle row between no room: then it is no row of the run."""
    path = tiny("llama")
    wanted = optpipe.load(path).logits(TOKENS)
    executor = OnnxTarget().load_artifact(load_artifact(path), threads=1, slot_tokens=len(TOKENS))
    executor.allocate(3)
    step = step_of([(0, 0, 40), (2, 0, 40)], TOKENS, slot_tokens=40)
    for rows in np.split(executor.submit(step).result().logits, 2):
        assert np.abs(rows - wanted).max() < BOUND


def test_an_older_runtime_has_no_row_that_sits_out(tiny, monkeypatch):
    """Then runs have no holes, and chunks run one by one."""
    monkeypatch.setattr(target, "runtime", lambda: (1, 30))
    path = tiny("llama")
    wanted = optpipe.load(path).logits(TOKENS)
    executor = loaded(path)
    executor.allocate(6)
    executor.submit(step_of([(5, 0, 20), (1, 0, 7), (3, 0, 20)], TOKENS)).result()
    pieces = [(0, 0, 9), (1, 7, 8), (3, 20, 21), (4, 0, 9), (5, 20, 24)]
    found = executor.submit(step_of(pieces, TOKENS)).result().logits
    expected = np.concatenate([wanted[begin:end] for _, begin, end in pieces])
    assert np.abs(found - expected).max() < BOUND
    found = executor.submit(step_of([(3, 21, 22), (1, 8, 9), (4, 9, 10)], TOKENS)).result().logits
    assert np.abs(found - wanted[[21, 8, 9]]).max() < BOUND


@pytest.mark.parametrize(
    ("device", "providers"),
    [("cpu", ["CPUExecutionProvider"]), ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"])],
)
def test_the_device_chooses_the_provider(tiny, monkeypatch, device, providers):
    """As with onnxruntime-gpu: what is asked of it, without a GPU to run on."""
    asked = {}

    def session(path, *options, providers, **more):
        opened = real(path, *options, providers=["CPUExecutionProvider"], **more)
        if path.endswith("model.onnx"):
            asked.update(model=path, providers=providers)
            monkeypatch.setattr(opened, "get_providers", lambda: providers)
        return opened

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    executor = loaded(tiny("llama"), device=device)
    assert asked["providers"] == providers
    outputs = {it.name for it in real(asked["model"]).get_outputs()}
    assert ("token_ids" in outputs) == (device == "cuda")  # a GPU's logits stay there
    assert executor.device == device
    assert executor.kv_dtypes == ("f16" if device == "cuda" else "f32",)


def test_a_provider_that_does_not_start_is_said(tiny, monkeypatch):
    """ONNX Runtime leaves it out and goes on with the CPU's, where a cache on a GPU would be of no use."""
    real = onnxruntime.InferenceSession

    def without_libraries(path, *options, providers, **more):
        return real(path, *options, providers=["CPUExecutionProvider"], **more)

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_libraries)
    with pytest.raises(RequestError, match="could not start the CUDAExecutionProvider") as caught:
        loaded(tiny("llama"), device="cuda")
    assert "onnx-gpu" in caught.value.hint


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_kept_export_that_is_broken_is_written_anew(tiny, tmp_path, name):
    path = tiny("llama")
    wanted = loaded(path).logits(TOKENS)
    (kept,) = (tmp_path / "cache" / "onnx").iterdir()
    whole = (kept / name).read_bytes()
    (kept / name).write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(loaded(path).logits(TOKENS), wanted)
    assert (kept / name).read_bytes() == whole


def test_a_model_that_cannot_be_loaded_is_said(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(KernelError, match="cannot load"):
        OnnxExecutor(tmp_path / "model.onnx", ((1, 8, 8),), 0, Settings("cpu", 1, 64))


def test_a_model_that_chooses_tokens_itself(tiny):
    """The form that a GPU runs, on a CPU."""
    path = tiny("llama")
    options = ExportOptions(context=64, rows="chosen", argmax=True)
    model = target.exported(load_artifact(path), options)
    executor = OnnxExecutor(model, loaded(path).cache_spec.layers, 0, Settings("cpu", 1, 64))
    executor.allocate(2)
    step = step_of([(0, 0, 9), (1, 0, 9)], TOKENS)
    both, alone = executor.submit(step).result(), executor.submit(step, logits=False).result()
    np.testing.assert_array_equal(both.token_ids, both.logits.argmax(-1))
    np.testing.assert_array_equal(alone.token_ids, both.token_ids)
    assert alone.logits is None


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "bloom", "mistral"])
def test_attention_of_16_bits(tiny, name):
    """The form of the CUDA provider, on a CPU: rotation, window, sinks and slopes in float16."""
    path = tiny(name)
    options = ExportOptions(context=64, rows="chosen", argmax=True, idle=False, experts=False, half=True)
    model = target.exported(load_artifact(path), options)
    executor = OnnxExecutor(model, loaded(path).cache_spec.layers, 0, Settings("cpu", 1, 64))
    whole = loaded(path)
    assert executor.kv_dtypes == ("f16",)
    assert 2 * executor.block_bytes() == whole.block_bytes()
    wanted = whole.logits(TOKENS)
    executor.allocate(2)
    for begin, end in ((0, 13), (13, 14), (14, 40)):
        found = executor.submit(step_of([(1, begin, end)], TOKENS)).result().logits
        assert 0 < np.abs(found - wanted[begin:end]).max() < HALF_BOUND


def test_tokens_alone_come_without_logits(tiny):
    executor = loaded(tiny("llama"))
    executor.allocate(1)
    step = step_of([(0, 0, 9)], TOKENS)
    alone = executor.submit(step, logits=False).result()
    assert alone.logits is None
    np.testing.assert_array_equal(alone.token_ids, executor.submit(step).result().token_ids)


def test_what_it_cannot_do_is_said(tiny):
    with pytest.raises(RequestError, match="runs on cpu or cuda"):
        loaded(tiny("llama"), device="tpu")
    with pytest.raises(RequestError, match="at most 1048576 positions"):
        OnnxTarget().load_artifact(load_artifact(tiny("llama")), slot_tokens=1 << 30)
    with pytest.raises(RequestError, match="CUDAExecutionProvider"):
        loaded(tiny("llama"), device="cuda")
    executor = loaded(tiny("llama"))
    with pytest.raises(CapacityError, match="allocate"):
        executor.submit(step_of([(0, 0, 3)], TOKENS))
    with pytest.raises(CapacityError, match="f32 only"):
        executor.allocate(1, kv_dtype="i8")
    executor.allocate(1)
    with pytest.raises(RequestError, match="slot"):
        executor.submit(step_of([(1, 0, 3)], TOKENS))
    with pytest.raises(RequestError, match="made for 64 positions, not for 65"):
        executor.logits(np.zeros(65, np.int64))


def test_the_export_is_kept_and_made_anew_for_other_options(tiny, tmp_path):
    loaded(tiny("llama"))
    (first,) = (tmp_path / "cache" / "onnx").iterdir()
    written = (first / "model.onnx").stat().st_mtime_ns
    loaded(tiny("llama"))
    assert (first / "model.onnx").stat().st_mtime_ns == written
    loaded(tiny("llama"), activations="int8")
    assert len(list((tmp_path / "cache" / "onnx").iterdir())) == 2

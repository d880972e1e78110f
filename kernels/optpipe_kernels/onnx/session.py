"""A session of ONNX Runtime on a provider."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from optpipe.errors import RequestError


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
    """A session on the wanted provider.

    Raises:
        RequestError: ONNX Runtime has no such provider here.
    """
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[settings.provider]
    if provider not in onnxruntime.get_available_providers():
        raise RequestError(
            f"ONNX Runtime has no {provider} here.",
            hint="pip install 'optpipe[onnx-gpu]', and a driver" if settings.provider == "cuda" else None,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    providers = [provider] if settings.provider == "cpu" else [provider, "CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(model), options, providers=providers)

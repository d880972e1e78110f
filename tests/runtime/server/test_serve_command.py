"""`optpipe serve`: its flags, its first lines, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from optpipe_runtime.engine import EngineConfig
from optpipe_runtime.serve_command import command
from optpipe_runtime.server import ServerConfig
from optpipe_runtime.server.options import ENGINE_FLAGS, SERVER_FLAGS, known_settings

ROOT = Path(__file__).parents[3]

# Settings that have a flag written out in the command, or none at all.
ELSEWHERE = {
    *("model_name", "api_keys", "allowed_hosts"),  # of the server
    *("policy", "prefix_caching", "kv_memory", "speculation", "draft_model", "draft_layers"),  # of the engine
    *("request_timeout", "stall_timeout"),  # the server's own stand for them
}
INTERNAL = {"max_failures", "intake_threads"}

# The command over a fake executor: a step takes as long as the environment says.
PROGRAM = """
import atexit, gc, os, sys
atexit.register(lambda: print("frozen:", gc.get_freeze_count(), file=sys.stderr))
sys.path.insert(0, {root!r})
import optpipe_runtime.engine as engines
from tests.runtime.server.kit import CONTEXT, EOS, LetterExecutor, tokenizer
import optpipe_runtime.shortcut as shortcut
shortcut.artifact_of = lambda model, **_: model
real = engines.Engine
def fake(model, target, *, config):
    executor = LetterExecutor(cost=lambda step: float(os.environ["STEP"]))
    options = dict(config=config, eos=[EOS], context_length=CONTEXT, model_name=model)
    return real.over(executor, tokenizer(), **options)
engines.Engine = fake
from optpipe.cli.main import run
sys.exit(run(["serve", "build/tiny", "--port", "0", "--num-blocks", "512", *sys.argv[1:]]))
"""


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def post(self, **fields: Any) -> httpx.Response:
        body = {"prompt": "a", "temperature": 0, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=20)

    def stop(self, *signals: int, wait: float = 10) -> int:
        for it in signals:
            self.process.send_signal(it)
        return self.process.wait(wait)


@contextlib.contextmanager
def running(*arguments: str, step: float = 0.001, **environment: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT)), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "STEP": str(step), **environment},
    )
    lines: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if line.startswith("listening"):
                listening.set()
        listening.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert listening.wait(30)
        urls = re.findall(r"http://\S+", "\n".join(lines))
        yield Running(process, urls[0] if urls else "", lines)
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()


def test_every_setting_has_a_flag_with_its_default() -> None:
    assert set(SERVER_FLAGS) | set(ENGINE_FLAGS) | ELSEWHERE | INTERNAL == known_settings()
    with command.make_context("serve", ["x"]) as ctx:
        flags = {it.name: it for it in command.get_params(ctx)}
    for config, table in ((ServerConfig(), SERVER_FLAGS), (EngineConfig(), ENGINE_FLAGS)):
        for name, text in table.items():
            default = getattr(config, name)
            assert flags[name].default == default
            assert (default is None) == ("[default:" in text), name


def test_the_guide_names_every_flag_and_default() -> None:
    guide = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for config, table in ((ServerConfig(), SERVER_FLAGS), (EngineConfig(), ENGINE_FLAGS)):
        for name in table:
            default = getattr(config, name)
            shown = (
                "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
            )
            row = rf"\| `--{name.replace('_', '-')}` \| {re.escape(shown)} \|"
            assert re.search(row, guide), f"docs/serving.md lacks {row}"


def test_says_what_it_serves_and_drains_at_the_first_signal() -> None:
    with running("--log-format", "json", step=0.02) as server:
        first = "\n".join(server.lines)
        assert re.search(r"model: tiny, contexts of 256 tokens", first)
        assert re.search(r"memory: weights .* KV cache .*512 blocks", first)
        assert "open to: everybody who reaches it" in first
        found: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: found.append(server.post(max_tokens=50)))
        thread.start()
        while (
            httpx.get(f"{server.url}/metrics", timeout=20).text.find(
                'num_requests_running{model_name="tiny"} 1.0'
            )
            < 0
        ):
            pass
        assert server.stop(signal.SIGTERM) == 0
        thread.join(10)
        assert found[0].json()["usage"]["completion_tokens"] == 50
    (frozen,) = [int(it.split()[1]) for it in server.lines if it.startswith("frozen:")]
    assert frozen > 50_000, "the collector looks at what start-up made again and again"
    records = [json.loads(it) for it in server.lines if it.startswith("{")]
    assert [it["signal"] for it in records if it["event"] == "draining"] == ["SIGTERM"]
    (request,) = [it for it in records if it.get("path") == "/v1/completions"]
    assert request["status"] == 200


def test_the_second_signal_stops_at_once() -> None:
    with running(step=0.05) as server:
        ends: list[str] = []

        def ask() -> None:
            try:
                ends.append(str(server.post(max_tokens=200).status_code))  # 10 s
            except httpx.HTTPError as error:
                ends.append(type(error).__name__)

        thread = threading.Thread(target=ask)
        thread.start()
        while (
            httpx.get(f"{server.url}/metrics", timeout=20).text.find(
                'num_requests_running{model_name="tiny"} 1.0'
            )
            < 0
        ):
            pass
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)  # it drains
        assert server.stop(signal.SIGTERM, wait=5) == 1
        thread.join(5)
        assert ends == ["503"]


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("from-a-file\n\n")
    with running("--api-key-file", str(keys), OPTPIPE_API_KEY="from-the-environment") as server:
        assert "open to: holders of 2 keys" in server.lines
        for key, status in (("from-a-file", 200), ("from-the-environment", 200), ("x", 401)):
            sent = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{server.url}/v1/models", headers=sent).status_code == status
        assert not [it for it in server.lines if "from-" in it]


def test_a_public_host_is_warned_of_and_a_taken_port_is_said() -> None:
    with running("--host", "0.0.0.0") as server:
        assert any("warning: whoever reaches 0.0.0.0 can use this server" in it for it in server.lines)
        with running("--host", "0.0.0.0", "--port", server.url.rpartition(":")[2]) as second:
            assert second.process.wait(10) == 1
            assert any(it.startswith("error: The server cannot listen at 0.0.0.0") for it in second.lines)
        assert server.stop(signal.SIGINT) == 0

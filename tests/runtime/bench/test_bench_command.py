"""The commands: what they print, and the keys that others read."""

import json
import os
import sys
from pathlib import Path

import pytest

from optpipe.cli.main import run
from optpipe.errors import EngineError
from optpipe_runtime.bench import opening, serve_run, server_process
from optpipe_runtime.engine import Engine, EngineConfig

from ..server.kit import EOS, LetterExecutor, serve, tokenizer
from ..server.test_serve_command import PROGRAM, ROOT

SPREAD = ("mean", "p50", "p90", "p99")
# What programs read; a key may be added, none may go.
KEYS = {
    "kind": str,
    "ttft_ms": SPREAD,
    "tpot_ms": SPREAD,
    "itl_ms": SPREAD,
    "e2e_ms": SPREAD,
    "late_ms": SPREAD,
    "prompt_tokens_per_s": float,
    "output_tokens_per_s": float,
    "requests_per_s": float,
    "goodput_rps": float,
    "seconds": float,
    "peak_rss_mb": float,
    "requests": ("sent", "answered", "failed", "errors"),
    "tokens": ("prompt", "output", "output_asked", "counted_by"),
    "generator_share": (float, type(None)),
    "warmup": int,
    "settings": dict,
}
LATENCY_KEYS = {"prefill_tokens_per_s": float, "decode_tokens_per_s": float}


def check_keys(found, keys=KEYS):
    assert found.keys() == keys.keys()
    for key, kind in keys.items():
        if isinstance(kind, tuple) and isinstance(kind[0], str):
            assert tuple(found[key]) == kind, key
        else:
            assert isinstance(found[key], kind), (key, found[key])


@pytest.fixture
def tape(monkeypatch):
    """Engines are over a tape; → the keywords they were asked for."""
    asked = []

    def open_engine(model, options, **keywords):
        asked.append(keywords)
        config = EngineConfig(num_blocks=512, sampler_threads=1, max_num_seqs=keywords["sequences"])
        return Engine.over(
            LetterExecutor(), tokenizer(), config=config, eos=[EOS], context_length=256, model_name=model
        )

    monkeypatch.setattr(opening, "open_engine", open_engine)
    return asked


def bench(capsys, *arguments, code=0):
    """→ the JSON of a command that ends with this code, and stderr."""
    assert run(["bench", *map(str, arguments), "--json"]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_latency(tape, capsys):
    found, said = bench(
        capsys, "latency", "x", "--input-len", 16, "--output-len", 4, "--batch-size", 2, "--repeats", 3,
        "--slo", "ttft=60s,tpot=60s",
    )  # fmt: skip
    check_keys(found, KEYS | LATENCY_KEYS)
    assert found["kind"] == "latency"
    assert found["requests"] == {"sent": 6, "answered": 6, "failed": 0, "errors": {}}
    assert found["tokens"] == {"prompt": 96, "output": 24, "output_asked": 24, "counted_by": ["engine"]}
    assert found["goodput_rps"] == found["requests_per_s"] == pytest.approx(6 / found["seconds"])
    assert found["warmup"] == 2
    settings = found["settings"]
    assert (settings["model"], settings["input_len"], settings["batch_size"]) == ("x", "16", 2)
    assert settings["slo"] == {"ttft_ms": 60_000, "tpot_ms": 60_000}
    assert settings["environment"].keys() == {"optpipe", "python", "processor", "cores"}
    assert tape == [{"sequences": 2, "length": 20, "prefixes": False}]
    assert said == ""


def test_throughput(tape, capsys):
    found, _ = bench(
        capsys, "throughput", "x", "--input-len", "4-16", "--output-len", "2-6", "--num-requests", 12,
        "--rate", 1000, "--burst", 3, "--shared-prefix", 2, "--random-ids", "--max-num-seqs", 8,
    )  # fmt: skip
    check_keys(found)
    assert found["requests"]["answered"] == 12
    assert found["settings"]["arrivals"] == "Poisson, 1000 a second in bursts of 3"
    assert tape == [{"sequences": 8, "length": None, "prefixes": True}]


def test_a_table_for_people(tape, capsys):
    assert run(["bench", "latency", "x", "--input-len", "4", "--output-len", "3", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    for text in ("TTFT", "TPOT", "ITL", "E2E", "p99", "1 answered, 0 failed", "(1 before them to warm up"):
        assert text in printed


def test_failures_are_shown_and_a_run_of_failures_fails(tape, capsys):
    wanted = ("throughput", "x", "--input-len", 300, "--output-len", 4, "--num-requests", 2, "--warmup", 0)
    found, said = bench(capsys, *wanted, code=1)
    assert found["requests"]["failed"] == 2
    assert found["ttft_ms"] == dict.fromkeys(SPREAD)
    assert said.startswith("warning: 2 requests failed: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latency", "x", "--slo", "tttf=3"], "did you mean 'ttft'?"),
        (["latency", "x", "--input-len", "many"], "no distribution of lengths"),
        (["throughput", "x", "--burst", "4"], "A burst needs a rate."),
        (["serve"], "There is nothing to measure."),
        (["serve", "--url", "nowhere"], "no URL of a server"),
        (["serve", "--url", "http://127.0.0.1:9", "--random-ids"], "Random ids need a vocabulary."),
    ],
)
def test_what_is_wrong_is_said_before_the_run(tape, capsys, arguments, said):
    assert run(["bench", *arguments]) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_a_picture_that_cannot_be_drawn_is_said_before_the_run(tape, capsys, monkeypatch, tmp_path):
    assert run(["bench", "latency", "x", "--plot", str(tmp_path / "none" / "p.png")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["bench", "latency", "x", "--plot", str(tmp_path / "p.png")]) == 1
    assert "optpipe[bench]" in capsys.readouterr().err
    assert tape == []


def test_serve_measures_a_server_at_a_url(capsys, tmp_path):
    """The steps take 10 ms, so that a token behind the first does too."""
    pytest.importorskip("matplotlib")
    with serve(LetterExecutor(cost=lambda step: 0.01)) as server:
        found, _ = bench(
            capsys, "serve", "--url", server.url, "--input-len", 20, "--output-len", 5, "--num-requests", 6,
            "--rate", 50, "--warmup", 2, "--pid", os.getpid(), "--slo", "ttft=1",
            "--plot", tmp_path / "p.png",
        )  # fmt: skip
        stats = server.engine.stats()
    check_keys(found)
    assert stats.generated_tokens == 8 * 5
    assert found["tokens"]["output"] == 30
    assert found["tokens"]["counted_by"] == ["usage"]
    assert found["tpot_ms"]["p50"] >= 10
    assert found["goodput_rps"] == 0, "no step is as fast as the limit"
    assert 0 < found["generator_share"] < 1
    assert found["settings"]["served_model"] == "tiny"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_serve_over_chat_with_a_key_that_is_not_printed(capsys):
    from optpipe_runtime.server import ServerConfig

    config = ServerConfig(model_name="tiny", api_keys=("secret-key",))
    with serve(config=config) as server:
        wanted = ("serve", "--url", server.url, "--endpoint", "chat", "--input-len", 8, "--output-len", 3,
                  "--num-requests", 2, "--concurrency", 1)  # fmt: skip
        found, _ = bench(capsys, *wanted, "--api-key", "secret-key")
        assert run(["bench", *map(str, wanted), "--api-key", "wrong"]) == 1
    assert "secret-key" not in json.dumps(found)
    assert found["requests"]["answered"] == 2
    assert found["settings"]["arrivals"] == "closed loop, 1 at once"
    assert found["peak_rss_mb"] is None
    assert "does not answer: HTTP 401" in capsys.readouterr().err


def fake_serve(model, options=()):
    return [sys.executable, "-c", PROGRAM.format(root=str(ROOT)), *options]


def test_serve_starts_a_server_and_ends_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("STEP", "0.001")
    monkeypatch.setattr(serve_run, "optpipe_serve", fake_serve)
    monkeypatch.setattr(serve_run, "open_folder", lambda model: tmp_path)
    monkeypatch.setattr(serve_run, "open_tokenizer", lambda folder: tokenizer())
    started = []
    real = server_process.subprocess.Popen
    monkeypatch.setattr(
        server_process.subprocess, "Popen", lambda *a, **k: (started.append(real(*a, **k)), started[-1])[1]
    )
    found, said = bench(
        capsys, "serve", "x", "--input-len", 12, "--output-len", 4, "--num-requests", 3, "--warmup", 1,
        "--server-args", "--max-num-seqs 2",
    )  # fmt: skip
    assert found["tokens"]["prompt"] == 36, "ids of the artifact's tokenizer: the lengths are exact"
    assert found["peak_rss_mb"] > 20
    assert "serving at http://127.0.0.1:" in said
    assert [it.returncode for it in started] == [0], "it was drained"
    assert "--max-num-seqs" in started[0].args


@pytest.mark.parametrize(
    ("program", "said", "hint"),
    [
        ("import sys; sys.exit('error: no model')", "ended before it listened", "it said: error: no model"),
        ("import time; time.sleep(60)", "did not start within 0.3 s", None),
    ],
)  # fmt: skip
def test_a_server_that_does_not_start_is_an_error(program, said, hint):
    command, timeout = [sys.executable, "-c", program], 0.3 if hint is None else 20
    with pytest.raises(EngineError, match=said) as caught, server_process.serve(command, timeout=timeout):
        pass
    assert caught.value.hint == hint


def test_a_server_that_ignores_the_first_signal_is_stopped(monkeypatch):
    monkeypatch.setattr(server_process, "STOP_SECONDS", 0.1)
    program = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, "
        "signal.SIG_DFL))\nprint('listening: http://127.0.0.1:1 (x)', file=sys.stderr, flush=True)\n"
        "while True: time.sleep(1)"
    )
    with server_process.serve([sys.executable, "-c", program], timeout=20) as process:
        assert process.url == "http://127.0.0.1:1"
    assert not Path(f"/proc/{process.pid}").exists()

"""From options to requests and engines."""

import json
import math
from types import SimpleNamespace

import pytest

import optpipe
from optpipe.cli.main import run
from optpipe.errors import RequestError
from optpipe.testing.tokenizer import BOS, EOS, PAD, save_tokenizer
from optpipe_runtime.bench.opening import make_arrivals, make_requests, make_workload
from optpipe_runtime.tokenizer import load_tokenizer

from ..server.kit import LetterExecutor

OPTIONS = {
    "input_len": "8", "output_len": "4", "shared_prefix": 0, "prefix_groups": 1, "random_ids": False,
    "seed": 0, "rate": None, "burst": 1, "concurrency": None, "num_requests": 5, "warmup": 2, "trace": None,
}  # fmt: skip


def options(**changed):
    assert changed.keys() <= OPTIONS.keys()
    return OPTIONS | changed


@pytest.mark.parametrize(
    ("given", "rate", "concurrency"),
    [
        ({}, math.inf, None),
        ({"concurrency": 3}, None, 3),
        ({"rate": 2.0}, 2.0, None),
        ({"rate": 2.0, "concurrency": 3}, 2.0, 3),
        ({"rate": math.inf, "concurrency": 3}, math.inf, 3),
    ],
    ids=str,
)
def test_when_requests_come(given, rate, concurrency):
    arrivals = make_arrivals(options(**given))
    assert (arrivals.rate, arrivals.concurrency) == (rate, concurrency)


def test_without_a_tokenizer_prompts_are_text():
    requests, warm = make_requests(make_workload(options(), None), options())
    assert (len(requests), len(warm)) == (5, 2)
    assert all(isinstance(it.prompt, str) and len(it.prompt.split()) == 6 for it in [*requests, *warm])
    assert {it.arrival for it in warm} == {None}


def test_random_ids_leave_special_tokens_out(tmp_path):
    save_tokenizer(tmp_path)
    wanted = options(random_ids=True, input_len="2000", num_requests=2)
    requests, _ = make_requests(make_workload(wanted, load_tokenizer(tmp_path)), wanted)
    found = {token for it in requests for token in it.prompt}
    assert not found & {BOS, EOS, PAD}
    assert max(found) < 259
    with pytest.raises(RequestError, match="vocabulary"):
        make_workload(wanted, None)


@pytest.mark.parametrize(
    ("given", "times"),
    [({}, [0, 0.5]), ({"concurrency": 1}, [None, None]), ({"rate": math.inf, "concurrency": 1}, [0, 0])],
    ids=str,
)
def test_a_trace_keeps_its_times_unless_others_are_asked_for(tmp_path, given, times):
    path = tmp_path / "trace.jsonl"
    lines = [{"input_len": 3, "output_len": 2, "arrival": 7 + i / 2} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, lines)))
    wanted = options(trace=path, num_requests=2, random_ids=True, **given)
    requests, warm = make_requests(make_workload(wanted, None, vocab_size=50), wanted)
    assert [it.arrival for it in requests] == times
    assert [len(it.prompt) for it in requests] == [3, 3]
    assert len(warm) == 2


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    """→ an artifact's folder, the executor that is made of it, and the options that this is done with."""
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64, "eos_token_id": EOS}))
    (tmp_path / "optpipe.json").write_text("{}")
    made = SimpleNamespace(folder=str(tmp_path), executor=LetterExecutor(), asked=[])
    monkeypatch.setattr("optpipe.artifact.load.load_artifact", lambda path: SimpleNamespace(path=path))
    monkeypatch.setattr(
        optpipe, "load", lambda artifact, **options: (made.asked.append(options), made.executor)[1]
    )
    return made


def test_latency_opens_an_engine_with_the_cache_it_needs_and_finds_nothing_in_it(artifact, capsys):
    wanted = ["latency", artifact.folder, "--input-len", "10", "--output-len", "6", "--batch-size", "3"]
    assert run(["bench", *wanted, "--repeats", "2", "--threads", "1", "--target", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert artifact.asked == [{"target": "cpu", "threads": 1}]
    assert found["requests"]["answered"] == 6
    block = artifact.executor.cache_spec.block_size
    assert artifact.executor.num_blocks <= 3 * (16 // block + 2), "no more than three sequences need"
    assert sum(len(it.token_ids) for it in artifact.executor.steps) == 3 * 3 * (10 + 5), "nothing was saved"
    assert max(len(it.context_lens) for it in artifact.executor.steps) == 3


def test_throughput_finds_shared_prefixes_in_the_cache(artifact, capsys):
    wanted = ["throughput", artifact.folder, "--input-len", "33", "--output-len", "2", "--num-requests", "8"]
    wanted += ["--shared-prefix", "32", "--concurrency", "1", "--warmup", "1"]
    assert run(["bench", *wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"]["prompt"] == 8 * 33
    computed = sum(len(it.token_ids) for it in artifact.executor.steps)
    assert computed == 33 + 1 + 8 * (1 + 1), "32 tokens are computed once, by the warm-up"


def test_a_prompt_longer_than_the_context_is_a_failure(artifact, capsys):
    assert run(["bench", "latency", artifact.folder, "--input-len", "70", "--output-len", "2"]) == 1
    assert "requests failed: " in capsys.readouterr().err

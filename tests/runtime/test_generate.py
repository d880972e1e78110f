"""`optpipe generate` over an executor that says what it is told; the artifact's own part is in tests/cli."""

import json
from types import SimpleNamespace

import pytest

import optpipe
from optpipe.cli.main import run
from optpipe.testing.tokenizer import BOS, EOS, save_tokenizer
from optpipe_runtime.tokenizer import load_tokenizer

from .tape import ScriptExecutor


@pytest.fixture
def world(tmp_path, monkeypatch):
    """→ an artifact that answers "Hi" with "Hello, 🙂!", and the executor that was made for it."""
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64, "eos_token_id": EOS}))
    (tmp_path / "optpipe.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    answers = {tuple(tokenizer.encode("Hi")): tokenizer.encode("Hello, 🙂!")}
    chat = (BOS, *tokenizer.encode("system: be kind\nuser: Hi\nassistant: "))
    answers[chat] = tokenizer.encode("as you say")
    executor = ScriptExecutor(answers, end=EOS, vocab_size=259)
    monkeypatch.setattr("optpipe.artifact.load.load_artifact", lambda path: SimpleNamespace(path=path))
    loaded = []
    monkeypatch.setattr(optpipe, "load", lambda artifact, **options: (loaded.append(options), executor)[1])
    return SimpleNamespace(folder=str(tmp_path), executor=executor, loaded=loaded)


def test_text_goes_to_stdout_and_nothing_else(world, capsys):
    assert run(["generate", world.folder, "Hi", "--raw"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "Hello, 🙂!\n"
    assert printed.err == ""
    assert world.loaded == [{"target": "auto"}]


def test_json_has_the_tokens_of_the_text(world, capsys):
    assert run(["generate", world.folder, "Hi", "--raw", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"text", "token_ids", "finish_reason", "prompt_tokens", "first_seconds", "seconds"}
    assert found["text"] == "Hello, 🙂!"
    assert EOS not in found["token_ids"]
    assert (found["finish_reason"], found["prompt_tokens"]) == ("stop", 2)
    assert 0 < found["first_seconds"] <= found["seconds"]


def test_a_chat_with_a_system_message(world, capsys):
    assert run(["generate", world.folder, "Hi", "--system", "be kind"]) == 0
    assert capsys.readouterr().out == "as you say\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--max-tokens", "3"], "Hel"),
        (["--stop", ",", "--stop", "xyz"], "Hello"),
        (["--speculation", "ngram"], "Hello, 🙂!"),
        (["--max-tokens", "100000"], "Hello, 🙂!"),
    ],
    ids=" ".join,
)
def test_options(world, options, text, capsys):
    assert run(["generate", world.folder, "Hi", "--raw", *options]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_the_cache_is_as_large_as_it_must_be(world):
    assert run(["generate", world.folder, "Hi", "--raw", "--max-tokens", "6"]) == 0
    assert world.executor.num_blocks == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speculation", "ngrma"], "did you mean 'ngram'?"),
        (["--kv-dtype", "bf16"], "cannot keep its cache as 'bf16'"),
        (["--top-p", "0"], "top_p"),
        (["--stop", ""], "stop"),
        (["--passes", "quant"], "takes no passes"),
        (["--draft-model", "x"], "does not go with"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_one_line(world, options, message, capsys):
    assert run(["generate", world.folder, "Hi", "--raw", *options]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert printed.err.startswith("error: ")


def test_a_step_that_fails_is_one_line_behind_the_text(world, capsys):
    def fail(step):
        if step.positions[0] > 4:
            raise RuntimeError("the device fell off the bus")

    world.executor.before_step = fail
    assert run(["generate", world.folder, "Hi", "--raw"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "Hell\n"
    assert printed.err.splitlines() == [
        "error: The step that this request was part of failed: RuntimeError: the device fell off the bus."
    ]

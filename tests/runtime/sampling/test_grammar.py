"""Structured output: what comes fits, and what is hostile is refused in time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from optpipe.errors import CapacityError, EngineError, RequestError
from optpipe_runtime.sampling import Group, Sampler, SamplingParams, StructuredOutput
from optpipe_runtime.sampling.grammar import QUEUE, Grammar, GrammarCompiler
from optpipe_runtime.sampling.grammar_check import Checker

MERGES = [("t", "r"), ("u", "e"), ("tr", "ue"), ('"', ":"), ("Ġ", '"'), ("0", "0")]
SIZE = 272  # logits are wider than the tokenizer, as models' often are
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def byte_tokenizer() -> Tokenizer:
    names = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(BPE(vocab={name: i for i, name in enumerate(names)}, merges=MERGES))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


TOKENIZER = byte_tokenizer()
END = TOKENIZER.token_to_id("<end>")


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(TOKENIZER.to_str(), SIZE, [END])
    yield found
    found.close()


def allowed(grammar: Grammar) -> set[str]:
    flags = np.unpackbits(grammar.bits().view(np.uint8), bitorder="little")
    return {TOKENIZER.id_to_token(int(it)) for it in np.flatnonzero(flags)}


def generate(
    compiler: GrammarCompiler, wanted: StructuredOutput, seed: int, *, drafts: str = "", **fields: object
) -> tuple[str, str | None]:
    """A text of random logits, and why it ended; every third draft of ``drafts`` is wrong."""
    sketch = [token if i % 3 else 7 for i, token in enumerate(TOKENIZER.encode(drafts).ids)]
    sampler = Sampler(SIZE)
    params = SamplingParams(structured=wanted, max_tokens=400, **fields)  # type: ignore[arg-type]
    state = sampler.state(params, [1], eos=[END], seed=seed, grammar=compiler.compile(wanted))
    tokens: list[int] = []
    while state.finish is None:
        guess = tuple(sketch[len(tokens) : len(tokens) + 3])
        rows = [np.random.default_rng([seed, len(tokens) + i]) for i in range(1 + len(guess))]
        logits = np.stack([it.standard_normal(SIZE, dtype=np.float32) for it in rows])
        (found,) = sampler.sample(logits, [Group(state, guess)])
        assert found.error is None
        tokens += found.tokens
    return TOKENIZER.decode(tokens, skip_special_tokens=True), state.finish


@pytest.mark.parametrize("seed", range(4))
def test_texts_fit_their_schema(compiler: GrammarCompiler, seed: int) -> None:
    text, finish = generate(compiler, StructuredOutput(json_schema=PERSON), seed)
    found = json.loads(text)
    assert finish == "stop" and set(found) == {"name", "age"}
    assert len(found["name"]) <= 8 and found["age"] <= 150


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"top_k": 2, "min_tokens": 3}, {"top_p": 0.5}])
def test_texts_match_their_expression(compiler: GrammarCompiler, fields: dict[str, object]) -> None:
    text, finish = generate(compiler, StructuredOutput(regex="(true|00){2,4}[a-c]"), 1, **fields)
    assert finish == "stop" and re.fullmatch("(true|00){2,4}[a-c]", text)


def test_texts_follow_their_lark_grammar(compiler: GrammarCompiler) -> None:
    text, _ = generate(compiler, StructuredOutput(grammar='start: "(" start ")" | "x"'), 2)
    assert re.fullmatch(r"\(*x\)*", text) and text.count("(") == text.count(")")


def test_a_json_object_begins_with_a_brace(compiler: GrammarCompiler) -> None:
    assert "{" in allowed(compiler.compile(StructuredOutput(json_object=True)))
    assert not {"[", "1", "true", "<end>"} & allowed(compiler.compile(StructuredOutput(json_object=True)))


@pytest.mark.parametrize("seed", range(3))
def test_drafts_do_not_change_the_text(compiler: GrammarCompiler, seed: int) -> None:
    wanted = StructuredOutput(json_schema=PERSON)
    plain = generate(compiler, wanted, seed)
    assert generate(compiler, wanted, seed, drafts=plain[0]) == plain


def test_the_grammar_wins_over_min_tokens(compiler: GrammarCompiler) -> None:
    text, finish = generate(compiler, StructuredOutput(regex="ab"), 1, min_tokens=50)
    assert (text, finish) == ("ab", "stop")


def test_an_end_comes_before_min_tokens_when_nothing_else_fits_the_grammar(compiler: GrammarCompiler) -> None:
    ids = (TOKENIZER.token_to_id("a"), END)
    wanted = StructuredOutput(regex="ab*")
    assert generate(compiler, wanted, 1, min_tokens=50, allowed_token_ids=ids) == ("a", "stop")


def test_allowed_tokens_and_the_grammar_hold_together(compiler: GrammarCompiler) -> None:
    ids = tuple(TOKENIZER.token_to_id(it) for it in ("a", "c"))
    text, _ = generate(compiler, StructuredOutput(regex="[ab]{9}"), 1, allowed_token_ids=ids)
    assert text == "a" * 9


@pytest.mark.parametrize("expression", ["a", ".*"], ids=["few", "many"])
def test_a_grammar_leaves_the_logits_as_they_are(compiler: GrammarCompiler, expression: str) -> None:
    sampler, wanted = Sampler(SIZE), StructuredOutput(regex=expression)
    params = SamplingParams(structured=wanted)
    state = sampler.state(params, [1], eos=[END], seed=1, grammar=compiler.compile(wanted))
    logits = np.random.default_rng(1).standard_normal((1, SIZE), dtype=np.float32)
    before = logits.copy()
    (found,) = sampler.sample(logits, [Group(state)])
    assert found.tokens and np.array_equal(logits, before)


def test_only_a_prefix_of_drafts_can_be_right(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(StructuredOutput(regex="a+b"))
    ids = [TOKENIZER.token_to_id(it) for it in "aabx"]
    assert grammar.valid_prefix(ids) == 3
    grammar.advance(ids[0])
    assert grammar.valid_prefix(ids[2:]) == 1 and not grammar.accepting


def test_sequences_of_one_grammar_do_not_touch_each_other(compiler: GrammarCompiler) -> None:
    wanted = StructuredOutput(regex="ab")
    first, second = compiler.compile(wanted), compiler.compile(wanted)
    first.advance(TOKENIZER.token_to_id("a"))
    fork = first.fork()
    fork.advance(TOKENIZER.token_to_id("b"))
    assert (allowed(first), allowed(second)) == ({"b"}, {"a"})
    assert fork.stopped and not first.stopped


def test_a_token_that_does_not_fit_is_refused(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(StructuredOutput(regex="ab"))
    with pytest.raises(RequestError, match="cannot go on by its grammar"):
        grammar.advance(TOKENIZER.token_to_id("b"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"regex": "("}, "regex cannot be compiled: unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": r"[^\s\S]"}, "no text fits it"),
        ({"regex": "(" * 30_000 + "a" + ")" * 30_000}, "nested"),
        ({"grammar": "start: start"}, "no text fits it"),
        ({"grammar": "start: foo"}, "unknown name"),
        ({"grammar": "}{"}, "grammar cannot be compiled"),
        ({"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000}, "nested"),
        ({"json_schema": {"type": "banana"}}, "Invalid type: banana"),
        ({"json_schema": {"$ref": "http://example.com/a.json"}}, "does not fetch"),
        ({"json_schema": False}, "json_schema cannot be compiled"),
    ],
    ids=range(12),
)
def test_refuses_what_cannot_be_compiled(
    compiler: GrammarCompiler, fields: dict[str, object], says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        compiler.compile(StructuredOutput(**fields))  # type: ignore[arg-type]
    assert "\n" not in caught.value.message and len(caught.value.message) < 300


SLOW = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(8500)}}


@pytest.mark.parametrize("fields", [{"json_schema": SLOW}, {"regex": "((a{1000}){1000}){1000}"}])
def test_a_grammar_that_takes_too_much_is_given_up_and_the_next_one_works(fields: dict[str, object]) -> None:
    compiler = GrammarCompiler(TOKENIZER.to_str(), SIZE, [END], seconds=1.0)
    begun = time.monotonic()
    for _ in range(3):  # the answer is remembered
        with pytest.raises(RequestError, match=r"takes over|too much memory"):
            compiler.compile(StructuredOutput(**fields))  # type: ignore[arg-type]
    assert time.monotonic() - begun < 20
    assert allowed(compiler.compile(StructuredOutput(regex="next"))) == {"n"}
    compiler.close()


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.compile(StructuredOutput(regex="once"))
    monkeypatch.setattr(compiler, "_compiled", None)  # would raise if it were called
    compiler.compile(StructuredOutput(regex="once"))


def test_what_is_known_does_not_wait_for_what_is_slow(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = StructuredOutput(regex="known")
    compiler.compile(known)
    begun, go_on, asked = threading.Event(), threading.Event(), []
    compiled = compiler._compiled

    def slow(wanted: StructuredOutput) -> object:
        asked.append(wanted.source)
        begun.set()
        assert go_on.wait(10)
        return compiled(wanted)

    monkeypatch.setattr(compiler, "_compiled", slow)
    with ThreadPoolExecutor(2 * QUEUE) as threads:
        same = [threads.submit(compiler.compile, StructuredOutput(regex="slow0")) for _ in range(3)]
        assert begun.wait(10)
        assert allowed(threads.submit(compiler.compile, known).result(5)) == {"k"}
        others = [
            threads.submit(compiler.compile, StructuredOutput(regex=f"slow{i}")) for i in range(1, QUEUE)
        ]
        while len(asked) < QUEUE:
            time.sleep(0.001)
        assert not compiler.knows(StructuredOutput(regex="slow0"))
        with pytest.raises(CapacityError, match=f"{QUEUE} other grammars"):
            compiler.compile(StructuredOutput(regex="one more"))
        go_on.set()
        assert all(allowed(it.result(10)) == {"s"} for it in same + others)
    assert sorted(asked) == [f"slow{i}" for i in range(QUEUE)]  # each once
    compiler.compile(StructuredOutput(regex="one more"))


def test_a_child_that_does_not_start_is_no_fault_of_the_request(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_checker", Checker("{}", 1.0))  # it dies of this
    for _ in range(2):  # it is not remembered as the grammar's
        with pytest.raises(EngineError, match="did not start"):
            compiler.compile(StructuredOutput(regex="innocent"))
    monkeypatch.undo()
    compiler.compile(StructuredOutput(regex="innocent"))


def test_closing_does_not_wait_for_what_is_being_compiled() -> None:
    compiler = GrammarCompiler(TOKENIZER.to_str(), SIZE, [END], seconds=30.0)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(compiler.compile, StructuredOutput(json_schema=SLOW))
        time.sleep(0.3)
        begun = time.monotonic()
        compiler.close()
        assert time.monotonic() - begun < 1
        with pytest.raises(EngineError, match="closed"):
            slow.result(5)


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="not installed") as caught:
        GrammarCompiler(TOKENIZER.to_str(), SIZE, [END])
    assert caught.value.hint == "pip install 'optpipe[structured]'"


def test_sampling_is_there_before_any_large_library() -> None:
    code = (
        "import optpipe_runtime.sampling, sys; "
        "print(sorted({'llguidance', 'tokenizers', 'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_tokenizer_that_cannot_be_used_is_said() -> None:
    with pytest.raises(RequestError, match="cannot use this model's tokenizer"):
        GrammarCompiler("{}", SIZE, [END])

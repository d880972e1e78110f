"""``optpipe generate``: text from an artifact, printed as it comes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from optpipe.cli import Command, json_option

from .target_options import given, target_options

if TYPE_CHECKING:
    from optpipe.artifact import Artifact

    from .engine import Completion, Engine
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer


@click.command(cls=Command, name="generate")
@click.argument("model")
@click.argument("prompt")
@click.option("--max-tokens", default=128, type=click.IntRange(min=1), help="The most tokens to generate.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--system", default=None, help="A system message for the chat template.  [default: none]")
@click.option("--temperature", default=0.0, help="0 takes the likeliest token; higher is more random.")
@click.option("--top-k", default=0, help="Choose among this many of the likeliest tokens; 0 for all.")
@click.option("--top-p", default=1.0, help="Choose among the likeliest tokens that have this probability.")
@click.option("--seed", default=0, help="Of the random numbers; the same seed gives the same text.")
@click.option("--stop", multiple=True, help="A text that ends the output; may be repeated.  [default: none]")
@target_options
@click.option(
    "--kv-dtype", default=None, help="How the cache stores numbers.  [default: the target's choice]"
)
@click.option(
    "--speculation", default="none", help="Who drafts tokens: none, ngram, suffix, draft or layers."
)
@click.option(
    "--draft-model", default=None, help="With draft: an artifact of the same vocabulary.  [default: none]"
)
@click.option(
    "--draft-layers",
    type=int,
    default=None,
    help="With layers: how many of the model's first layers draft.  [default: half of them]",
)
@click.option(
    "--passes", default=None, help="The pipeline, when MODEL has to be optimized first.  [default: paged]"
)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@json_option
def command(
    model: str,
    prompt: str,
    raw: bool,
    system: str | None,
    passes: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a prompt with an artifact.

    MODEL is an artifact, or a model as `optpipe optimize` takes it: that is optimized first, once, into the
    cache folder. PROMPT is one user message of a chat when there is a chat template; "-" reads it from stdin.
    """
    from optpipe.artifact import load_artifact

    from .shortcut import artifact_of
    from .tokenizer import load_tokenizer

    params = _params(options)
    if raw and system is not None:
        raise click.UsageError("--system is a chat message, and --raw asks for no chat.")
    if prompt == "-":
        prompt = sys.stdin.read()
    folder = artifact_of(model, passes=passes, trust_remote_code=trust_remote_code, say=_note)
    artifact = load_artifact(folder)
    tokenizer = load_tokenizer(folder)
    ids = prompt_ids(tokenizer, prompt, raw=raw, system=system)
    with _open(artifact, tokenizer, len(ids), options) as engine:
        _run(engine, ids, params, as_json)


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, raw: bool, system: str | None) -> list[int]:
    """Token ids of a prompt: as one turn of a chat when the model has a template, unless ``raw``.

    Raises:
        RequestError: the prompt is not text, or the template refuses the messages.
    """
    from optpipe.errors import RequestError

    from .chat import render_chat

    try:
        f"{prompt}{system or ''}".encode()
    except UnicodeEncodeError:
        raise RequestError("The prompt is not valid UTF-8 text.") from None
    if raw or tokenizer.chat_template is None:
        return tokenizer.encode(prompt)
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.encode(render_chat(tokenizer, messages), add_special_tokens=False)


def _params(options: Mapping[str, Any]) -> SamplingParams:
    from .sampling import SamplingParams

    names = ("temperature", "top_k", "top_p", "seed", "stop", "max_tokens")
    return SamplingParams(**{name: options[name] for name in names})


def _open(artifact: Artifact, tokenizer: Tokenizer, prompt: int, options: Mapping[str, Any]) -> Engine:
    """An engine with a cache for one sequence."""
    import optpipe

    from .engine import Engine, EngineConfig
    from .tokenizer import context_length, stop_ids

    executor = optpipe.load(artifact, target=options["target"], **given(options))
    if executor.cache_spec is None:
        _note("the artifact has no `paged` pass: one sequence at a time, all of it again a token")
    context = context_length(artifact.path)
    length = prompt + options["max_tokens"]
    length = length if context is None else min(length, context)
    block = 16 if executor.cache_spec is None else executor.cache_spec.block_size
    config = EngineConfig(
        max_num_seqs=1,
        num_blocks=-(-length // block) + 1,
        max_context=length,
        kv_dtype=options["kv_dtype"],
        speculation=options["speculation"],
        draft_model=options["draft_model"],
        draft_layers=options["draft_layers"],
        request_timeout=None,
    )
    eos = stop_ids(artifact.path, tokenizer)
    return Engine.over(executor, tokenizer, config=config, eos=eos, context_length=context)


def _run(engine: Engine, ids: list[int], params: SamplingParams, as_json: bool) -> None:
    from .engine.outputs import joined

    deltas = []
    most = min(params.max_tokens or 1, engine.context_length)  # a short context ends the text, without a word
    with engine.submit(ids, dataclasses.replace(params, max_tokens=most)) as submission:
        for delta in submission:
            deltas.append(delta)
            if not as_json:
                click.echo(delta.text, nl=False)
                sys.stdout.flush()
    result = joined(deltas)
    if not as_json:
        click.echo()
    if result.error is not None:
        raise result.error
    if as_json:
        click.echo(json.dumps(_as_json(engine, result), indent=2, ensure_ascii=False))
    else:
        _report(result)


def _as_json(engine: Engine, result: Completion) -> dict[str, Any]:
    """The tokens are those of the text: not the one that ended it."""
    ids = result.token_ids
    ended = result.finish_reason == "stop" and ids[-1] in engine.eos
    first, seconds = _seconds(result)
    return {
        "text": result.text,
        "token_ids": ids[:-1] if ended else ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "first_seconds": first,
        "seconds": seconds,
    }


def _seconds(result: Completion) -> tuple[float, float]:
    """Until the first token, and in all."""
    timing = result.timing
    assert timing.first_token is not None, f"{result.token_ids = } came without a time"
    return timing.first_token - timing.arrived, timing.finished - timing.arrived


def _report(result: Completion) -> None:
    if not sys.stderr.isatty():
        return
    first, seconds = _seconds(result)
    count, rest = len(result.token_ids), seconds - first
    speed = f", {(count - 1) / rest:.1f} tokens/s" if count > 1 and rest > 0 else ""
    _note(
        f"{result.usage.prompt_tokens} prompt tokens, first token after {first:.2f} s, "
        f"{count} new tokens{speed}, finished by {result.finish_reason}"
    )


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)

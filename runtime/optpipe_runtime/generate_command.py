"""``optpipe generate``: text from an artifact, printed as it comes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optpipe.cli import Command, json_option

if TYPE_CHECKING:
    from .generate import Generated
    from .text_model import TextModel


@click.command(cls=Command, name="generate")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--max-tokens", default=128, type=click.IntRange(min=1), help="The most tokens to generate.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--system", default=None, help="A system message for the chat template.  [default: none]")
@click.option("--temperature", default=0.0, help="0 takes the likeliest token; higher is more random.")
@click.option("--top-k", default=0, help="Choose among this many of the likeliest tokens; 0 for all.")
@click.option("--top-p", default=1.0, help="Choose among the likeliest tokens that have this probability.")
@click.option("--seed", default=0, help="Of the random numbers; the same seed gives the same text.")
@click.option("--target", default="reference", help="What runs the artifact.")
@click.option("--device", default="cpu", help="Where it runs, as torch names devices.")
@json_option
def command(
    artifact: Path,
    prompt: str,
    max_tokens: int,
    raw: bool,
    system: str | None,
    target: str,
    device: str,
    as_json: bool,
    **sampling_options: Any,
) -> None:
    """Continue a prompt with an artifact.

    PROMPT is one user message of a chat when the artifact has a chat template; "-" reads it from stdin.
    """
    from .sampling_simple import Sampling
    from .text_model import open_text_model

    sampling = Sampling(**sampling_options)
    if prompt == "-":
        prompt = sys.stdin.read()
    if raw and system is not None:
        raise click.UsageError("--system is a chat message, and --raw asks for no chat.")
    model = open_text_model(artifact, target=target, device=device)
    _say_what_is_slow(model)
    ids = model.prompt_ids(prompt, raw=raw, system=system)
    show = (lambda text: None) if as_json else _write
    text, result = model.generate(ids, max_tokens=max_tokens, sampling=sampling, on_text=show)
    if as_json:
        click.echo(json.dumps(_as_json(text, result), indent=2, ensure_ascii=False))
        return
    click.echo()
    _report(result)


def _write(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


def _say_what_is_slow(model: TextModel) -> None:
    if not model.paged:
        click.echo(
            "note: the artifact has no `paged` pass: one sequence at a time, all of it again a token",
            err=True,
        )


def _report(result: Generated) -> None:
    if not sys.stderr.isatty():
        return
    rest = result.seconds - result.first_seconds
    speed = (
        f", {(len(result.token_ids) - 1) / rest:.1f} tokens/s"
        if len(result.token_ids) > 1 and rest > 0
        else ""
    )
    click.echo(
        f"{result.prompt_tokens} prompt tokens, first token after {result.first_seconds:.2f} s, "
        f"{len(result.token_ids)} new tokens{speed}, finished by {result.finish_reason}",
        err=True,
    )


def _as_json(text: str, result: Generated) -> dict[str, Any]:
    return {"text": text} | dataclasses.asdict(result)

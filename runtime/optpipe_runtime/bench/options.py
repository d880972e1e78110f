"""The options that the commands of ``optpipe bench`` share. Imports click and nothing heavier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from optpipe.cli import json_option

from ..target_options import target_options

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
LENGTHS = "N, LOW-HIGH (uniform), chat (lognormal, as chat traffic is), or lognormal:MEDIAN:SPREAD[:MOST]."


def lengths(input_len: str, output_len: str) -> Decorator:
    """``--input-len`` and ``--output-len``."""
    return _all(
        click.option("--input-len", default=input_len, help=f"Tokens of a prompt: {LENGTHS}"),
        click.option(
            "--output-len", default=output_len, help="Tokens of an answer, written in the same way."
        ),
    )


def prompts() -> Decorator:
    """What prompts are made of."""
    return _all(
        click.option("--random-ids", is_flag=True, help="Prompts of random token ids instead of text."),
        click.option("--seed", default=0, help="Of prompts, lengths and times of arrival."),
        click.option(
            "--ignore-eos/--no-ignore-eos", default=True, help="Go on to the wanted length in any case."
        ),
    )


def workload(num_requests: int) -> Decorator:
    """How many requests there are, when they come, what they share."""
    return _all(
        click.option("--num-requests", default=num_requests, type=COUNT, help="Requests that are measured."),
        click.option(
            "--trace",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="JSON lines with input_len, output_len and arrival (s), instead of lengths and rate; the "
            "first --num-requests of them.  [default: none]",
        ),
        click.option(
            "--rate",
            type=POSITIVE,
            help="Requests a second, as a Poisson process.  [default: all at the beginning, or a closed loop "
            "where --concurrency is given]",
        ),
        click.option("--burst", default=1, type=COUNT, help="Requests that come at the same moment."),
        click.option(
            "--concurrency",
            type=COUNT,
            help="Requests at a time, at most; without --rate, the next comes when one has ended.  "
            "[default: any number]",
        ),
        click.option(
            "--shared-prefix",
            default=0,
            type=click.IntRange(min=0),
            help="Tokens that prompts begin with alike.",
        ),
        click.option("--prefix-groups", default=1, type=COUNT, help="Different beginnings of prompts."),
        click.option("--warmup", default=4, type=click.IntRange(min=0), help="Requests before, not counted."),
        click.option("--timeout", default=600.0, type=POSITIVE, help="Seconds after which a request failed."),
    )


def engine() -> Decorator:
    """How an engine in this process runs."""
    return _all(
        target_options,
        click.option(
            "--kv-dtype", default=None, help="How the cache stores numbers.  [default: the target's choice]"
        ),
        click.option(
            "--max-num-batched-tokens",
            default=512,
            type=COUNT,
            help="Tokens a step; a long prompt is computed in chunks of it.",
        ),
        click.option(
            "--speculation", default="none", help="Who drafts tokens: none, ngram, suffix, draft or layers."
        ),
        click.option(
            "--draft-model",
            default=None,
            help="With draft: an artifact of the same vocabulary.  [default: none]",
        ),
        click.option(
            "--draft-layers",
            type=COUNT,
            default=None,
            help="With layers: how many of the model's first layers draft.  [default: half of them]",
        ),
    )


def report() -> Decorator:
    """What is done with the result."""
    return _all(
        click.option(
            "--slo",
            default="",
            help="Limits of a good request: ttft=200,tpot=50,e2e=5s, in ms or with a unit.  [default: none]",
        ),
        click.option(
            "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a PNG.  [default: none]"
        ),
        json_option,
    )


def _all(*decorators: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(decorators):
            function = one(function)
        return function

    return decorate

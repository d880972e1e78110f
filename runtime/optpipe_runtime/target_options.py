"""The options of commands that say what runs an artifact, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

_OPTIONS = (
    click.option("--target", default="auto", help="What runs the artifact; auto takes the fastest that can."),
    click.option("--device", default=None, help="For the reference: a device of torch's.  [default: cpu]"),
    click.option(
        "--threads",
        default=None,
        type=click.IntRange(min=1),
        help="For the cpu target: threads.  [default: physical cores]",
    ),
    click.option(
        "--activations",
        default=None,
        type=click.Choice(["int16", "int8"]),
        help="For the cpu target: what inputs of quantized layers are rounded to; int8 is faster for prompts "
        "and batches, int16 gives what was verified.  [default: int16]",
    ),
)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--target`` and what targets take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The target's own options among a command's: those that were given."""
    named = ("device", "threads", "activations")
    return {name: options[name] for name in named if options.get(name) is not None}

"""The options of commands that say what runs an artifact, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

_OPTIONS = (
    click.option("--target", default="auto", help="What runs the artifact; auto takes the fastest that can."),
    click.option(
        "--device",
        default=None,
        help="For the reference, any device of torch's; for the cuda target, which GPU, such as cuda:1.  "
        "[default: the reference's cpu, the cuda target's cuda]",
    ),
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
    click.option(
        "--dtype",
        default=None,
        type=click.Choice(["auto", "bf16", "f16", "f32"]),
        help="For the cuda target: what it computes in; auto is bf16 where the GPU has it.  [default: auto]",
    ),
    click.option(
        "--batch-invariant/--no-batch-invariant",
        default=None,
        help="For the cuda target: whether a sequence's text is the same whatever else is served beside it; "
        "without, each step takes the fastest way for its size.  [default: batch-invariant]",
    ),
    click.option(
        "--cuda-graphs/--no-cuda-graphs",
        default=None,
        help="For the cuda target: whether decode steps are replayed from CUDA graphs.  "
        "[default: cuda-graphs]",
    ),
)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--target`` and what targets take."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The target's own options among a command's: those that were given."""
    named = ("device", "threads", "activations", "dtype", "batch_invariant", "cuda_graphs")
    return {name: options[name] for name in named if options.get(name) is not None}

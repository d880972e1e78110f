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
        help="For the cpu and onnx targets: threads.  [default: physical cores]",
    ),
    click.option(
        "--activations",
        default=None,
        type=click.Choice(["float32", "int16", "int8"]),
        help="What inputs of quantized layers are rounded to. For the cpu target int16, which gives what was "
        "verified, or int8, which is faster for prompts and batches; for the onnx target float32 or int8.  "
        "[default: the cpu target's int16, the onnx target's float32]",
    ),
    click.option(
        "--slot-tokens",
        default=None,
        type=click.IntRange(min=1),
        help="For the onnx target: positions of one sequence's cache.  [default: the model's, at most 4096]",
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
    named = ("device", "threads", "activations", "slot_tokens", "dtype", "batch_invariant", "cuda_graphs")
    return {name: options[name] for name in named if options.get(name) is not None}

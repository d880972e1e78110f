"""``optpipe inspect``: what an artifact holds, without running or even loading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArtifactError
from .command import Command, json_option
from .output import human_bytes, print_json, print_table

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..program import Node, Program


@click.command(cls=Command, name="inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--text", is_flag=True, help="Print the whole graph as text.")
@click.option("--layer", type=click.IntRange(min=0), help="Print the graph of one layer.  [default: none]")
@click.option("--plan", is_flag=True, help="Print the target's plan for one sequence's step.")
@click.option("--profile", is_flag=True, help="With --plan: run it, and print the time of each instruction.")
@click.option(
    "--target", default="cpu", show_default=True, metavar="NAME", help="With --plan: whose plan it is."
)
@click.option(
    "--tokens", type=click.IntRange(min=1), default=1, show_default=True, help="With --plan: new tokens."
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="With --plan: tokens of the sequence, new ones included.",
)
@json_option
def command(
    artifact: Path,
    text: bool,
    layer: int | None,
    plan: bool,
    profile: bool,
    target: str,
    tokens: int,
    context: int,
    as_json: bool,
) -> None:
    """Show what an artifact holds.

    Without an option: parameters and bytes, operations, the pipeline that made it, and what was measured.
    """
    from ..artifact import load_artifact
    from .plan import plan_of, print_plan
    from .summary import summarize

    if text + (layer is not None) + plan > 1:
        raise click.UsageError("--text, --layer and --plan are three views; give one.")
    if profile and not plan:
        raise click.UsageError("--profile goes with --plan.")
    opened = load_artifact(artifact, hashes=False)
    if plan:  # its own lowering looks at every operation, without torch
        report = plan_of(opened, target, profile=profile, tokens=tokens, context=context)
        print_json(report) if as_json else print_plan(report)
        return
    opened.check_operations()
    if text:
        _print_text(opened.program, as_json)
    elif layer is not None:
        _print_layer(opened, layer, as_json)
    elif as_json:
        print_json(summarize(opened.program) | {"manifest": opened.manifest.to_json()})
    else:
        _print(summarize(opened.program) | {"manifest": opened.manifest.to_json()})


def _print_text(program: Program, as_json: bool) -> None:
    from ..program import print_program

    printed = print_program(program)
    if as_json:
        print_json({"text": printed})
    else:
        click.echo(printed, nl=False)


def _print_layer(opened: Artifact, layer: int, as_json: bool) -> None:
    from ..program import print_node
    from .summary import layer_nodes, summarize

    nodes = layer_nodes(opened.program, layer)
    if not nodes:
        layers = summarize(opened.program)["layers"]
        raise ArtifactError(f"'{opened.path}' has no layer {layer}; it has {layers}.")
    if as_json:
        print_json({"layer": layer, "nodes": [_node_facts(node, print_node(node)) for node in nodes]})
    else:
        click.echo("\n".join(print_node(node) for node in nodes))


def _node_facts(node: Node, text: str) -> dict[str, Any]:
    results = {value.name: str(value.type) for value in node.results}
    return {"operation": node.op, "path": node.path, "results": results, "text": text}


def _print(facts: dict[str, Any]) -> None:
    manifest = facts["manifest"]
    click.echo(f"pipeline: {manifest['pipeline']}")
    click.echo(f"source: {_pairs(manifest['source'])}")
    click.echo(f"measured: {_measured(manifest['quality'])}")
    loads = "yes" if manifest["hf_loadable"] else f"no, {manifest['hf_obstacle']}"
    click.echo(f"transformers loads it: {loads}")
    click.echo(f"inputs: {', '.join(f'{name}: {kind}' for name, kind in facts['inputs'].items())}")
    click.echo(
        f"caches: {facts['caches']} tensors" if facts["caches"] else "caches: none, one sequence at a time"
    )
    click.echo(f"output: {', '.join(facts['outputs'])}; symbols: {', '.join(facts['symbols'])}")
    click.echo(f"layers: {facts['layers']}; nodes: {facts['nodes']}")
    rows = [_row(it) for it in facts["parts"]]
    total = {"part": "total", "stored": []}
    total |= {key: sum(it[key] for it in facts["parts"]) for key in ("parameters", "bytes")}
    print_table(
        ["part", "parameters", "bytes", "stored as"], [*rows, _row(total)], right=["parameters", "bytes"]
    )
    counts = [(name, str(count)) for name, count in facts["operations"].items()]
    print_table(["operation", "nodes"], counts, right=["nodes"])


def _measured(quality: dict[str, Any]) -> str:
    if not quality.get("verified"):
        return "nothing: it was made with --no-verify"
    source = quality.get("source")
    if source is None:
        return f"lossless; the model's own noise is {quality['noise']:.2g} in a logit"
    return (
        f"KL {source['kld']:.4g} nats from the source over {source['tokens']} tokens, "
        f"same first choice {source['top1']:.1%}, perplexity {source['perplexity']:.4g} "
        f"(source {source['source_perplexity']:.4g})"
    )


def _pairs(facts: dict[str, Any]) -> str:
    """Facts on one line, nested ones left to --json."""
    shown = {key: f"{it:.4g}" if isinstance(it, float) else it for key, it in facts.items()}
    return ", ".join(
        f"{key} {it}" for key, it in shown.items() if isinstance(it, str | int) and it is not None
    )


def _row(part: dict[str, Any]) -> tuple[str, ...]:
    return part["part"], f"{part['parameters']:,}", human_bytes(part["bytes"]), ", ".join(part["stored"])

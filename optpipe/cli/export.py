"""``optpipe export``: an artifact in a form that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import RequestError, nearest
from ..plugins import installed_plugins
from .command import NEW_FOLDER, Command, json_option
from .output import print_json


class _Export(Command):
    """Lists the formats that are installed in its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Formats"):
            formatter.write_dl([(name, it.value.summary) for name, it in _formats().items()])


def _formats() -> dict[str, Any]:
    return dict(sorted(installed_plugins().exporters().items()))


@click.command(cls=_Export, name="export")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=NEW_FOLDER, required=True, help="The folder to write.  [required]")
@click.option("--format", "form", default="hf", show_default=True, help="What is written; see below.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="hf: of the dequantized weights; float32 loses nothing. onnx: float16 is that of attention and its "
    "cache, for the CUDA provider.  [default: float32]",
)
@click.option(
    "--ops",
    type=click.Choice(["microsoft", "standard"]),
    help="onnx: with ONNX Runtime's own operators, or those of the standard alone.  [default: microsoft]",
)
@click.option(
    "--activations",
    type=click.Choice(["float32", "int8"]),
    help="onnx: what quantized layers compute with; int8 is faster.  [default: float32]",
)
@click.option(
    "--logits",
    type=click.Choice(["last", "all"]),
    help="onnx: of the last token of each row, or of all.  [default: last]",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="onnx: positions that tables are made for.  [default: the model's]",
)
@json_option
def command(artifact: Path, output: Path, form: str, as_json: bool, **options: Any) -> None:
    """Write an artifact in another format."""
    from ..artifact import load_artifact

    known = _formats()
    if form not in known:
        raise RequestError(
            f"There is no export format '{form}'.", hint=nearest(form, known) or f"known: {', '.join(known)}"
        )
    entry = known[form].value
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in entry.options:
            raise RequestError(f"The format '{form}' has no option --{name.replace('_', '-')}.")
    entry.export(load_artifact(artifact), output, **given)
    if as_json:
        print_json({"folder": str(output), "format": form, **given})
    else:
        click.echo(f"wrote {output}")

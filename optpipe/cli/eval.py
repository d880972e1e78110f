"""``optpipe eval``: how good an artifact is, and how far from its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArtifactError
from ..text_file import read_text
from .command import Command, json_option
from .output import Report, print_json, print_table, progress

if TYPE_CHECKING:
    import torch

    from ..evaluate import Model, Quality


@click.command(cls=Command, name="eval")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="MODEL",
    help="A model or another artifact to measure the divergence from.  [default: none]",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The text to measure on.  [default: the documentation of Python's language]",
)
@click.option("--windows", default=8, type=click.IntRange(min=1), help="Windows of 512 tokens to measure.")
@click.option("--device", default="cpu", help="Where it runs, as torch names devices.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with MODEL.")
@json_option
def command(
    artifact: Path,
    against: str | None,
    text: Path | None,
    windows: int,
    device: str,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Measure an artifact's quality: perplexity, and divergence from a model.

    KL is KL(MODEL || artifact) of the next token over the full vocabulary, in nats, mean over tokens.
    """
    from ..evaluate import evaluate, evaluation_text
    from ..evaluate import windows as cut

    content = evaluation_text() if text is None else read_text(text)
    with progress() as report:
        model = artifact_model(artifact, device)
        source = None if against is None else source_model(against, device, trust_remote_code, report)
        pieces = cut(encoder(artifact), content, count=windows)
        quality = evaluate(model, _counted(pieces, report), source=source)
    if as_json:
        print_json(quality.to_dict())
    else:
        _print(quality)


def encoder(folder: Path) -> Callable[[str], list[int]]:
    """Text to token ids, without special tokens, by a model folder's tokenizer.

    Raises:
        ArtifactError: the folder has none.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"'{folder}' has no tokenizer.json, so text cannot be turned into tokens.")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def artifact_model(folder: Path, device: str) -> Model:
    """An artifact on the reference target, as ``evaluate`` takes models."""
    import torch

    import optpipe

    executor = optpipe.load(folder, device=device)

    def logits(ids: torch.Tensor) -> Iterable[torch.Tensor]:
        return [torch.from_numpy(executor.logits(ids.numpy()))]

    return logits


def source_model(spec: str, device: str, trust_remote_code: bool, report: Report) -> Model:
    """A model source in transformers' own code, or another artifact.

    Raises:
        ModelError: nothing of that name can be opened.
    """
    if (Path(spec) / "optpipe.json").is_file():
        return artifact_model(Path(spec), device)
    from ..sources import resolve
    from ..sources.model import empty_model
    from ..tracing.eager import EagerModel

    source = resolve(spec, trust_remote_code=trust_remote_code, progress=report)
    click.echo(f"source: {source.description}", err=True)
    empty = empty_model(source.config, trust_remote_code=trust_remote_code, code=source.code)
    eager = EagerModel(empty, source.weights)
    return lambda ids: [eager.logits(ids[None])[0]]


def _counted(pieces: list[torch.Tensor], report: Report) -> Iterator[torch.Tensor]:
    for done, piece in enumerate(pieces):
        report("measuring", done, len(pieces))
        yield piece
    report("measuring", len(pieces), len(pieces))


def _print(quality: Quality) -> None:
    rows: list[tuple[str, str]] = [
        ("tokens", f"{quality.tokens:,}"),
        ("perplexity", f"{quality.perplexity:.3f} ± {quality.perplexity_error:.3f}"),
    ]
    more: dict[str, Any] = {
        "perplexity of the source": quality.source_perplexity,
        "KL, mean (nats)": quality.kld,
        "KL, median": quality.kld_median,
        "KL, 99 %": quality.kld_p99,
        "KL, largest": quality.kld_max,
    }
    rows += [(name, f"{value:.4g}") for name, value in more.items() if value is not None]
    if quality.top1 is not None:
        rows.append(("same first choice", f"{quality.top1:.2%}"))
    print_table(["measure", "value"], rows, right=["value"])

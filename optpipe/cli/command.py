"""What the commands have in common: ``--debug`` everywhere, ``--json`` where something is reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


@dataclass
class Settings:
    """What holds for one run of the program; the root context's ``obj``."""

    debug: bool = False


class Command(click.Command):
    """A command that also takes ``--debug`` after its name."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The declared parameters, and ``--debug``."""
        return [*super().get_params(ctx), debug_option()]


def debug_option() -> click.Option:
    """``--debug``, which is remembered in the root context."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_remember_debug,
        help="On an error, show the traceback.",
    )


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    settings = ctx.find_root().obj
    if value and isinstance(settings, Settings):
        settings.debug = True


class _NewFolder(click.Path):
    """A folder to be made: a path that says something."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an empty text would be the present folder."""
        if value == "":
            self.fail("the folder has no name", param, ctx)
        return super().convert(value, param, ctx)


NEW_FOLDER = _NewFolder(path_type=Path)


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """The callback of an option that takes neither infinity nor what is not a number."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", ctx, parameter)
    return value


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, passed on as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(function)

"""What this room adds to the command line."""

from __future__ import annotations

from collections.abc import Iterable

import click

from optpipe.plugins import hookimpl


@hookimpl
def optpipe_commands() -> Iterable[click.Command]:
    """Provide the commands of the runtime."""
    from .generate_command import command

    return [command]

"""The program's entrance: reads the command line, runs one command, and turns errors into exit codes.

Exit codes: 0 it worked; 1 it did not, and stderr says why; 2 the command line is wrong; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata

import click

from ..errors import OptpipeError
from .command import Settings, debug_option
from .lazy import LazyGroup

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = LazyGroup(
    name="optpipe",
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
    help="""Optimize LLMs for inference; every rewrite is checked and explained.

    Start with: optpipe optimize MODEL --passes quant,paged -o DIR, then optpipe generate DIR "PROMPT".
    """,
)
app.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=lambda ctx, _, asked: _show_version(ctx) if asked else None,
        help="Show the version and exit.",
    )
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and exit with its code.

    Args:
        argv: the arguments without the program's name; those of the process when None.
    """
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: Sequence[str]) -> int:
    """Run the program and return its exit code."""
    settings = Settings()
    # torch's threads spin while they wait, which on a busy machine takes the cores from the ones that work:
    # with five other processes on two cores, evaluation took twice as long. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        result = app.main(list(argv), prog_name="optpipe", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout left, as `head` does. Nothing more can be said there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _show(error, settings)
        return 1
    return result if isinstance(result, int) else 0


def _show(error: Exception, settings: Settings) -> None:
    """One line and a hint; the traceback too when it was asked for."""
    if settings.debug:
        traceback.print_exception(error)
    if isinstance(error, OptpipeError):
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        return
    text = " ".join(str(error).split())
    click.echo(f"error: optpipe failed unexpectedly: {type(error).__name__}: {text}", err=True)
    if not settings.debug:
        click.echo("hint: --debug shows the traceback", err=True)


def _show_version(ctx: click.Context) -> None:
    click.echo(f"optpipe {metadata.version('optpipe')}")
    ctx.exit()

"""A command that takes a long time to import, in principle."""

import click

from optpipe.plugins import hookimpl


@click.command(name="acme-hello")
@click.option("--name", default="world")
def hello(name):
    """Greet."""
    click.echo(f"hello {name}")


@hookimpl
def optpipe_commands():
    return [hello]
